//! Whose template is written, and whose pod goes.

use super::*;

#[test]
fn a_roll_takes_one_healthy_member_at_a_time_and_the_metadata_leader_last() {
    let (mqc, mut observed) = changed();
    let first = decide(&mqc, &observed);
    assert_eq!(first.removal.as_ref().map(|r| r.member), Some(1), "demo-0-0 leads the metadata");
    assert_eq!(first.write, BTreeSet::from([1]), "templates of others are not written before their turn");
    assert_eq!(first.outdated.len(), 3);
    for done in [1, 2] {
        let inputs = Some(cluster(&mqc, &observed).inputs(done, "leaf-1"));
        pod(&mut observed, done).inputs = inputs.clone();
        member(&mut observed, done).stateful_set.as_mut().expect("a set").inputs = inputs;
    }
    assert_eq!(decide(&mqc, &observed).removal.map(|r| r.member), Some(0));
}

#[test]
fn a_roll_waits_for_whatever_makes_another_member_indispensable() {
    type Spoil = fn(&mut Observed);
    let table: [(&str, Spoil); 7] = [
        ("not ready", |o| pod(o, 2).ready = false),
        ("going away", |o| pod(o, 2).going = true),
        ("silent", |o| member(o, 2).answer = Some(Err(silence(2)))),
        ("out of touch", |o| health(o, 2).quorum = false),
        ("behind", |o| health(o, 2).groups.lagging = 1),
        ("under-replicated", |o| health(o, 0).groups.under_replicated = 1),
        ("leaderless", |o| health(o, 0).groups.without_leader = 1),
    ];
    for (what, spoil) in table {
        let (mqc, mut observed) = changed();
        spoil(&mut observed);
        let plan = decide(&mqc, &observed);
        assert!(plan.removal.is_none() && plan.write.is_empty() && plan.held.len() == 1, "{what}: {plan:?}");
    }
}

#[test]
fn members_that_run_no_broker_are_repaired_without_asking_anybody() {
    let (mqc, mut observed) = changed();
    for n in 0..3 {
        member(&mut observed, n).answer = None;
        let pod = pod(&mut observed, n);
        (pod.running, pod.ready) = (false, false);
        pod.waiting = Some(("ImagePullBackOff".into(), "no such image".into()));
    }
    let plan = decide(&mqc, &observed);
    assert_eq!(plan.write, BTreeSet::from([0, 1, 2]));
    assert_eq!(plan.removal.map(|r| r.member), Some(0), "still one at a time");
}

#[test]
fn the_replica_count_and_storage_are_no_reason_to_restart() {
    let observed = seen(&founded(), started);
    let mut mqc = founded();
    mqc.spec.storage.size = "20Gi".into();
    mqc.spec.health.interval_seconds = 9;
    let plan = decide(&mqc, &observed);
    assert!(plan.outdated.is_empty() && plan.removal.is_none());
    assert_eq!(plan.grow, BTreeSet::from([0, 1, 2]));
    mqc.spec.hibernate = true;
    let plan = decide(&mqc, &observed);
    assert_eq!((plan.write.len(), plan.removal), (3, None), "scaled to zero, not removed one by one");
}

/// The roll has reached demo-1, which fails on the new template, and something happens to demo-2, which is on the old one.
fn spoiled() -> (MessageQueueCluster, Observed) {
    let (mqc, mut observed) = changed();
    let inputs = Some(cluster(&mqc, &observed).inputs(1, "leaf-1"));
    member(&mut observed, 1).stateful_set.as_mut().expect("a set").inputs = inputs.clone();
    member(&mut observed, 1).answer = None;
    let spoiled = pod(&mut observed, 1);
    (spoiled.inputs, spoiled.running, spoiled.ready) = (inputs, false, false);
    spoiled.waiting = Some(("CrashLoopBackOff".into(), "back-off".into()));
    (mqc, observed)
}

fn stopped(observed: &mut Observed, number: u32, reason: Option<&str>) {
    member(observed, number).answer = None;
    let pod = pod(observed, number);
    (pod.running, pod.ready) = (false, false);
    pod.waiting = reason.map(|reason| (reason.into(), String::new()));
}

#[test]
fn a_template_that_is_no_good_does_not_reach_a_second_member_whatever_happens_to_it() {
    type Strike = fn(&mut Observed);
    let table: [(&str, Strike); 6] = [
        ("restarts", |o| stopped(o, 2, None)),
        ("is being created", |o| stopped(o, 2, Some("ContainerCreating"))),
        ("crashes", |o| stopped(o, 2, Some("CrashLoopBackOff"))),
        ("finds no node", |o| {
            stopped(o, 2, None);
            pod(o, 2).unschedulable = Some("0/3 nodes".into());
        }),
        ("was evicted", |o| (member(o, 2).pod, member(o, 2).answer) = (None, None)),
        ("has had no pod for long", |o| {
            (member(o, 2).pod, member(o, 2).answer) = (None, None);
            member(o, 2).podless_since = Some(now() - jiff::SignedDuration::from_secs(600));
        }),
    ];
    for (what, strike) in table {
        let (mqc, mut observed) = spoiled();
        strike(&mut observed);
        let plan = decide(&mqc, &observed);
        assert!(plan.write.is_empty() && plan.removal.is_none(), "demo-2 {what}: {plan:?}");
    }
}

#[test]
fn a_member_that_merely_restarts_keeps_its_template_and_its_pod() {
    let (mqc, mut observed) = changed();
    stopped(&mut observed, 2, None);
    let plan = decide(&mqc, &observed);
    assert!(plan.write.is_empty() && plan.removal.is_none() && plan.held.len() == 1, "{plan:?}");
}

#[test]
fn a_broken_rollout_is_repaired_by_the_next_template_without_asking_the_broken_member() {
    let (mut mqc, observed) = spoiled();
    mqc.spec.image = Some("b:3".into());
    let plan = decide(&mqc, &observed);
    assert_eq!(plan.write, BTreeSet::from([1]));
    assert!(plan.removal.is_some_and(|r| r.member == 1 && r.broken));
}

#[test]
fn a_set_that_is_refused_its_pod_gets_the_corrected_template() {
    let (mqc, mut observed) = changed();
    (member(&mut observed, 2).pod, member(&mut observed, 2).answer) = (None, None);
    for (seconds, write) in [(29, vec![]), (30, vec![2])] {
        member(&mut observed, 2).podless_since = Some(now() - jiff::SignedDuration::from_secs(seconds));
        let plan = decide(&mqc, &observed);
        assert_eq!((plan.write.into_iter().collect::<Vec<_>>(), plan.removal), (write, None), "{seconds} s");
    }
}

#[test]
fn a_pod_that_lacks_what_its_template_names_is_made_anew_after_a_minute() {
    let (mqc, mut observed) = changed();
    for n in 0..3 {
        stopped(&mut observed, n, Some("ContainerCreating"));
        pod(&mut observed, n).created = Some(now() - jiff::SignedDuration::from_secs(59));
    }
    assert!(decide(&mqc, &observed).removal.is_none());
    for n in 0..3 {
        pod(&mut observed, n).created = Some(now() - jiff::SignedDuration::from_secs(60));
    }
    assert_eq!(decide(&mqc, &observed).removal.map(|r| r.member), Some(0));
}

#[test]
fn a_note_that_was_lost_from_a_set_is_written_again_and_restarts_nothing() {
    let mqc = founded();
    let mut observed = seen(&mqc, started);
    member(&mut observed, 1).stateful_set.as_mut().expect("a set").inputs = None;
    let plan = decide(&mqc, &observed);
    assert_eq!((plan.write, plan.removal), (BTreeSet::from([1]), None));
}
