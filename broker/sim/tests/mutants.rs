//! The simulator's test of itself: each planted bug is found within 200 seeds.
//!
//! `make mutants` plants those inside production crates too, and prints within how many seeds each was found.

use holdfast_sim::campaign::{Campaign, find};
use holdfast_sim::minimize::minimize;
use holdfast_sim::mutants::Mutation;
use holdfast_sim::run::Run;

const CAMPAIGN: Campaign = Campaign { first: 1, seeds: 200, threads: 2 };

#[test]
#[cfg_attr(debug_assertions, ignore = "hundreds of seeds: run it in a release build")]
fn every_planted_bug_is_found_within_200_seeds() {
    let missed: Vec<String> =
        Mutation::ALL.iter().filter(|bug| find(&CAMPAIGN, **bug).is_none()).map(|bug| bug.name()).collect();
    assert_eq!(missed, Vec::<String>::new(), "not found within {} seeds", CAMPAIGN.seeds);
}

#[test]
fn a_failing_run_is_made_smaller_and_still_fails_when_it_is_replayed() {
    let bug = Mutation::SyncSkipped;
    let failure = find(&CAMPAIGN, bug).expect("a build that never syncs loses something");
    let run = Run { mutation: Some(bug), ..Run::new(bug.profile(), failure.seed) };
    let (smaller, failure) = minimize(&run).expect("the same run fails again");
    assert!(smaller.plan().strikes.len() < run.plan().strikes.len());
    let again = smaller.play(None).expect_err("what is left of it still fails");
    assert_eq!(again.what, failure.what);
}
