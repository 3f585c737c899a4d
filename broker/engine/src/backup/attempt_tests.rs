use super::*;
use holdfast_queue::ids::Incarnation;

const MEMBERS: [MemberId; 3] = [MemberId(1), MemberId(2), MemberId(3)];

/// A cluster as answers show it: who leads each group, in which term, at which index, and whether that is proven.
struct Shown {
    groups: BTreeSet<GroupId>,
    led: BTreeMap<GroupId, (MemberId, u64, u64, bool)>,
    applied: u64,
}

impl Shown {
    fn new(groups: u64) -> Self {
        let led = (0..=groups).map(|group| (GroupId(group), (MEMBERS[(group % 3) as usize], 4, 100 + group, true)));
        Self { groups: (1..=groups).map(GroupId).collect(), led: led.collect(), applied: 100 }
    }

    fn set(&mut self, group: u64, member: u64, term: u64, index: u64, proven: bool) {
        self.led.insert(GroupId(group), (MemberId(member), term, index, proven));
    }

    fn next(&self, attempt: &mut Attempt, now_ms: u64) -> Step {
        let live = MEMBERS.into_iter().collect();
        let view = View { groups: &self.groups, applied: self.applied, live: &live };
        attempt.next(Instant(now_ms * 1000), &view)
    }

    fn answer(&self, attempt: &mut Attempt, round: u32) {
        for member in MEMBERS {
            self.answer_of(attempt, member, round);
        }
    }

    fn answer_of(&self, attempt: &mut Attempt, member: MemberId, round: u32) {
        let led =
            self.led.iter().filter(|(_, (leader, ..))| *leader == member).map(|(group, (_, term, index, proven))| {
                let place = Place { group: *group, incarnation: Incarnation::default(), term: *term, index: *index };
                Led { place, proven: *proven }
            });
        attempt.answered(member, round, led.collect(), self.groups.iter().copied().collect());
    }
}

fn begun(allow_partial: bool) -> Attempt {
    Attempt::new(7, allow_partial, Instant(0))
}

fn asks(round: u32, gate: bool) -> Step {
    Step::Ask { round, gate }
}

fn indexes(step: &Step) -> Vec<(u64, u64)> {
    let Step::Cut { places, .. } = step else { panic!("{step:?} instead of a cut") };
    places.iter().map(|place| (place.group.0, place.index)).collect()
}

#[test]
fn the_gate_closes_once_all_groups_are_proven_and_two_equal_rounds_behind_it_make_the_cut() {
    let (cluster, mut attempt) = (Shown::new(2), begun(false));
    assert_eq!(cluster.next(&mut attempt, 0), asks(1, false));
    assert_eq!(cluster.next(&mut attempt, 1), Step::Wait);
    cluster.answer(&mut attempt, 1);
    assert_eq!(cluster.next(&mut attempt, 2), asks(2, true));
    cluster.answer(&mut attempt, 2);
    assert_eq!(cluster.next(&mut attempt, 3), asks(3, true), "the places must be confirmed after all were taken");
    cluster.answer_of(&mut attempt, MEMBERS[0], 3);
    assert_eq!(cluster.next(&mut attempt, 4), Step::Wait, "not by all yet");
    cluster.answer_of(&mut attempt, MEMBERS[1], 3);
    cluster.answer_of(&mut attempt, MEMBERS[2], 3);
    let cut = cluster.next(&mut attempt, 5);
    assert_eq!(indexes(&cut), [(0, 100), (1, 101), (2, 102)]);
    assert!(matches!(cut, Step::Cut { pause, .. } if pause == Duration::from_millis(3)));
}

#[test]
fn answers_of_an_earlier_round_confirm_nothing() {
    let (cluster, mut attempt) = (Shown::new(2), begun(false));
    cluster.next(&mut attempt, 0);
    cluster.answer(&mut attempt, 1);
    cluster.next(&mut attempt, 2);
    cluster.answer(&mut attempt, 2);
    assert_eq!(cluster.next(&mut attempt, 3), asks(3, true));
    cluster.answer(&mut attempt, 2);
    assert_eq!(cluster.next(&mut attempt, 4), Step::Wait);
}

#[test]
fn a_leader_that_changes_behind_the_gate_gives_another_place_which_is_confirmed_anew() {
    let (mut cluster, mut attempt) = (Shown::new(2), begun(false));
    cluster.next(&mut attempt, 0);
    cluster.answer(&mut attempt, 1);
    cluster.next(&mut attempt, 2);
    cluster.answer(&mut attempt, 2);
    assert_eq!(cluster.next(&mut attempt, 3), asks(3, true));
    cluster.set(1, 3, 5, 109, true);
    cluster.answer(&mut attempt, 3);
    assert_eq!(cluster.next(&mut attempt, 4), asks(4, true), "its places differ from those of the round before");
    cluster.answer(&mut attempt, 4);
    assert_eq!(indexes(&cluster.next(&mut attempt, 5)), [(0, 100), (1, 109), (2, 102)]);
}

#[test]
fn of_two_leaders_the_one_of_the_later_term_counts_and_one_that_is_not_proven_counts_for_nothing() {
    let (mut cluster, mut attempt) = (Shown::new(1), begun(false));
    cluster.next(&mut attempt, 0);
    cluster.answer(&mut attempt, 1);
    cluster.next(&mut attempt, 2);
    for round in 2..5 {
        cluster.set(1, 2, 4, 101, true);
        cluster.answer(&mut attempt, round);
        cluster.set(1, 3, 5, 90, false);
        cluster.answer_of(&mut attempt, MemberId(3), round);
        assert!(matches!(cluster.next(&mut attempt, 2 + u64::from(round) * 100), Step::Ask { gate: true, .. }));
    }
}

#[test]
fn a_group_without_a_quorum_fails_the_barrier_by_name_before_anybody_was_held_up_unless_it_may_be_left_out() {
    for allow_partial in [false, true] {
        let (mut cluster, mut attempt) = (Shown::new(2), begun(allow_partial));
        cluster.set(1, 2, 4, 101, false);
        let mut asked = Vec::new();
        for now in 0..5_000 {
            match cluster.next(&mut attempt, now) {
                Step::Wait => {}
                Step::Ask { round, gate } => {
                    assert!(!gate);
                    asked.push(now);
                    cluster.answer(&mut attempt, round);
                }
                other => panic!("{other:?} after {now} ms"),
            }
        }
        assert!(asked.len() >= 40, "a group that sleeps must be asked again: {asked:?}");
        let end = cluster.next(&mut attempt, 5_000);
        if !allow_partial {
            assert!(matches!(end, Step::GiveUp { groups, .. } if groups == [GroupId(1)]));
            continue;
        }
        let Step::Ask { round, gate: true } = end else { panic!("{end:?}") };
        cluster.answer(&mut attempt, round);
        cluster.next(&mut attempt, 5_001);
        cluster.answer(&mut attempt, round + 1);
        assert_eq!(indexes(&cluster.next(&mut attempt, 5_002)), [(0, 100), (2, 102)]);
        assert_eq!(attempt.missing, BTreeSet::from([GroupId(1)]));
    }
}

#[test]
fn without_the_metadata_there_is_no_partial_barrier() {
    let (mut cluster, mut attempt) = (Shown::new(2), begun(true));
    cluster.set(0, 1, 4, 100, false);
    cluster.next(&mut attempt, 0);
    cluster.answer(&mut attempt, 1);
    assert!(matches!(cluster.next(&mut attempt, 5_000), Step::GiveUp { groups, .. } if groups == [GroupId(0)]));
}

#[test]
fn places_that_are_not_confirmed_within_three_seconds_of_the_gate_are_given_up() {
    let (mut cluster, mut attempt) = (Shown::new(2), begun(false));
    cluster.next(&mut attempt, 0);
    cluster.answer(&mut attempt, 1);
    assert_eq!(cluster.next(&mut attempt, 10), asks(2, true));
    cluster.set(2, 3, 4, 102, false);
    for now in 11..3_010 {
        if let Step::Ask { round, .. } = cluster.next(&mut attempt, now) {
            cluster.answer(&mut attempt, round);
        }
    }
    assert!(matches!(cluster.next(&mut attempt, 3_010), Step::GiveUp { groups, .. } if groups == [GroupId(2)]));
}

#[test]
fn a_group_that_was_deleted_since_the_place_of_the_metadata_is_not_waited_for_and_a_new_one_is_left_out() {
    let (mut cluster, mut attempt) = (Shown::new(3), begun(false));
    cluster.next(&mut attempt, 0);
    cluster.answer(&mut attempt, 1);
    cluster.next(&mut attempt, 2);
    let listed = cluster.groups.clone();
    cluster.led.remove(&GroupId(3));
    cluster.set(9, 1, 1, 2, true);
    cluster.answer(&mut attempt, 2);
    assert_eq!(cluster.next(&mut attempt, 3), Step::Wait, "as far as is known here it is still to come");
    cluster.groups.remove(&GroupId(3));
    cluster.applied = 99;
    assert_eq!(cluster.next(&mut attempt, 4), Step::Wait, "these metadata are older than their place");
    cluster.applied = 101;
    assert_eq!(cluster.next(&mut attempt, 5), asks(3, true));
    let metadata_now = std::mem::replace(&mut cluster.groups, listed);
    cluster.answer(&mut attempt, 3);
    cluster.groups = metadata_now;
    assert_eq!(indexes(&cluster.next(&mut attempt, 6)), [(0, 100), (1, 101), (2, 102)]);
}
