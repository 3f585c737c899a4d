//! Whole members with clients, a few seeds: `make sim` runs many more.

use holdfast_sim::faults::{FAULTS, How};
use holdfast_sim::plan::Profile;
use holdfast_sim::run::Run;

fn passes(profile: Profile, seed: u64) {
    if let Err(failure) = Run::new(profile, seed).play(None) {
        panic!("{profile:?}, seed {seed}: {}\n{}", failure.what, failure.trace.join("\n"));
    }
}

#[test]
fn a_cluster_keeps_its_promises_under_any_faults() {
    passes(Profile::Mixed, 1);
    for seed in 1..=8 {
        passes(Profile::Small, seed);
    }
}

#[test]
fn what_rots_on_a_running_members_disk_is_mended_in_place_for_the_most_part() {
    let mut mended = 0;
    let mut copied_anew = 0;
    for seed in 1..=3 {
        let summary = Run::new(Profile::Rot, seed).play(None);
        let summary = summary.unwrap_or_else(|failure| panic!("{}\n{}", failure.what, failure.trace.join("\n")));
        mended += summary.healed.mended;
        copied_anew += summary.healed.copied_anew;
    }
    assert!(mended > 2 * copied_anew, "{mended} replicas were mended and {copied_anew} copied anew");
}

#[test]
fn one_seed_is_one_run() {
    let runs = [5, 5].map(|seed| format!("{:?}", Run::new(Profile::Small, seed).play(None).expect("a clean seed")));
    assert_eq!(runs[0], runs[1]);
}

#[test]
fn every_fault_of_the_list_has_a_place_and_the_simulated_ones_strike() {
    for (place, fault) in FAULTS.iter().enumerate() {
        assert_eq!(usize::from(fault.number), place + 1);
        let strikes = Profile::Fault(fault.number).plan(1).strikes.len();
        assert_eq!(strikes > 0, matches!(fault.how, How::Simulated(..)), "fault {}", fault.number);
    }
}
