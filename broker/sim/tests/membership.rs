//! Members that come, go, lose their disks and find them damaged: one seed; `holdfast-sim --profile membership` runs
//! more.

use holdfast_sim::membership::{run_policies_seed, run_seed};

#[test]
fn nothing_is_lost_when_members_come_go_and_are_replaced_under_load() {
    if let Err(failure) = run_seed(1, None) {
        panic!("seed 1: {}\n{}", failure.what, failure.trace.join("\n"));
    }
}

#[test]
fn nothing_is_lost_when_replication_policies_change_under_load_and_replicas_wait_to_be_synchronised() {
    if let Err(failure) = run_policies_seed(1, None) {
        panic!("seed 1: {}\n{}", failure.what, failure.trace.join("\n"));
    }
}
