//! Bugs that the simulator found, each by its name, in the smallest world that shows it.

use holdfast_sim::client::Role;
use holdfast_sim::plan::Profile;
use holdfast_sim::rng::Rng;
use holdfast_sim::run::{Run, found};
use holdfast_sim::world::{Event, MEMBERS, World};

/// Metadata that was a little behind after a restart showed a queue whose replicas were destroyed already: its chosen
/// leader led the first term of the same group again, with another log.
#[test]
fn a_deleted_queue_is_not_born_again_when_its_members_restart() {
    let seed = 1;
    let mut rng = Rng::new(seed);
    let mut world = World::new(&mut rng, &Profile::Mixed.plan(seed), None).expect("blank disks");
    found(&mut world).expect("a cluster");
    for _ in 0..3 {
        world.add_client("churn", Role::Churner { same_name: false });
    }
    for _ in 0..15 {
        let until = world.now_us + rng.range(300_000, 900_000);
        run_until(&mut world, until, seed);
        for member in 0..MEMBERS {
            world.crash(member, false);
            let at = world.now_us + rng.range(20_000, 1_500_000);
            world.schedule(at, Event::Restart { member });
        }
        let until = world.now_us + 4_000_000;
        run_until(&mut world, until, seed);
    }
}

fn run_until(world: &mut World, until_us: u64, seed: u64) {
    loop {
        match world.step(until_us) {
            Ok(true) => {}
            Ok(false) => return,
            Err(what) => panic!("seed {seed}: {what}"),
        }
    }
}

/// A member that stood still for 30 s took the entry that declared its run over as part of a Raft snapshot, which brings no
/// notice of what is in it: it went on in a run that nobody gave a lease, and served nothing of what it came to lead.
#[test]
fn a_run_that_was_declared_over_within_a_snapshot_begins_anew() {
    let run = Run::new(Profile::Fault(7), 2);
    if let Err(failure) = run.play(None) {
        panic!("{}\n{}", failure.what, failure.trace.join("\n"));
    }
}

/// A group shrank from two replicas to one. The metadata recorded it, so the other was destroyed; but the one that stayed had
/// not written that the change was committed, came back from a failed sync without knowing it, and needed the other's vote.
#[test]
fn a_replica_that_is_left_alone_knows_it_after_a_restart() {
    let run = Run::new(Profile::Mixed, 61);
    if let Err(failure) = run.play(None) {
        panic!("{}\n{}", failure.what, failure.trace.join("\n"));
    }
}

/// A follower's disk stood still while clients came and declared their queue again: what its member could not apply, it got
/// no lease for, and its publishers waited for the disk. (8, 23: it had led group 0, and answered no heartbeat of the new
/// leader before its disk had the new term, so that one sent it nothing more.)
#[test]
fn publishers_at_a_member_whose_disk_stands_still_do_not_notice() {
    for seed in [8, 23, 25, 26] {
        let run = Run::new(Profile::Fault(23), seed);
        if let Err(failure) = run.play(None) {
            panic!("{}\n{}", failure.what, failure.trace.join("\n"));
        }
    }
}

/// A link that stood and carried nothing was used until it broke, although a third member reached both ends.
#[test]
fn a_link_that_carries_nothing_costs_its_ends_less_than_three_seconds() {
    let run = Run::new(Profile::Fault(11), 9);
    if let Err(failure) = run.play(None) {
        panic!("{}\n{}", failure.what, failure.trace.join("\n"));
    }
}

/// A member that was asked to end, or whose run was over, closed the connection of a client that had closed it already, and
/// sent its close-ok besides: the client took what it had acknowledged for durable, which it was not.
#[test]
fn a_client_whose_connection_is_closed_while_it_closes_is_not_told_that_all_is_durable() {
    let run = Run::new(Profile::Fault(28), 12);
    if let Err(failure) = run.play(None) {
        panic!("{}\n{}", failure.what, failure.trace.join("\n"));
    }
}

/// A member stood still for so long that its run was declared over, and what its consumers held went to others. When it
/// went on, it read deliveries that had been on their way to it since before, and handed them to its clients.
#[test]
fn a_member_that_stood_still_until_its_run_was_over_delivers_nothing_that_went_to_others() {
    for seed in 1..=3 {
        let mut rng = Rng::new(seed);
        let mut world = World::new(&mut rng, &Profile::Small.plan(seed), None).expect("blank disks");
        found(&mut world).expect("a cluster");
        for _ in 0..2 {
            world.add_client("orders", Role::Producer { total: u64::MAX, eagerness: 80, confirms: 100 });
        }
        for _ in 0..4 {
            world.add_client("orders", Role::Consumer { prefetch: 40 });
        }
        for member in 0..MEMBERS {
            let until = world.now_us + rng.range(1_000_000, 2_000_000);
            run_until(&mut world, until, seed);
            world.pause(member, 12_000_000);
            let until = world.now_us + 15_000_000;
            run_until(&mut world, until, seed);
        }
    }
}

/// The answer to a get came while its home had no fresh lease, and was dropped. What others published to the same group was
/// confirmed all the time, so the home never found an answer overdue, and the client waited for ever.
#[test]
fn a_get_whose_answer_was_not_taken_in_is_answered_while_others_publish() {
    let run = Run::new(Profile::Mixed, 1088);
    if let Err(failure) = run.play(None) {
        panic!("{}\n{}", failure.what, failure.trace.join("\n"));
    }
}

/// A member came to lead in its new run, and another one heard that through a third before it heard of the new run: it took the
/// leadership for one of the last run, campaigned against a leader that lived, without end, and did not rest with the others.
#[test]
fn a_leader_that_was_heard_before_its_new_run_was_known_is_followed() {
    holdfast_sim::membership::run_policies_seed(1059, None).expect("it settles");
}

/// A publish was refused for want of copies, and its channel closed, while the client's own close of the connection was on its
/// way. The client ignored the one and read the answer to the other as a promise for all that it had published.
#[test]
fn a_close_that_crosses_a_refused_publish_promises_nothing() {
    let run = Run::new(Profile::Mixed, 3884);
    if let Err(failure) = run.play(None) {
        panic!("{}\n{}", failure.what, failure.trace.join("\n"));
    }
}
