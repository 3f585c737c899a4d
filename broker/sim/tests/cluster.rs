//! Whole members with clients, a few seeds: `make sim` runs many more.

use holdfast_sim::run::run_seed;

#[test]
fn a_cluster_keeps_its_promises_under_any_faults() {
    for seed in 1..=3 {
        if let Err(failure) = run_seed(seed, None, None) {
            panic!("seed {seed}: {}\n{}", failure.what, failure.trace.join("\n"));
        }
    }
}

#[test]
fn one_seed_is_one_run() {
    let runs = [5, 5].map(|seed| format!("{:?}", run_seed(seed, None, None).expect("a clean seed")));
    assert_eq!(runs[0], runs[1]);
}
