//! What a plan says, by what the disks hold.

use super::*;

const META: Life = Life { counter: 0, nonce: 0 };
const FIRST: Life = Life { counter: 1, nonce: 7 };

fn replica(member: u64) -> Replica {
    Replica { member, generation: 0 }
}

fn voters(members: &[u64]) -> Vec<Replica> {
    members.iter().copied().map(replica).collect()
}

fn queue(id: u64, messages: u64) -> QueueSurvey {
    QueueSurvey { id, vhost: "/".into(), name: format!("q{id}"), messages, ..QueueSurvey::default() }
}

/// A copy of a queue's group, or of the metadata, which ends at (term, index).
fn copy(group: u64, (last_term, last_index): (u64, u64), memberships: &[&[&[u64]]]) -> CopySurvey {
    let halves = |halves: &&[&[u64]]| halves.iter().map(|half| voters(half)).collect();
    CopySurvey {
        group,
        life: if group == 0 { META } else { FIRST },
        last_term,
        last_index,
        commit: last_index,
        memberships: memberships.iter().map(halves).collect(),
        queues: if group == 0 { Vec::new() } else { vec![queue(group, last_index)] },
        ..CopySurvey::default()
    }
}

/// Three members, and group 1 with founders on all of them.
fn metadata() -> MetadataSurvey {
    let placed =
        |life, queues| PlacedGroup { life, voters: voters(&[1, 2, 3]), preferred_leader: 1, queues, changed_at: 0 };
    MetadataSurvey {
        members: (1..=3).map(|id| (id, (format!("m{id}"), format!("uuid-{id}")))).collect(),
        groups: BTreeMap::from([(0, placed(META, Vec::new())), (1, placed(FIRST, vec![queue(1, 0)]))]),
        last_member: 3,
        last_group: 1,
        last_queue: 1,
    }
}

/// A disk with metadata that ends at (1, 9), among three voters, and this copy.
fn disk(member: u64, copies: Vec<CopySurvey>) -> Survey {
    let mut copies = copies;
    copies.insert(0, copy(0, (1, 9), &[&[&[1, 2, 3]]]));
    Survey {
        uuid: format!("uuid-{member}"),
        cluster_id: "c".into(),
        epoch: 1,
        life: META,
        member,
        forgetful: false,
        copies,
        metadata: Some(metadata()),
    }
}

fn outcome(plan: &Plan) -> &Outcome {
    &plan.groups[1].outcome
}

#[test]
fn a_majority_of_every_group_needs_no_recovery_whichever_copy_is_longer() {
    let here = [disk(1, vec![copy(1, (2, 5), &[&[&[1, 2, 3]]])]), disk(3, vec![copy(1, (2, 8), &[&[&[1, 2, 3]]])])];
    let plan = plan(&here).unwrap();
    assert!(!plan.is_needed);
    assert_eq!((outcome(&plan), plan.groups[1].source), (&Outcome::Whole, 3));
    assert_eq!(plan.absent, ["m2"]);
}

#[test]
fn the_higher_term_outweighs_the_longer_log_and_of_equal_copies_the_preferred_leaders_is_taken() {
    let all: &[&[&[u64]]] = &[&[&[1, 2, 3]]];
    let here = [disk(1, vec![copy(1, (2, 50), all)]), disk(2, vec![copy(1, (3, 8), all)])];
    assert_eq!(plan(&here).unwrap().groups[1].source, 2);
    let equal = [disk(2, vec![copy(1, (3, 8), all)]), disk(1, vec![copy(1, (3, 8), all)])];
    assert_eq!(plan(&equal).unwrap().groups[1].source, 1);
}

#[test]
fn one_of_three_voters_cannot_say_what_the_others_confirmed_and_one_of_two_can() {
    let of_three = plan(&[disk(2, vec![copy(1, (2, 8), &[&[&[1, 2, 3]]])])]).unwrap();
    assert!(of_three.is_needed);
    assert_eq!((outcome(&of_three), &of_three.groups[1].absent), (&Outcome::Unknown, &voters(&[1, 3])));
    let of_two = plan(&[disk(2, vec![copy(1, (2, 8), &[&[&[1, 2]]])])]).unwrap();
    assert!(of_two.is_needed);
    assert_eq!(outcome(&of_two), &Outcome::Whole);
}

#[test]
fn a_membership_that_may_have_come_to_count_counts() {
    // The last change is in the log, and not known to be committed.
    let growing = plan(&[disk(1, vec![copy(1, (2, 8), &[&[&[1, 2]], &[&[1, 2, 3]]])])]).unwrap();
    assert_eq!(outcome(&growing), &Outcome::Unknown);
    // While it is joint every decision needs both halves, and in one of them nobody decides without member 1.
    let joint = plan(&[disk(1, vec![copy(1, (2, 8), &[&[&[2, 3, 4], &[1, 2]]])])]).unwrap();
    assert_eq!(outcome(&joint), &Outcome::Whole);
    // The metadata know of a later membership than the copy does.
    let mut later = disk(1, vec![copy(1, (2, 8), &[&[&[1, 2]]])]);
    later.metadata.as_mut().unwrap().groups.get_mut(&1).unwrap().changed_at = 20;
    assert_eq!(outcome(&plan(&[later]).unwrap()), &Outcome::Unknown);
}

#[test]
fn another_generation_of_a_members_replica_is_not_the_voter() {
    let seeded = CopySurvey { generation: 4, ..copy(1, (2, 8), &[&[&[1, 2]]]) };
    let plan = plan(&[disk(1, vec![seeded])]).unwrap();
    assert_eq!((outcome(&plan), plan.groups[1].source), (&Outcome::Unknown, 1));
}

#[test]
fn a_damaged_copy_is_not_used_and_what_it_knows_to_be_committed_is_named() {
    let damaged = CopySurvey { damage: Some("a bad block".into()), ..copy(1, (2, 30), &[]) };
    let here = [disk(1, vec![copy(1, (2, 8), &[&[&[1, 2, 3]]])]), disk(2, vec![damaged.clone()])];
    let behind = plan(&here).unwrap();
    assert!(behind.is_needed);
    assert_eq!((outcome(&behind), behind.groups[1].source), (&Outcome::Behind { committed: 30 }, 1));
    let alone = plan(&[disk(1, vec![damaged.clone()]), disk(2, vec![damaged])]).unwrap();
    assert_eq!((outcome(&alone), alone.groups[1].position), (&Outcome::NoCopy, None));
    assert_eq!(alone.recovery(5).groups[&GroupId(1)].index, 0, "it is born anew");
}

#[test]
fn a_group_that_no_founder_here_ever_made_is_not_lost_but_unborn() {
    let plan_of = |members: &[u64]| {
        let disks: Vec<Survey> = members.iter().map(|member| disk(*member, Vec::new())).collect();
        plan(&disks).unwrap()
    };
    assert_eq!((outcome(&plan_of(&[1, 2])), plan_of(&[1, 2]).is_needed), (&Outcome::Unborn, false));
    assert_eq!(outcome(&plan_of(&[1])), &Outcome::NoCopy);
    let mut forgetful = [disk(1, Vec::new()), disk(2, Vec::new())];
    forgetful.iter_mut().for_each(|disk| disk.forgetful = true);
    assert_eq!(outcome(&plan(&forgetful).unwrap()), &Outcome::NoCopy, "what is not there may have been");
}

#[test]
fn a_group_that_is_newer_than_the_metadata_is_adopted_and_one_that_was_deleted_is_not() {
    let mut here = disk(1, vec![copy(1, (2, 8), &[&[&[1]]]), copy(9, (2, 4), &[&[&[1]]])]);
    let newer = plan(std::slice::from_ref(&here)).unwrap();
    let adopted = newer.groups.iter().find(|group| group.group == 9).unwrap();
    assert_eq!((&adopted.adopted, &adopted.outcome), (&vec![queue(9, 4)], &Outcome::Unknown));
    assert_eq!(newer.recovery(5).last_group, GroupId(9), "no new group is numbered as it");
    here.metadata.as_mut().unwrap().last_group = 9;
    let deleted = plan(&[here]).unwrap();
    assert_eq!(deleted.groups[2].outcome, Outcome::Deleted);
    assert!(!deleted.recovery(5).groups.contains_key(&GroupId(9)));
}

#[test]
fn disks_that_do_not_belong_together_make_no_plan() {
    let all: &[&[&[u64]]] = &[&[&[1, 2, 3]]];
    let some = |member| disk(member, vec![copy(1, (2, 8), all)]);
    assert_eq!(plan(&[]), Err(PlanError::NoDisk));
    assert_eq!(plan(&[some(1), some(1)]), Err(PlanError::SameMember(1)));
    let other = Survey { cluster_id: "d".into(), ..some(2) };
    assert!(matches!(plan(&[some(1), other]), Err(PlanError::OtherCluster(..))));
    let elsewhere = Survey { life: Life { counter: 1, nonce: 3 }, ..some(2) };
    assert_eq!(plan(&[some(1), elsewhere]), Err(PlanError::TwoRecoveries(1, 2)));
    let mut blind = some(1);
    blind.copies[0].damage = Some("a bad block".into());
    assert!(matches!(plan(&[blind]), Err(PlanError::NoMetadata(why)) if why.contains("a bad block")));
}

#[test]
fn a_disk_of_an_earlier_epoch_counts_for_nothing_and_every_group_goes_on_in_a_higher_life() {
    let all: &[&[&[u64]]] = &[&[&[1, 2, 3]]];
    let mut stale = disk(2, vec![copy(1, (9, 99), all)]);
    let recovered = disk(1, vec![copy(1, (2, 8), all)]);
    let life = Life { counter: 1, nonce: 4 };
    let mut recovered = Survey { epoch: 2, life, ..recovered };
    recovered.copies[0].life = life;
    stale.epoch = 1;
    let plan = plan(&[recovered, stale]).unwrap();
    assert_eq!(plan.disks.iter().map(|disk| disk.role).collect::<Vec<_>>(), [Role::GoesOn, Role::Stale]);
    assert_eq!((outcome(&plan), plan.groups[1].source, plan.next_epoch()), (&Outcome::Unknown, 1, 3));
    for (group, before) in plan.groups.iter().zip([1, 1]) {
        let next = group.next_life(77);
        assert_eq!((next.counter, next.nonce), (before + 1, 77));
    }
    assert_eq!(plan.recovery(77).members, BTreeSet::from([MemberId(1)]));
}

/// The only disk left of three, and what the policy of its queue says.
fn lonely(on_failure: bool, on_shutdown: bool, copies: Vec<CopySurvey>) -> Plan {
    let mut survey = disk(1, copies);
    let queues = &mut survey.metadata.as_mut().unwrap().groups.get_mut(&1).unwrap().queues;
    (queues[0].promote_on_failure, queues[0].promote_on_shutdown) = (on_failure, on_shutdown);
    plan(&[survey]).unwrap()
}

#[test]
fn a_person_decides_unless_the_policies_of_all_queues_that_may_lose_something_say_always() {
    let left = || vec![copy(1, (2, 5), &[&[&[1, 2, 3]]])];
    assert!(lonely(false, true, left()).needs_a_person(false).unwrap().contains("ha-promote-on-failure: always"));
    assert!(lonely(true, false, left()).needs_a_person(true).unwrap().contains("ha-promote-on-shutdown: always"));
    assert_eq!(lonely(true, false, left()).needs_a_person(false), None, "the metadata go with their queues");
    assert_eq!(lonely(false, true, left()).needs_a_person(true), None);
    let nothing = lonely(true, true, Vec::new());
    assert_eq!(*outcome(&nothing), Outcome::NoCopy);
    assert!(nothing.needs_a_person(false).unwrap().contains("no copy is left"));
    // A queue that the metadata do not know has no policy that anybody knows.
    let newer = CopySurvey { queues: vec![queue(9, 3)], ..copy(7, (1, 4), &[&[&[1, 2, 3]]]) };
    let plan = lonely(true, true, vec![copy(1, (2, 5), &[&[&[1, 2, 3]]]), newer]);
    assert!(plan.needs_a_person(false).unwrap().contains("'q9'"));
    // Nothing can be lost of it: its policy is not asked.
    let whole = lonely(false, false, vec![copy(1, (2, 5), &[&[&[1, 2]]])]);
    assert_eq!((outcome(&whole), whole.needs_a_person(false)), (&Outcome::Whole, None));
}
