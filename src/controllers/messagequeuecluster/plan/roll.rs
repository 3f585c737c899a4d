//! Whose template is written, and whose pod goes, now.
//!
//! A template is written only when its member's turn comes, so a pod that is re-created meanwhile comes back as it was.
//! Turns: a member that does not exist; one that runs no broker (nobody can lose anything, and it is how a broken
//! rollout heals); then one healthy member at a time, the one that leads the metadata last.

use std::collections::BTreeSet;

use super::super::{
    observe::{MemberFacts, Observed},
    validate::ValidatedCluster,
};
use crate::{api::v1alpha1::Names, broker_admin::MemberState};

/// A pod that is to go. `remove` asks again before it does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    pub member: u32,
    pub pod: String,
    pub uid: String,
    pub cause: String,
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

/// Pure.
pub fn roll(cluster: &ValidatedCluster, observed: &Observed, leaf: &str) -> Roll {
    let absent = MemberFacts::default();
    let facts = |n: &u32| observed.members.get(n).unwrap_or(&absent);
    let replicas = i32::from(!cluster.hibernate);
    let mut roll = Roll::default();
    for number in &cluster.members {
        let member = facts(number);
        let inputs = cluster.inputs(*number, leaf);
        let set_differs = member.stateful_set.as_ref().is_none_or(|s| s.inputs.as_deref() != Some(&inputs));
        let pod_differs = member.pod.as_ref().is_some_and(|p| p.inputs.as_deref() != Some(&inputs));
        let broken = member.pod.as_ref().is_none_or(|p| !p.running);
        if member.stateful_set.as_ref().is_none_or(|s| s.replicas != replicas)
            || !member.has_config
            || (set_differs && broken)
        {
            roll.write.insert(*number);
        }
        if set_differs || pod_differs {
            roll.outdated.insert(*number);
        }
    }
    if cluster.hibernate {
        return roll;
    }
    let Some(number) = next_turn(cluster, observed, &roll.outdated) else { return roll };
    let Some(pod) = facts(&number).pod.as_ref().filter(|p| !p.going) else { return roll };
    match pod.running.then(|| others_unfit(&cluster.names, &cluster.members, observed, number)).flatten() {
        Some(why) => roll.held = Some(format!("{} waits for its turn: {why}", pod.name)),
        None => {
            roll.write.insert(number);
            roll.removal = Some(Removal {
                member: number,
                pod: pod.name.clone(),
                uid: pod.uid.clone(),
                cause: "its template changed".into(),
            });
        }
    }
    roll
}

/// Broken ones first, the metadata's leader last.
fn next_turn(cluster: &ValidatedCluster, observed: &Observed, outdated: &BTreeSet<u32>) -> Option<u32> {
    let leader = observed.spokesman().and_then(|(_, h)| h.metadata_leader.clone());
    outdated
        .iter()
        .filter(|n| observed.members.get(n).is_some_and(|m| m.pod.is_some()))
        .min_by_key(|n| {
            let runs = observed.members.get(n).and_then(|m| m.pod.as_ref()).is_some_and(|p| p.running);
            (runs, leader.as_deref() == Some(&cluster.names.pod(**n)), **n)
        })
        .copied()
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
