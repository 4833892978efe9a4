//! Domains as text and as JSON.

use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use hypervisor::domain::{DomainInfo, DomainState};
use serde_json::{Value, json};

use crate::control::letters;

/// Prints to standard output; that nobody reads it to its end is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("print"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// A domain, with times in nanoseconds and memory in KiB.
pub(crate) fn domain_as_json(info: &DomainInfo) -> Value {
    let state = match info.state {
        DomainState::Running => "running",
        DomainState::Paused => "paused",
        DomainState::Dying => "dying",
        _ => "unknown",
    };
    json!({
        "id": info.id.get(),
        "name": info.spec.name,
        "memory_kib": info.spec.memory_kib,
        "target_kib": info.target_kib,
        "vcpus": info.spec.vcpus,
        "weight": info.spec.weight,
        "cap": info.spec.cap,
        "state": state,
        "state_letters": letters(info.state),
        "cpu_ns": info.cpu_ns,
        "cpu_seconds": seconds(info.cpu_ns),
    })
}

/// All domains, in xl's columns: memory in MiB, CPU time in seconds.
pub(crate) fn table(domains: &[DomainInfo]) -> String {
    let mut text = row(["Name", "ID", "Mem", "VCPUs", "State", "Time(s)"]);
    for info in domains {
        text.push_str(&row([
            &info.spec.name,
            &info.id.to_string(),
            &mebibytes(info.target_kib),
            &info.spec.vcpus.to_string(),
            letters(info.state),
            &format!("{:.1}", seconds(info.cpu_ns)),
        ]));
    }
    text
}

/// One line in those columns.
pub(crate) fn row([name, id, memory, vcpus, state, time]: [&str; 6]) -> String {
    let mut line = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(line, "{name:<32} {id:>5} {memory:>7} {vcpus:>5}  {state:<6} {time:>9}");
    line
}

/// MiB, with a fraction only where there is one.
pub(crate) fn mebibytes(kib: u64) -> String {
    if kib.is_multiple_of(1024) {
        kib.div_euclid(1024).to_string()
    } else {
        format!("{:.1}", std::time::Duration::from_micros(kib).as_secs_f64() * 1e6 / 1024.0)
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    std::time::Duration::from_nanos(nanoseconds).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypervisor::DomId;
    use hypervisor::domain::DomainSpec;

    #[test]
    fn a_domain_is_one_line_in_the_columns_of_its_head() {
        let mut spec = DomainSpec::new("disk");
        spec.vcpus = 2;
        let id = DomId::new(17).unwrap();
        let info = DomainInfo::new(id, spec, 1536, DomainState::Paused, 1_250_000_000);
        let text = table(std::slice::from_ref(&info));
        let [head, line] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        assert_eq!(head.len(), line.len());
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["disk", "17", "1.5", "2", "--p---", "1.2"]);
        let json = domain_as_json(&info);
        assert_eq!(json["state"], "paused");
        assert_eq!(json["target_kib"], 1536);
        assert_eq!(json["cpu_ns"], 1_250_000_000_u64);
    }
}
