//! Whose the disks are, and whether anything is founded.

use super::*;
use crate::api::v1alpha1::MemberStatus;

#[test]
fn founding_goes_through_the_latch_in_this_order() {
    let new = mqc(json!({}), json!({}));
    // Not every member answers.
    let mut observed = unrecorded(seen(&new, blank));
    member(&mut observed, 2).answer = Some(Err(silence(2)));
    assert!(matches!(decide(&new, &observed).latch, Latch::Wait(why) if why.contains("demo-2-0")));
    // All do, and nothing is known: write it down, ask nobody.
    let observed = unrecorded(seen(&new, blank));
    let founder = Founder { member: "demo-0-0".into(), uuid: "disk-0".into() };
    let record = Latch::Record { cluster_id: FRESH.into(), founder: Some(founder), adopted: false };
    assert_eq!(decide(&new, &observed).latch, record);
    // Written on the volumes only, as after a crash: the same id again, no fresh one.
    let observed = seen(&new, blank);
    assert!(matches!(decide(&new, &observed).latch, Latch::Record { cluster_id, .. } if cluster_id == ID));
    // Written everywhere: ask the founder.
    let mqc = founded();
    assert_eq!(decide(&mqc, &seen(&mqc, blank)).latch, Latch::Found { cluster_id: ID.into(), member: 0 });
}

#[test]
fn a_known_cluster_with_blank_disks_is_lost_and_never_founded_again() {
    let mqc = founded();
    let other_disks = |n| Health { member_uuid: format!("another-{n}"), ..blank(n) };
    assert!(matches!(decide(&mqc, &seen(&mqc, other_disks)).latch, Latch::DataLost(_)));
    // A majority suffices.
    let mut observed = seen(&mqc, other_disks);
    member(&mut observed, 2).answer = Some(Err(silence(2)));
    assert!(matches!(decide(&mqc, &observed).latch, Latch::DataLost(_)));
    // Also when the third disk remembers: it has no majority.
    let mut observed = seen(&mqc, other_disks);
    *health(&mut observed, 2) = Health { quorum: false, ..started(2) };
    assert!(matches!(decide(&mqc, &observed).latch, Latch::DataLost(_)));
    // One blank disk of three is a member to join, not a loss.
    let mut observed = seen(&mqc, started);
    *health(&mut observed, 2) = other_disks(2);
    assert!(matches!(decide(&mqc, &observed).latch, Latch::Founded { .. }));
    // Members that merely do not answer are no loss either.
    let mut observed = seen(&mqc, started);
    for n in 0..3 {
        member(&mut observed, n).answer = Some(Err(silence(n)));
    }
    assert!(matches!(decide(&mqc, &observed).latch, Latch::Wait(_)));
}

#[test]
fn disks_of_an_earlier_object_are_adopted_and_foreign_ones_refused() {
    let applied_again = mqc(json!({}), json!({}));
    let latch = decide(&applied_again, &unrecorded(seen(&applied_again, started))).latch;
    assert_eq!(latch, Latch::Record { cluster_id: ID.into(), founder: None, adopted: true });

    let mqc = founded();
    let mut observed = seen(&mqc, started);
    health(&mut observed, 1).cluster_id = Some("stranger".into());
    assert!(matches!(decide(&mqc, &observed).latch, Latch::Foreign(why) if why.contains("stranger")));
}

/// A founded cluster of `joined` members that is being scaled to `wanted`: the new ones run and are blank.
fn scaling(joined: u32, wanted: u32) -> (MessageQueueCluster, Observed) {
    let mut mqc = founded();
    mqc.spec.members = wanted as i32;
    let mut observed = seen(&mqc, started);
    let third = observed.members[&2].clone();
    observed.members.retain(|n, _| *n < joined);
    for number in joined..wanted {
        let mut new = third.clone();
        let volume = new.volume.as_mut().expect("a volume");
        (volume.member_uuid, volume.founder) = (None, None);
        new.answer = Some(Ok(blank(number)));
        observed.members.insert(number, new);
    }
    for health in observed.members.values_mut().filter_map(|m| m.answer.as_mut()?.as_mut().ok()) {
        health.members.truncate(joined as usize);
    }
    (mqc, observed)
}

#[test]
fn members_that_are_being_added_are_no_loss_while_the_others_are_silent_or_without_a_majority() {
    for (joined, wanted) in [(1, 2), (1, 3), (2, 5), (3, 7), (3, 9)] {
        let (mqc, mut observed) = scaling(joined, wanted);
        assert!(matches!(decide(&mqc, &observed).latch, Latch::Founded { .. }), "{joined} to {wanted}");
        for n in 0..joined {
            health(&mut observed, n).quorum = false;
        }
        assert!(matches!(decide(&mqc, &observed).latch, Latch::Founded { .. }), "{joined} to {wanted}, no majority");
        for n in 0..joined {
            member(&mut observed, n).answer = Some(Err(silence(n)));
        }
        assert!(matches!(decide(&mqc, &observed).latch, Latch::Wait(_)), "{joined} to {wanted}, silent");
    }
}

#[test]
fn a_disk_that_was_replaced_while_scaling_up_is_still_a_loss() {
    let (mqc, mut observed) = scaling(1, 3);
    *health(&mut observed, 0) = Health { member_uuid: "another".into(), ..blank(0) };
    assert!(matches!(decide(&mqc, &observed).latch, Latch::DataLost(why) if why.contains("demo-0-0 are blank")));
    // Also where the volume, and what was written on it, went with the disk: the status knows.
    let mut remembered = mqc.clone();
    let status = remembered.status.as_mut().expect("a status");
    status.founder = None;
    status.members = vec![MemberStatus { name: "demo-0-0".into(), uuid: Some("disk-0".into()), ..Default::default() }];
    observed.members.values_mut().for_each(|m| m.volume.as_mut().expect("a volume").member_uuid = None);
    assert!(matches!(decide(&remembered, &observed).latch, Latch::DataLost(_)));
}

#[test]
fn nobody_is_told_to_delete_volumes_while_one_may_hold_the_messages() {
    let mqc = founded();
    let other_disks = |n| Health { member_uuid: format!("another-{n}"), ..blank(n) };
    let said = |observed: &Observed| match decide(&mqc, observed).latch {
        Latch::DataLost(why) => why,
        other => panic!("{other:?}"),
    };
    let mut observed = seen(&mqc, other_disks);
    assert!(said(&observed).contains("delete this object and its volumes"));
    member(&mut observed, 2).answer = Some(Err(silence(2)));
    let why = said(&observed);
    assert!(why.contains("Delete nothing: demo-2-0 may still have them"), "{why}");
    member(&mut observed, 2).answer = Some(Ok(Health { quorum: false, ..started(2) }));
    let why = said(&observed);
    assert!(why.contains("Delete nothing: demo-2-0 still has"), "{why}");
}

#[test]
fn a_new_object_waits_until_the_volumes_of_a_deleted_one_are_gone() {
    let new = mqc(json!({}), json!({}));
    let mut observed = unrecorded(seen(&new, started));
    observed.leftovers = vec!["PersistentVolumeClaim data-demo-0-0".into()];
    let plan = decide(&new, &observed);
    assert!(plan.hands_off && matches!(plan.latch, Latch::Wait(why) if why.contains("data-demo-0-0")));
    // A cluster that has its identity goes on, whatever is being deleted.
    let mqc = founded();
    let observed = Observed { leftovers: observed.leftovers, ..seen(&mqc, started) };
    assert!(matches!(decide(&mqc, &observed).latch, Latch::Founded { .. }));
}
