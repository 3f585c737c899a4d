//! Barriers while members die, stop and are cut off: a few seeds; `holdfast-sim --profile backups` runs more.

use holdfast_sim::backups::run_seed;

#[test]
fn what_a_barrier_holds_is_consistent_over_all_queues_and_survives_a_slow_copy() {
    for seed in 1..=2 {
        if let Err(failure) = run_seed(seed, None) {
            panic!("seed {seed}: {}\n{}", failure.what, failure.trace.join("\n"));
        }
    }
}
