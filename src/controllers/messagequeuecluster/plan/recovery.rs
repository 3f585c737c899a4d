//! When the operator goes on without a majority, if the queues' policies let it (`ha-promote-on-failure: always`).
//!
//! A forced recovery begins a new life of the cluster from the disks that are left. It is safe only if the other disks
//! never run again. So the operator counts a disk as lost in one case alone: the member runs, answers, and its disk is
//! blank; the old one cannot come back under that name. A member that is silent, or whose pod is gone, may still have its
//! disk and be heard of again: then nothing is done, whatever a policy says.

use std::time::Duration;

use jiff::Timestamp;

use super::super::{
    observe::Observed,
    validate::{Blocker, ValidatedCluster},
};
use crate::broker_admin::MemberState;

/// What was held is looked at again after this: each look reads all that the disks hold.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// A recovery that is due, if the brokers' plan agrees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Members whose disks are left; none of them is in touch with a majority.
    pub intact: Vec<u32>,
    /// Names of the members whose disks are blank.
    pub lost: Vec<String>,
    /// Since when nobody has been in touch with a majority.
    pub since: Timestamp,
}

/// The recovery that is due now, or why the last look at one was in vain. Pure.
pub fn recovery(
    cluster: &ValidatedCluster,
    observed: &Observed,
    now: Timestamp,
) -> (Option<Recovery>, Option<Blocker>) {
    let due = due(cluster, observed, now);
    let held = observed.recovery_held.as_ref().filter(|(at, _)| now.duration_since(*at).unsigned_abs() < LOOK_AGAIN);
    match (due, held) {
        (Some(_), Some((_, why))) => (None, Some(why.clone())),
        (due, _) => (due, None),
    }
}

fn due(cluster: &ValidatedCluster, observed: &Observed, now: Timestamp) -> Option<Recovery> {
    if cluster.hibernate || cluster.frozen || cluster.paused {
        return None;
    }
    let since = observed.quorum_lost_since?;
    let patience = cluster.health.recover_after();
    let (intact, lost) = disks(cluster, observed)?;
    let waited = now.duration_since(since).unsigned_abs() >= patience;
    waited.then_some(Recovery { intact, lost, since })
}

/// Members with a disk of the cluster and without a majority, and members whose disks are blank: every member is one or
/// the other, and there is one of each; else none.
pub fn disks(cluster: &ValidatedCluster, observed: &Observed) -> Option<(Vec<u32>, Vec<String>)> {
    let (mut intact, mut lost) = (Vec::new(), Vec::new());
    for number in &cluster.members {
        let health = observed.members.get(number)?.health()?;
        match health.state {
            MemberState::Started if !health.quorum && health.cluster_id.is_some() => intact.push(*number),
            MemberState::Blank if health.cluster_id.is_none() => lost.push(cluster.names.pod(*number)),
            MemberState::Blank | MemberState::Joining | MemberState::Started => return None,
        }
    }
    (!intact.is_empty() && !lost.is_empty()).then_some((intact, lost))
}
