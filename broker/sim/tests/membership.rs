//! Members that come, go, lose their disks and find them damaged: one seed; `holdfast-sim --profile membership` runs
//! more.

use holdfast_sim::membership::run_seed;

#[test]
fn nothing_is_lost_when_members_come_go_and_are_replaced_under_load() {
    if let Err(failure) = run_seed(1, None) {
        panic!("seed 1: {}\n{}", failure.what, failure.trace.join("\n"));
    }
}
