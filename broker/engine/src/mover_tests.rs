use holdfast_journal::GroupKey;
use holdfast_queue::meta::Target;
use holdfast_replica::{PeerStatus, Role};

use super::*;

/// `3` is a founder on member 3, `3.2` the second replica that was given out, on member 3.
fn replica(text: &str) -> ReplicaId {
    let (member, generation) = text.split_once('.').unwrap_or((text, "0"));
    ReplicaId { member: MemberId(member.parse().unwrap()), generation: generation.parse().unwrap() }
}

fn replicas(text: &str) -> Vec<ReplicaId> {
    let mut all: Vec<ReplicaId> = text.split_whitespace().map(replica).collect();
    all.sort_unstable();
    all
}

/// A group as its leader sees it. Replicas in `behind` lack much, members in `down` do not answer.
#[derive(Clone, Default)]
struct Case {
    voters: &'static str,
    learners: &'static str,
    joint: bool,
    /// The group has changed since the metadata recorded it.
    news: bool,
    /// That change is not known to be committed on the leader's disk.
    volatile: bool,
    wanted: &'static str,
    wanted_learners: &'static str,
    behind: &'static str,
    down: &'static [u64],
    leader: u64,
}

fn step_of(case: &Case) -> Step {
    let (voters, learners, behind) = (replicas(case.voters), replicas(case.learners), replicas(case.behind));
    let live = |member: MemberId| !case.down.contains(&member.0);
    let peer = |replica: &ReplicaId| PeerStatus {
        replica: *replica,
        voter: voters.contains(replica),
        matched: 5_000,
        lag: if behind.contains(replica) { 4_000 } else { 3 },
        live: live(replica.member),
        snapshot: false,
        snapshot_percent: None,
    };
    let target = Target {
        voters: replicas(case.wanted),
        learners: replicas(case.wanted_learners),
        preferred_leader: replicas(case.wanted)[0].member,
        ..Target::default()
    };
    let info =
        GroupInfo { voters: voters.clone(), learners: learners.clone(), changed_at: 7, target, ..GroupInfo::default() };
    let status = GroupStatus {
        key: GroupKey::default(),
        generation: Some(0),
        role: Role::Leader,
        term: 1,
        leader: Some(MemberId(case.leader)),
        me_leading: true,
        commit: 5_003,
        applied: 5_003,
        last: 5_003,
        compacted: 0,
        checkpoint: 0,
        log_bytes: 0,
        peers: voters.iter().chain(&learners).map(peer).collect(),
        voters,
        learners,
        joint: case.joint,
        changed_at: 7 + u64::from(case.news),
        change_durable: !case.volatile,
        quiesced: false,
        quarantined: None,
    };
    next_step(MemberId(case.leader), &info, &status, &live)
}

fn swap(promote: &str, demote: &str, remove: &str) -> Step {
    let (promote, demote, remove) = (replicas(promote), replicas(demote), replicas(remove));
    Step::Change(MembershipChange::Swap { promote, demote, remove })
}

fn add(text: &str) -> Step {
    Step::Change(MembershipChange::AddLearner(replica(text)))
}

fn promote(text: &str) -> Step {
    Step::Change(MembershipChange::Promote(replica(text)))
}

fn gone(text: &str) -> Step {
    remove(replica(text))
}

fn waits(words: &str, step: &Step) -> bool {
    matches!(step, Step::Wait(why) | Step::Held(why) if why.contains(words))
}

/// Once it is recorded, whoever was let go is destroyed; a leader that forgot the change would need its vote.
#[test]
fn a_change_is_recorded_once_the_leaders_disk_knows_it_and_not_before() {
    let news = Case { voters: "1", wanted: "1", leader: 1, news: true, ..Case::default() };
    assert_eq!(step_of(&news), Step::Record);
    assert!(waits("disks", &step_of(&Case { volatile: true, ..news })));
}

#[test]
#[rustfmt::skip]
fn each_step_follows_from_what_there_is_and_what_there_should_be() {
    let base = Case { voters: "1 2 3", wanted: "1 2 3", leader: 1, ..Case::default() };
    let to_four = Case { wanted: "1 2 4.1", ..base.clone() };
    let with_learner = Case { learners: "4.1", ..to_four.clone() };
    let transfer = |to| Step::Transfer(MemberId(to));
    let cases = [
        ("nothing to do", base.clone(), Step::Settled),
        ("a newcomer learns first", to_four.clone(), add("4.1")),
        ("once it has everything it takes the place of the one that goes", with_learner.clone(), swap("4.1", "", "3")),
        ("a joint membership is left before anything else", Case { joint: true, ..with_learner.clone() }, Step::Change(MembershipChange::LeaveJoint)),
        ("one that should follow only is demoted in the same change", Case { wanted_learners: "3", ..with_learner.clone() }, swap("4.1", "3", "")),
        ("a group that shrinks loses one at a time", Case { wanted: "1", ..base.clone() }, gone("2")),
        ("the dead go first", Case { wanted: "1", down: &[3], ..base.clone() }, gone("3")),
        ("a group that grows gains one at a time", Case { wanted: "1 2 3 4.1 5.2", learners: "4.1 5.2", behind: "4.1", ..base.clone() }, promote("5.2")),
        ("a learner that nobody wants goes", Case { learners: "5.1", ..base.clone() }, gone("5.1")),
        ("a learner that is wanted comes", Case { wanted_learners: "5.1", ..base.clone() }, add("5.1")),
        ("a voter that should follow only", Case { wanted: "1 2", wanted_learners: "3", ..base.clone() }, swap("", "3", "")),
        ("the damaged replica goes before its successor comes", Case { wanted: "1 2 3.1", ..base.clone() }, gone("3")),
        ("a second damaged one waits for the successor of the first", Case { voters: "1 3", learners: "2.1", behind: "2.1", wanted: "1 2.1 3.2", ..base.clone() }, Step::Wait("replica 2.1 is catching up: 4000 entries to go".into())),
        ("then the successor comes", Case { voters: "1 2", wanted: "1 2 3.1", ..base.clone() }, add("3.1")),
        ("a leader that must go hands over", Case { voters: "1 2 4.1", wanted: "2 4.1", leader: 1, ..base.clone() }, transfer(2)),
        ("a leader that is the last to stay promotes its heir first", Case { voters: "1", learners: "4.1", wanted: "4.1", ..base.clone() }, promote("4.1")),
        ("and hands over to it", Case { voters: "1 4.1", wanted: "4.1", ..base.clone() }, transfer(4)),
        ("another is exchanged before the leader", Case { voters: "1 2 3", learners: "4.1", wanted: "2 4.1 5.2", down: &[5], ..base.clone() }, swap("4.1", "", "3")),
        ("of two newcomers the one that answers comes", Case { wanted: "1 4.1 5.2", down: &[4], ..base.clone() }, add("5.2")),
    ];
    for (what, case, expected) in cases {
        assert_eq!(step_of(&case), expected, "{what}");
    }
    assert!(waits("catching up: 4000", &step_of(&Case { behind: "4.1", ..with_learner.clone() })));
    assert!(waits("does not answer", &step_of(&Case { down: &[4], ..to_four })));
    assert!(waits("does not answer", &step_of(&Case { down: &[4], ..with_learner })));
    let nobody = Case { voters: "1 2", wanted: "2", down: &[2], ..base };
    assert!(waits("no voter that stays answers", &step_of(&nobody)));
}

/// Takes every step at once, as if all replicas were quick, until nothing is left to do.
fn play(case: &Case) -> usize {
    let (mut voters, mut learners) = (replicas(case.voters), replicas(case.learners));
    let (mut outgoing, mut leader, mut joint) = (Vec::new(), case.leader, false);
    let drop_from = |list: &mut Vec<ReplicaId>, out: &[ReplicaId]| list.retain(|replica| !out.contains(replica));
    for steps in 0..60 {
        let text = |list: &[ReplicaId]| {
            let words: Vec<String> = list.iter().map(ReplicaId::to_string).collect();
            &*Box::leak(words.join(" ").into_boxed_str())
        };
        let now = Case { voters: text(&voters), learners: text(&learners), joint, leader, ..case.clone() };
        match step_of(&now) {
            Step::Settled => {
                assert_eq!((voters, learners), (replicas(case.wanted), replicas(case.wanted_learners)));
                return steps;
            }
            Step::Transfer(to) => leader = to.0,
            Step::Change(change) => match change {
                MembershipChange::AddLearner(replica) => {
                    assert!(voters.iter().chain(&learners).all(|there| there.member != replica.member));
                    learners.push(replica);
                }
                MembershipChange::Promote(replica) => {
                    drop_from(&mut learners, &[replica]);
                    voters.push(replica);
                }
                MembershipChange::Remove(replica) => {
                    drop_from(&mut voters, &[replica]);
                    drop_from(&mut learners, &[replica]);
                }
                MembershipChange::Swap { promote, demote, remove } => {
                    assert!(promote.len() <= 1 && demote.len() + remove.len() == 1);
                    drop_from(&mut learners, &promote);
                    voters.extend(promote);
                    learners.extend(&demote);
                    outgoing = [demote, remove].concat();
                    joint = true;
                }
                MembershipChange::LeaveJoint => {
                    drop_from(&mut voters, &outgoing);
                    joint = false;
                }
            },
            other => panic!("{other:?}"),
        }
        voters.sort_unstable();
        learners.sort_unstable();
        assert!(voters.iter().any(|voter| voter.member.0 == leader), "the leader votes at every moment");
    }
    panic!("not settled after 60 steps");
}

#[test]
fn every_move_ends_where_it_should_whoever_leads() {
    let moves = [
        ("1 2 3", "", "4.1 5.2 6.3", ""),
        ("1 2 3", "", "1.4 2.5 3.6", ""),
        ("1 2 3 4 5", "", "2", "1 3"),
        ("1", "2.1 3.2", "1 2.1 3.2 4.3 5.4", "6.5"),
        ("1 2 3", "7.1", "1 3 4.2", "2"),
        ("1 2", "", "3.1", ""),
    ];
    for (voters, learners, wanted, wanted_learners) in moves {
        for leader in replicas(voters).iter().map(|voter| voter.member.0) {
            let steps = play(&Case { voters, learners, wanted, wanted_learners, leader, ..Case::default() });
            assert!(steps > 0, "{voters} to {wanted}");
        }
    }
}
