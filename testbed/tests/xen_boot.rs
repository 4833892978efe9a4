//! Real Xen, booted in QEMU: the first scenario, so that a bed which does not boot is seen at once. The
//! others are the gate's (`cargo testbed run --ci`).

use testbed::packages::QEMU;
use testbed::skip;
use testbed::xen::scenario::Scenario;
use testbed::xen::{self, Bed, Options, Verdict};

#[test]
fn xen_boots_and_a_stock_guest_uses_a_disk() {
    let test = "a stock guest of a real Xen in QEMU";
    if !skip::unless_installed(test, &[QEMU]) {
        return;
    }
    let bed = match Bed::prepare(&xen::cache_folder(), None, false, &|what| eprintln!("{what}")) {
        Ok(bed) => bed,
        Err(error) => return skip::because(test, &format!("{error:#}")),
    };
    let scenario = Scenario::named("boot").unwrap();
    let mut said = String::new();
    let (verdict, logs) = xen::run(&bed, &scenario, &Options::default(), false, &mut |line| {
        said += &format!("{line}\n")
    })
    .unwrap();
    assert_eq!(verdict, Verdict::Passed, "{said}\nlogs: {}", logs.display());
}
