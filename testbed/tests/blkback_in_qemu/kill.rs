//! A backend that is killed under a machine: a pause, and no error.

use std::time::Duration;

use crate::served::{Served, possible};

#[test]
fn a_guest_sees_a_pause_and_no_error_when_the_backend_is_killed() {
    if !possible("a backend that is killed under QEMU") {
        return;
    }
    // So few a second, that there always are some under way.
    let limit = ["--limit-iops", "600"];
    let mut served = Served::new("256M", &limit);
    let script = r#"
dd if=/dev/urandom of=/tmp/noise bs=1M count=16 2>/dev/null
sum=$(sha256sum </tmp/noise)
for round in 1 2; do
    for part in 0 1 2 3; do
        dd if=/tmp/noise of=/dev/vda bs=64k seek=$((part * 256)) oflag=direct 2>/dev/null &
    done
    wait
    for part in 0 1 2 3; do
        got=$(dd if=/dev/vda bs=64k skip=$((part * 256)) count=256 iflag=direct 2>/dev/null | sha256sum)
        [ "$got" = "$sum" ] || { echo "part $part of round $round differs"; exit 1; }
    done
done
echo "all rounds are over"
dmesg | grep -i 'error' || true
"#;
    let machine = served.machine(script);
    let running = std::thread::spawn(move || machine.run());
    for _ in 0..3 {
        served.until_done("writes", 100);
        served.kill();
        std::thread::sleep(Duration::from_millis(200));
        served.start(&limit);
    }
    let printed = running.join().unwrap().unwrap();
    assert!(printed.contains("all rounds are over"), "{printed}");
    assert!(!printed.contains("I/O error"), "{printed}");
    let counters = served.ctl(&["counters"]).unwrap();
    assert_eq!(counters["ever"]["medium_errors"].as_u64(), Some(0), "{counters}");
}
