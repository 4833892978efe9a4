//! What the hypervisor promises about CPU time and memory, held to by a real kernel: in a machine of
//! its own, with the whole cgroup tree for itself and one CPU to fight for.

use std::collections::BTreeMap;

use serde_json::Value;
use testbed::packages::{BUSYBOX, QEMU};
use testbed::programs::{Build, build};
use testbed::{skip, vm};

/// What every script begins with: a hypervisor that enforces everything.
const PROLOGUE: &str = r#"
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hypervisor run --memory 512M >/tmp/hypervisor.log 2>&1 &
hypervisor=$!
until grep -q ready: /tmp/hypervisor.log; do
    kill -0 $hypervisor || { cat /tmp/hypervisor.log; exit 1; }
    sleep 1
done
if grep UNENFORCED /tmp/hypervisor.log; then exit 1; fi
# The path of a domain's group, by the domain's number.
group() { echo /sys/fs/cgroup/domkit-$hypervisor-*/dom$1; }
show() { echo "list $1 $(hypervisor list --json | tr -d '\n')"; }
value() { echo "value $1 $(cat $(group $2)/$3 | tr '\n' ' ')"; }
burn() { hypervisor create "$@" -- sh -c 'while :; do :; done' & }
until_listed() { until hypervisor list | grep -q "$1"; do sleep 1; done; }
"#;

/// And ends with: it ends well and leaves no group behind.
const EPILOGUE: &str = r#"
kill -0 $hypervisor
kill $hypervisor
wait $hypervisor
for left in /sys/fs/cgroup/domkit-*; do
    if [ -e "$left" ]; then echo "left behind: $left"; exit 1; fi
done
"#;

/// What a script showed.
struct Shown {
    printed: String,
    lists: BTreeMap<String, Value>,
    values: BTreeMap<String, String>,
}

impl Shown {
    /// What domain `name` was like when list `tag` was shown.
    fn domain(&self, tag: &str, name: &str) -> &Value {
        let list = self.lists.get(tag).unwrap_or_else(|| panic!("no list {tag}: {}", self.printed));
        list.as_array()
            .unwrap()
            .iter()
            .find(|domain| domain["name"] == name)
            .unwrap_or_else(|| panic!("no domain {name} in {list}"))
    }

    fn cpu_ns(&self, tag: &str, name: &str) -> u64 {
        self.domain(tag, name)["cpu_ns"].as_u64().unwrap()
    }

    /// CPU time that domain `name` got from list `from` to list `to`, in nanoseconds.
    fn between(&self, from: &str, to: &str, name: &str) -> u64 {
        self.cpu_ns(to, name) - self.cpu_ns(from, name)
    }

    fn value(&self, name: &str) -> &str {
        self.values.get(name).unwrap_or_else(|| panic!("no value {name}: {}", self.printed))
    }
}

/// Runs `script` in a machine with one CPU, if there can be one.
fn machine(test: &str, script: &str) -> Option<Shown> {
    if !skip::unless_installed(test, &[QEMU, BUSYBOX]) {
        return None;
    }
    let hypervisor = build("hypervisor", "hypervisor", Build::Static).unwrap();
    let mut machine = vm::Machine::new([PROLOGUE, script, EPILOGUE].concat());
    machine.cpus = 1;
    machine.files = vec![("bin/hypervisor".into(), hypervisor)];
    let printed = machine.run().unwrap();
    let mut shown =
        Shown { printed: printed.clone(), lists: BTreeMap::new(), values: BTreeMap::new() };
    for line in printed.lines() {
        let words: Vec<&str> = line.splitn(3, ' ').collect();
        match words.as_slice() {
            ["list", tag, list] => {
                shown.lists.insert((*tag).to_owned(), serde_json::from_str(list).unwrap());
            }
            ["value", name, value] => {
                shown.values.insert((*name).to_owned(), value.trim().to_owned());
            }
            _ => {}
        }
    }
    Some(shown)
}

#[test]
fn domains_get_the_cpu_time_they_were_promised() {
    let script = r#"
burn heavy --weight 512
until_listed heavy
burn light --weight 256
until_listed light
value weight-heavy 1 cpu.weight
value weight-light 2 cpu.weight
value max 1 cpu.max
show fight-begins
sleep 20
show fight-ends

hypervisor sched light --cap 20
value capped 2 cpu.max
throttled() { grep nr_throttled "$(group 2)/cpu.stat" | cut -d' ' -f2; }
until [ "$(throttled)" -gt 0 ]; do sleep 1; done
show capped

hypervisor pause heavy
until grep -q 'frozen 1' "$(group 1)/cgroup.events"; do sleep 1; done
show paused
sleep 4
show still-paused
hypervisor unpause heavy
sleep 4
show unpaused
hypervisor destroy heavy
hypervisor destroy light
"#;
    let Some(shown) = machine("shares of CPU time", script) else { return };
    let printed = &shown.printed;

    let weight = |name: &str| shown.value(name).parse::<u64>().unwrap();
    assert_eq!(weight("weight-heavy"), 2 * weight("weight-light"), "{printed}");
    assert_eq!(shown.value("max"), "100000 100000", "one vCPU: {printed}");
    assert_eq!(shown.domain("fight-begins", "heavy")["weight"], 512);
    assert_eq!(shown.domain("fight-begins", "light")["weight"], 256);
    let heavy = shown.between("fight-begins", "fight-ends", "heavy");
    let light = shown.between("fight-begins", "fight-ends", "light");
    // 2 to 1 in the long run.
    assert!(light > 0 && heavy * 10 > light * 14, "{heavy} to {light}: {printed}");

    assert_eq!(shown.value("capped"), "20000 100000", "{printed}");
    assert_eq!(shown.domain("capped", "light")["cap"], 20);

    assert_eq!(shown.domain("paused", "heavy")["state"], "paused");
    assert_eq!(shown.domain("paused", "light")["state"], "running");
    assert_eq!(shown.between("paused", "still-paused", "heavy"), 0, "{printed}");
    assert_eq!(shown.domain("unpaused", "heavy")["state"], "running");
    assert!(shown.between("still-paused", "unpaused", "heavy") > 0, "{printed}");
}

#[test]
fn a_domain_that_eats_more_than_its_memory_dies_alone() {
    let script = r#"
burn bystander --memory 32M
until_listed bystander
value memory-max 1 memory.max
hypervisor mem-set bystander 16M
value memory-lowered 1 memory.max
code=0
hypervisor create eater --memory 16M -- sh -c 'x=0123456789abcdef; while :; do x=$x$x; done' || code=$?
echo "value code $code"
until ! hypervisor list | grep -q eater; do sleep 1; done
show after
hypervisor destroy bystander
"#;
    let Some(shown) = machine("limits of memory", script) else { return };
    let printed = &shown.printed;
    // The domain's own memory, and 64 MiB for what its processes need besides.
    assert_eq!(shown.value("memory-max"), ((32 + 64) << 20).to_string(), "{printed}");
    assert_eq!(shown.value("memory-lowered"), ((16 + 64) << 20).to_string(), "{printed}");
    // 128 and SIGKILL.
    assert_eq!(shown.value("code"), "137", "{printed}");
    assert_eq!(shown.domain("after", "bystander")["state"], "running");
    assert_eq!(shown.domain("after", "bystander")["target_kib"], 16 << 10);
}
