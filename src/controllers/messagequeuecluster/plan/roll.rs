//! Whose template is written, and whose pod goes, now.
//!
//! A template is written only when its member's turn comes, so a pod that is re-created meanwhile comes back as it was:
//! a template that is no good must not reach a second member. Turns: a member that does not exist; one that cannot run as
//! its present template has it, which is how a broken rollout heals; then one healthy member at a time, the one that
//! leads the metadata last.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;

use super::super::{
    observe::{MemberFacts, Observed},
    validate::ValidatedCluster,
};
use crate::{api::v1alpha1::Names, broker_admin::MemberState};

/// A member that has had no pod for so long will get none from the template that its StatefulSet has: something refuses
/// the pod. The StatefulSet controller needs a second.
const PODLESS: Duration = Duration::from_secs(30);

/// A pod that is to go. `remove` asks again before it does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    pub member: u32,
    pub pod: String,
    pub uid: String,
    pub cause: String,
    /// It cannot run as its template has it, so while that is so nobody needs to be asked.
    pub broken: bool,
}

/// What this pass does about templates and pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roll {
    pub write: BTreeSet<u32>,
    pub removal: Option<Removal>,
    /// Members that are not yet what the spec asks for.
    pub outdated: BTreeSet<u32>,
    /// Why the next member's turn has not come, if it has not.
    pub held: Option<String>,
}

/// One member, and what it is to be rendered from.
struct Turn<'a> {
    number: u32,
    member: &'a MemberFacts,
    set_differs: bool,
    pod_differs: bool,
    /// It cannot run as its present template has it.
    broken: bool,
}

/// Pure.
pub fn roll(cluster: &ValidatedCluster, observed: &Observed, leaf: &str, now: Timestamp) -> Roll {
    let absent = MemberFacts::default();
    let replicas = i32::from(!cluster.hibernate);
    let turns: Vec<Turn<'_>> = cluster
        .members
        .iter()
        .map(|number| {
            turn(*number, observed.members.get(number).unwrap_or(&absent), cluster.inputs(*number, leaf), now)
        })
        .collect();
    let mut roll = Roll::default();
    for turn in &turns {
        let set = turn.member.stateful_set.as_ref();
        // A pod that is as it should be under a set that is not: what was written on the set was lost.
        let unlabelled = turn.set_differs && turn.member.pod.is_some() && !turn.pod_differs;
        if set.is_none_or(|s| s.replicas != replicas) || !turn.member.has_config || unlabelled {
            roll.write.insert(turn.number);
        }
        if turn.set_differs || turn.pod_differs {
            roll.outdated.insert(turn.number);
        }
    }
    if cluster.hibernate {
        return roll;
    }
    if nobody_is_up(&turns) {
        roll.write.extend(turns.iter().filter(|t| t.set_differs && t.broken).map(|t| t.number));
    }
    let Some(next) = next_turn(cluster, observed, &turns) else { return roll };
    let broken = next.broken && !spoiled_others(&turns, next.number);
    let why = (!broken).then(|| others_unfit(&cluster.names, &cluster.members, observed, next.number)).flatten();
    let name = cluster.names.pod(next.number);
    if let Some(why) = why {
        roll.held = Some(format!("{name} waits for its turn: {why}"));
        return roll;
    }
    if next.set_differs {
        roll.write.insert(next.number);
    }
    let (number, cause) = (next.number, "its template changed".to_owned());
    roll.removal = next.member.pod.as_ref().filter(|_| next.pod_differs).map(|pod| Removal {
        member: number,
        pod: pod.name.clone(),
        uid: pod.uid.clone(),
        cause,
        broken,
    });
    roll
}

fn turn(number: u32, member: &MemberFacts, inputs: String, now: Timestamp) -> Turn<'_> {
    let podless = member.podless_since.is_some_and(|since| now.duration_since(since).unsigned_abs() >= PODLESS);
    Turn {
        number,
        member,
        set_differs: member.stateful_set.as_ref().is_none_or(|s| s.inputs.as_deref() != Some(&inputs)),
        pod_differs: member.pod.as_ref().is_some_and(|p| p.inputs.as_deref() != Some(&inputs)),
        broken: match &member.pod {
            Some(pod) => pod.cannot_run(now),
            None => podless,
        },
    }
}

/// Broken ones first, the metadata's leader last. One whose pod is on its way, or on its way out, is waited for.
fn next_turn<'a>(cluster: &ValidatedCluster, observed: &Observed, turns: &'a [Turn<'a>]) -> Option<&'a Turn<'a>> {
    let leader = observed.spokesman().and_then(|(_, h)| h.metadata_leader.clone());
    let due = |turn: &&Turn<'_>| match &turn.member.pod {
        Some(pod) => turn.pod_differs && !pod.going,
        None => turn.set_differs && turn.broken && turn.member.stateful_set.is_some(),
    };
    turns
        .iter()
        .filter(due)
        .min_by_key(|t| (!t.broken, leader.as_deref() == Some(&cluster.names.pod(t.number)), t.number))
}

fn nobody_is_up(turns: &[Turn<'_>]) -> bool {
    turns.iter().all(|t| t.member.health().is_none() && t.member.pod.as_ref().is_none_or(|p| !p.running))
}

/// Does another member fail on the template that `member` would get? If so, it must not spread: the ordinary turn, which
/// waits for all others, is what is left. Where nobody is up, only a template that itself fails is a reason.
fn spoiled_others(turns: &[Turn<'_>], member: u32) -> bool {
    let nobody_is_up = nobody_is_up(turns);
    turns.iter().filter(|t| t.number != member && !t.pod_differs).filter_map(|t| Some((t, t.member.pod.as_ref()?))).any(
        |(turn, pod)| match nobody_is_up {
            true => pod.template_fails(),
            false => turn.member.health().is_none(),
        },
    )
}

/// Why `member` must not be taken away now: the others could not do without it. None when they can.
///
/// It fails closed: a broker that does not answer is a reason.
pub fn others_unfit(names: &Names, members: &[u32], observed: &Observed, member: u32) -> Option<String> {
    let is_blank =
        |m: &MemberFacts| m.health().is_some_and(|h| h.cluster_id.is_none() && h.state == MemberState::Blank);
    let all_blank = members.iter().all(|n| observed.members.get(n).is_some_and(is_blank));
    if all_blank {
        return None;
    }
    let absent = MemberFacts::default();
    for number in members.iter().filter(|n| **n != member) {
        let other = observed.members.get(number).unwrap_or(&absent);
        let name = names.pod(*number);
        if !other.is_ready() {
            return Some(match &other.answer {
                Some(Err(error)) => error.to_string(),
                _ => format!("{name} is not ready"),
            });
        }
        let Some(health) = other.health() else { return Some(format!("{name} does not answer")) };
        if !health.quorum {
            return Some(format!("{name} is not in touch with a majority"));
        }
        let groups = health.groups;
        let unfit = groups.without_leader + groups.lagging + groups.under_replicated + groups.quarantined;
        if unfit > 0 {
            return Some(format!("replicas on {name} are still catching up ({unfit} groups)"));
        }
    }
    None
}
