//! The commands on a machine that runs on Xen: what can be known without a toolstack is shown; what
//! takes a toolstack is left to it, by name.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use hypervisor::DomId;
use hypervisor::store::{Store, StoreError, Transaction};
use hypervisor::xen::{self, About};
use serde_json::{Value, json};

use crate::args::{Command, Output};
use crate::show;

const NONE: Transaction = Transaction::NONE;

/// Does what `command` says.
pub(crate) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let instead = match command {
        Command::List(output) => return list(*output),
        Command::Info(output) => return info(*output),
        Command::Create(_) => "xl create FILE".to_owned(),
        Command::Pause { domain } => format!("xl pause {domain}"),
        Command::Unpause { domain } => format!("xl unpause {domain}"),
        Command::Destroy { domain } => format!("xl destroy {domain}"),
        Command::MemSet { domain, size } => format!("xl mem-set {domain} {}K", size.0),
        Command::Sched(sched) => format!("xl sched-credit2 -d {}", sched.domain),
        Command::Run(_) | Command::Completions { .. } | Command::Man { .. } => {
            bail!("this command does not ask Xen")
        }
    };
    bail!(
        "this machine runs on Xen, where the toolstack does that: use `{instead}`, or set \
         DOMKIT_HYPERVISOR=embedded to use the embedded hypervisor all the same"
    )
}

/// `hypervisor info`.
fn info(output: Output) -> anyhow::Result<ExitCode> {
    let about = xen::about();
    let domain = xen::Domain::open().map(|domain| domain.id()).map_err(|error| error.to_string());
    if output.json {
        let all = as_json(&about, &domain);
        return show::print(&format!("{}\n", serde_json::to_string_pretty(&all)?));
    }
    show::print(&as_text(&about, &domain))
}

fn as_json(about: &About, domain: &Result<DomId, String>) -> Value {
    let missing: Vec<_> = about
        .missing
        .iter()
        .map(|node| json!({ "path": node.path, "module": node.module, "purpose": node.purpose }))
        .collect();
    json!({
        "hypervisor": "xen",
        "version": about.version,
        "domain": domain.as_ref().ok().map(|id| id.get()),
        "problem": domain.as_ref().err(),
        "control": about.control,
        "guest_type": about.guest_type,
        "gntdev_limit": about.gntdev_limit,
        "gntalloc_limit": about.gntalloc_limit,
        "missing": missing,
    })
}

fn as_text(about: &About, domain: &Result<DomId, String>) -> String {
    let mut text = String::new();
    let mut line = |name: &str, what: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<11} {what}");
    };
    line("hypervisor", &format!("Xen {}", about.version.as_deref().unwrap_or("(version unknown)")));
    let kind = about.guest_type.as_deref().map(|kind| format!(", {kind}")).unwrap_or_default();
    let control = match about.control {
        Some(true) => ", a control domain",
        Some(false) => "",
        None => "; what it may do is not known (`mount -t xenfs xenfs /proc/xen`)",
    };
    match domain {
        Ok(id) => line("domain", &format!("{id}{kind}{control}")),
        Err(problem) => line("PROBLEM", problem),
    }
    for (name, limit, of) in [
        ("mapping", about.gntdev_limit, "at a time (gntdev)"),
        ("granting", about.gntalloc_limit, "by all processes together (gntalloc)"),
    ] {
        if let Some(limit) = limit {
            line(name, &format!("at most {limit} pages {of}"));
        }
    }
    line("in use", "Xen tells only the toolstack: `xl debug-keys g; xl dmesg`");
    for node in &about.missing {
        let (path, purpose, module) = (node.path, node.purpose, node.module);
        line("MISSING", &format!("{path}, by which {purpose}: `modprobe {module}`"));
    }
    text
}

/// A domain as the store has it.
struct Listed {
    id: DomId,
    name: Option<String>,
    /// Its memory target in KiB.
    target: Option<u64>,
    vcpus: Option<usize>,
}

/// `hypervisor list`.
fn list(output: Output) -> anyhow::Result<ExitCode> {
    let domains = domains(&xen::Domain::open()?)?;
    if output.json {
        let all: Vec<_> = domains
            .iter()
            .map(|domain| {
                json!({
                    "id": domain.id.get(),
                    "name": domain.name,
                    "target_kib": domain.target,
                    "vcpus": domain.vcpus,
                })
            })
            .collect();
        return show::print(&format!("{}\n", serde_json::to_string_pretty(&all)?));
    }
    let unknown = || "-".to_owned();
    let mut text = show::row(["Name", "ID", "Mem", "VCPUs", "State", "Time(s)"]);
    for domain in &domains {
        text.push_str(&show::row([
            domain.name.as_deref().unwrap_or("-"),
            &domain.id.to_string(),
            &domain.target.map_or_else(unknown, show::mebibytes),
            &domain.vcpus.map_or_else(unknown, |vcpus| vcpus.to_string()),
            "-",
            "-",
        ]));
    }
    show::print(&text)
}

/// All domains that the store knows, by number.
fn domains<S: Store>(store: &S) -> anyhow::Result<Vec<Listed>> {
    let names = store.list(NONE, "/local/domain").map_err(|error| match error {
        StoreError::Refused { errno: libc::EACCES, .. } => {
            anyhow!("this domain may not see the others; ask in domain 0")
        }
        other => anyhow!(other),
    })?;
    let mut domains = Vec::new();
    for id in names.iter().filter_map(|name| name.parse().ok().and_then(DomId::new)) {
        let home = format!("/local/domain/{id}");
        let value = |key: &str| -> anyhow::Result<Option<String>> {
            match store.read(NONE, &format!("{home}/{key}")) {
                Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
                // It may just have gone, or not be ours to see.
                Err(StoreError::Missing(_) | StoreError::Refused { .. }) => Ok(None),
                Err(lost) => Err(lost).context("read the store"),
            }
        };
        let vcpus = match store.list(NONE, &format!("{home}/cpu")) {
            Ok(cpus) => Some(cpus.len()),
            Err(_) => None,
        };
        let target = value("memory/target")?.and_then(|target| target.trim().parse().ok());
        domains.push(Listed { id, name: value("name")?, target, vcpus });
    }
    domains.sort_by_key(|domain| domain.id);
    Ok(domains)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_a_toolstack_is_left_to_it() {
        let said = |command| run(&command).unwrap_err().to_string();
        let pause = said(Command::Pause { domain: "web".to_owned() });
        assert!(pause.contains("`xl pause web`"), "{pause}");
        assert!(pause.contains("DOMKIT_HYPERVISOR=embedded"), "{pause}");
        let size = "64M".parse().unwrap();
        let target = said(Command::MemSet { domain: "7".to_owned(), size });
        assert!(target.contains("`xl mem-set 7 65536K`"), "{target}");
    }

    #[test]
    fn what_is_missing_is_said_with_its_module() {
        // This machine has none of them where it does not run on Xen.
        let mut about = xen::about();
        about.missing = xen::Node::ALL.to_vec();
        let text = as_text(&about, &Err("no store".to_owned()));
        assert!(text.contains("/dev/xen/gntdev"), "{text}");
        assert!(text.contains("`modprobe xen-gntdev`"), "{text}");
        assert!(text.contains("PROBLEM     no store"), "{text}");
        let json = as_json(&about, &Ok(DomId::ZERO));
        assert_eq!(json["domain"], 0);
        assert_eq!(json["missing"].as_array().unwrap().len(), 4);
    }

    #[test]
    fn domains_are_listed_from_the_store() {
        use hypervisor::xenstore::server::Service;
        let service = Service::spawn_private().unwrap();
        let store = service.handle().client(DomId::ZERO).unwrap();
        for (key, value) in [
            ("/local/domain/12/name", "web"),
            ("/local/domain/12/memory/target", "524288"),
            ("/local/domain/12/cpu/0/availability", "online"),
            ("/local/domain/12/cpu/1/availability", "online"),
            ("/local/domain/0/name", "Domain-0"),
        ] {
            store.write(NONE, key, value.as_bytes()).unwrap();
        }
        let listed = domains(&store).unwrap();
        let [first, second] = &listed[..] else { panic!("{} domains", listed.len()) };
        assert_eq!((first.id, first.target, first.vcpus), (DomId::ZERO, None, None));
        assert_eq!((second.name.as_deref(), second.target), (Some("web"), Some(524_288)));
        assert_eq!(second.vcpus, Some(2));
    }
}
