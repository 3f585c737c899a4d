//! Replication under faults, without sessions: three hosts over production journals.

use holdfast_sim::replicas::run_seed;

#[test]
fn replicas_agree_and_keep_what_was_confirmed_under_any_faults() {
    for seed in 1..=5 {
        if let Err((what, trace)) = run_seed(seed, None, false) {
            panic!("seed {seed}: {what}\n{}", trace.join("\n"));
        }
    }
}

#[test]
fn one_seed_is_one_run() {
    let runs = [7, 7].map(|seed| run_seed(seed, None, false).expect("a clean seed").digest);
    assert_eq!(runs[0], runs[1]);
}
