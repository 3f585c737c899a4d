//! The simulator's test of itself: each planted bug is found within 200 seeds.
//!
//! `cargo test -p holdfast-sim --release --features mutants --test mutants` plants those inside production crates too.

use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_sim::mutants::Mutation;
use holdfast_sim::run::run_seed;

const SEEDS: u64 = 200;

#[test]
#[cfg_attr(debug_assertions, ignore = "hundreds of seeds: run it in a release build")]
fn every_planted_bug_is_found_within_200_seeds() {
    let missed: Vec<String> =
        Mutation::ALL.iter().filter(|bug| found_by(**bug).is_none()).map(|bug| bug.name()).collect();
    assert_eq!(missed, Vec::<String>::new(), "not found within {SEEDS} seeds");
}

/// A seed that finds the bug, though not always the same one: two threads look for it.
fn found_by(bug: Mutation) -> Option<u64> {
    let next = AtomicU64::new(1);
    let found = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while found.load(Ordering::Relaxed) == 0 {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > SEEDS {
                        return;
                    }
                    if let Err(failure) = run_seed(seed, Some(bug), None) {
                        println!("{} was found by seed {seed}: {}", bug.name(), failure.what);
                        found.store(seed, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    Some(found.into_inner()).filter(|seed| *seed != 0)
}
