//! Disks that change under a machine: one grows, one is unplugged.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::served::{Served, machine, possible, shown, until};

#[test]
fn a_disk_grows_while_the_guest_uses_it() {
    if !possible("a disk that grows under QEMU") {
        return;
    }
    let served = Served::new("64M", &[]);
    let script = r#"
echo "sectors: $(cat /sys/block/vda/size)"
dd if=/dev/vda of=/dev/null bs=1M count=8 2>/dev/null
n=0
until [ "$(cat /sys/block/vda/size)" = 262144 ]; do
    n=$((n + 1)); [ $n -lt 120 ] || { echo "never grew"; exit 1; }
    sleep 1
done
dd if=/dev/urandom of=/dev/vda bs=1M seek=100 count=4 oflag=direct 2>/dev/null && echo "written beyond"
"#;
    let machine = served.machine(script);
    let running = std::thread::spawn(move || machine.run());
    served.until_done("reads", 8);
    served.ctl(&["resize", "128M"]).expect("grows");
    let printed = running.join().unwrap().unwrap();
    assert!(printed.contains("sectors: 131072"), "{printed}");
    assert!(printed.contains("written beyond"), "{printed}");
}

/// Says something to QEMU, and waits for what has `until` in it.
fn tell(monitor: &mut BufReader<UnixStream>, what: &str, until: &str) {
    monitor.get_mut().write_all(format!("{what}\n").as_bytes()).unwrap();
    let mut line = String::new();
    while !line.contains(until) {
        line.clear();
        assert!(monitor.read_line(&mut line).unwrap() > 0, "QEMU hung up before {until}");
        assert!(!line.contains("\"error\""), "{what}: {line}");
    }
}

fn connect(path: &Path) -> BufReader<UnixStream> {
    BufReader::new(until("QEMU listens", || UnixStream::connect(path).ok()))
}

#[test]
fn a_disk_is_unplugged_while_another_is_used_and_serves_the_next_machine() {
    if !possible("a disk that is unplugged under QEMU") {
        return;
    }
    let (gone, stays) = (Served::new("64M", &[]), Served::new("64M", &[]));
    let script = r#"
modprobe acpiphp 2>/dev/null || true
dd if=/dev/urandom of=/tmp/noise bs=64k count=16 2>/dev/null
sum=$(sha256sum </tmp/noise)
dd if=/tmp/noise of=/dev/vda bs=64k oflag=direct 2>/dev/null
round() {
    dd if=/tmp/noise of=/dev/vdb bs=64k oflag=direct 2>/dev/null
    [ "$(dd if=/dev/vdb bs=64k count=16 iflag=direct 2>/dev/null | sha256sum)" = "$sum" ]
}
n=0
while [ -e /sys/block/vda ]; do
    round || { echo "differs in round $n"; exit 1; }
    n=$((n + 1)); [ $n -lt 3000 ] || { echo "never unplugged"; exit 1; }
done
echo "unplugged"
for more in 1 2 3 4 5; do round || { echo "differs afterwards"; exit 1; }; done
echo "goes on"
dmesg | grep -i 'I/O error' || true
"#;
    let qmp = gone.path("qmp.sock");
    let mut both = machine(&[&gone, &stays], script);
    both.arguments.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", shown(&qmp))]);
    let running = std::thread::spawn(move || both.run());
    gone.until_done("writes", 16);
    stays.until_done("writes", 40);
    let mut monitor = connect(&qmp);
    tell(&mut monitor, r#"{"execute": "qmp_capabilities"}"#, "\"return\"");
    let unplug = r#"{"execute": "device_del", "arguments": {"id": "disk0"}}"#;
    tell(&mut monitor, unplug, "DEVICE_DELETED");
    let pid = gone.pid();
    until("the disk is let go of", || {
        let about: Value = gone.ctl(&["list"])?;
        let about = about.get(0).unwrap_or(&about).clone();
        (about["state"].as_str()? != "connected").then_some(())
    });
    let printed = running.join().unwrap().unwrap();
    assert!(printed.contains("unplugged\n") && printed.contains("goes on\n"), "{printed}");
    assert!(!printed.contains("I/O error"), "{printed}");
    let ever = stays.ever();
    assert_eq!((&ever["medium_errors"], &ever["refused"]), (&0.into(), &serde_json::json!({})));
    // The same process serves the next machine.
    let printed = gone.machine("dd if=/dev/vda bs=64k count=16 2>/dev/null | wc -c").run().unwrap();
    assert!(printed.contains("1048576"), "{printed}");
    assert_eq!(gone.pid(), pid);
    assert!(gone.ever()["reads"].as_u64().unwrap() > 0);
}
