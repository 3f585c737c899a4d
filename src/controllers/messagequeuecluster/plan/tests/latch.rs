//! Whose the disks are, and whether anything is founded.

use super::*;

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
