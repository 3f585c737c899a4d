//! Steps 2 and 3: what the next step of a backup is. Pure; every decision about a backup is taken here.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;

use super::observe::{ClassFacts, ClusterFacts, Observed, SnapshotFacts};
use crate::{
    api::v1alpha1::{BackupPhase, HoldUntil, MessageQueueBackup, MessageQueueBackupStatus, Reason, SnapshotStatus},
    controllers::messagequeuecluster::validate::Blocker,
};

/// Between passes while brokers hold files: they are let go within a second of the last cut.
const HOLDING: Duration = Duration::from_millis(500);
/// Between passes otherwise.
const SOON: Duration = Duration::from_secs(2);
/// Something that a backup needs may come a little after it, out of the same Git commit; after this it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The brokers let files go by themselves after this, should nobody tell them. Each pass asks for as long again.
pub const HOLD: Duration = Duration::from_secs(60);
/// The first time they hold them for longer: until they have read all of them, for the manifest, nobody can renew anything.
pub const FIRST_HOLD: Duration = Duration::from_secs(900);
/// A driver's error may pass by itself; after this the try has failed.
const DRIVER_PATIENCE: Duration = Duration::from_secs(60);

/// What this pass does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub step: Step,
    pub next: Duration,
}

/// One step of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing can be begun yet.
    Wait(Blocker),
    /// The try is written down, with those who will hear of it.
    Begin {
        attempt: i32,
        asked: Vec<String>,
    },
    /// The brokers draw the line.
    DrawLine,
    /// Holds are renewed, and after that snapshots that are not there are asked for.
    Cut {
        create: Vec<SnapshotStatus>,
    },
    /// Every snapshot is cut. If each hold can still be renewed, it lived when they were.
    Prove,
    /// Members that still hold files are told that they need not.
    Release,
    /// The storage is still at it.
    Await(Blocker),
    Complete,
    /// This try has come to nothing: it is cleaned up, and begun anew if `again`.
    Abandon {
        why: Blocker,
        again: bool,
    },
}

/// Decides.
pub fn plan(backup: &MessageQueueBackup, observed: &Observed, now: Timestamp) -> Plan {
    let status = backup.status_or_default();
    let template = &backup.spec.template;
    let late = now.duration_since(backup.begun(now)).unsigned_abs() >= template.deadline();
    let (step, next) = match status.phase {
        BackupPhase::Pending => pending(backup, &status, observed, now),
        _ if late => (Step::Abandon { why: too_late(backup, &status), again: false }, SOON),
        BackupPhase::Barrier => (Step::DrawLine, HOLDING),
        BackupPhase::Cutting => cutting(backup, &status, observed, now),
        BackupPhase::Finishing => finishing(&status, observed),
        BackupPhase::Completed | BackupPhase::Failed => (Step::Complete, SOON),
    };
    Plan { step, next }
}

/// The step after a failure of a try: as often as `retries` says.
pub fn abandon(backup: &MessageQueueBackup, why: Blocker) -> Step {
    let again = backup.status_or_default().attempt <= backup.spec.template.retries;
    Step::Abandon { why, again }
}

fn pending(
    backup: &MessageQueueBackup,
    status: &MessageQueueBackupStatus,
    observed: &Observed,
    now: Timestamp,
) -> (Step, Duration) {
    let asked_for = backup.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let waited = now.duration_since(asked_for).unsigned_abs();
    match (missing(backup, observed), &observed.cluster) {
        (Some(why), _) if waited >= backup.spec.template.deadline() => (Step::Abandon { why, again: false }, SOON),
        (Some(why), _) if is_ours_to_give_up(why.reason) && waited >= PATIENCE => {
            (Step::Abandon { why, again: false }, SOON)
        }
        (None, Some(cluster)) => {
            let asked = cluster.brokers.keys().cloned().collect();
            (Step::Begin { attempt: status.attempt + 1, asked }, Duration::ZERO)
        }
        (why, _) => (Step::Wait(why.unwrap_or_else(|| no_cluster(backup))), SOON),
    }
}

/// What does not come by waiting, as a rule. A cluster without a majority, or another backup, is waited for until the deadline.
fn is_ours_to_give_up(reason: Reason) -> bool {
    matches!(reason, Reason::ClusterMissing | Reason::SnapshotsNotInstalled | Reason::SnapshotClassMissing)
}

fn no_cluster(backup: &MessageQueueBackup) -> Blocker {
    let message = format!("there is no MessageQueueCluster {} in this namespace: create it", backup.spec.cluster.name);
    Blocker { reason: Reason::ClusterMissing, message }
}

fn missing(backup: &MessageQueueBackup, observed: &Observed) -> Option<Blocker> {
    let blocker = |reason, message: String| Some(Blocker { reason, message });
    let Some(cluster) = &observed.cluster else { return Some(no_cluster(backup)) };
    match (observed.class, &backup.spec.template.volume_snapshot.class_name) {
        (ClassFacts::NoKind, _) => {
            return blocker(
                Reason::SnapshotsNotInstalled,
                "the API server knows no VolumeSnapshots: install the snapshot CRDs and the snapshot-controller".into(),
            );
        }
        (ClassFacts::Missing, Some(name)) => {
            let message = format!(
                "there is no VolumeSnapshotClass {name}: create it, or name another one in volumeSnapshot.className"
            );
            return blocker(Reason::SnapshotClassMissing, message);
        }
        (ClassFacts::NoDefault | ClassFacts::Missing, _) => {
            let message = "no VolumeSnapshotClass is the default (annotation snapshot.storage.kubernetes.io/is-default-class): name one in volumeSnapshot.className";
            return blocker(Reason::SnapshotClassMissing, message.into());
        }
        (ClassFacts::Found, _) => {}
    }
    if cluster.paused {
        return blocker(Reason::Paused, "the cluster is paused: set its spec.paused to false".into());
    }
    if let Some(other) = &observed.goes_first {
        return blocker(Reason::OtherBackup, format!("{other}, of the same cluster, goes first"));
    }
    if cluster.spokesman().is_none() {
        return blocker(Reason::QuorumLost, "no broker says that a majority is in touch".into());
    }
    None
}

fn too_late(backup: &MessageQueueBackup, status: &MessageQueueBackupStatus) -> Blocker {
    let slow: Vec<String> = status.snapshots.iter().filter(|s| !s.ready_to_use).map(state_of).collect();
    let what = if slow.is_empty() { "the brokers did not draw the line".into() } else { slow.join("; ") };
    let message = format!("not complete after {} s: {what}", backup.spec.template.deadline().as_secs());
    Blocker { reason: Reason::DeadlineExceeded, message }
}

fn state_of(snapshot: &SnapshotStatus) -> String {
    let so_far = match (&snapshot.error, &snapshot.creation_time) {
        (Some(error), _) => format!("the storage says: {error}"),
        (None, None) => "the storage has not cut it; see the logs of the CSI driver and of csi-snapshotter".into(),
        (None, Some(at)) => format!("cut at {at}, and not ready to use yet"),
    };
    format!("VolumeSnapshot {} of {}: {so_far}", snapshot.name, snapshot.member)
}

fn cutting(
    backup: &MessageQueueBackup,
    status: &MessageQueueBackupStatus,
    observed: &Observed,
    now: Timestamp,
) -> (Step, Duration) {
    let found = |snapshot: &SnapshotStatus| observed.snapshots.get(&snapshot.name);
    if let Some(gone) = status.snapshots.iter().find(|s| found(s).is_some_and(|facts| facts.going)) {
        let message = format!("VolumeSnapshot {} was deleted while it was made", gone.name);
        return (abandon(backup, Blocker { reason: Reason::SnapshotFailed, message }), SOON);
    }
    let failed = |snapshot: &&SnapshotStatus| {
        found(snapshot).is_some_and(|facts| {
            let age = facts.created.map_or(Duration::ZERO, |at| now.duration_since(at).unsigned_abs());
            facts.error.is_some() && age >= DRIVER_PATIENCE
        })
    };
    if let Some(failed) = status.snapshots.iter().find(failed) {
        let error = found(failed).and_then(|facts| facts.error.clone());
        let message = state_of(&SnapshotStatus { error, ..failed.clone() });
        return (abandon(backup, Blocker { reason: Reason::SnapshotFailed, message }), SOON);
    }
    let create: Vec<SnapshotStatus> = status.snapshots.iter().filter(|s| found(s).is_none()).cloned().collect();
    let is_cut = |facts: &SnapshotFacts| match backup.spec.template.volume_snapshot.hold_until {
        HoldUntil::Cut => facts.creation_time.is_some() || facts.ready_to_use,
        HoldUntil::ReadyToUse => facts.ready_to_use,
    };
    if create.is_empty() && status.snapshots.iter().all(|s| found(s).is_some_and(is_cut)) {
        return (Step::Prove, Duration::ZERO);
    }
    (Step::Cut { create }, HOLDING)
}

fn finishing(status: &MessageQueueBackupStatus, observed: &Observed) -> (Step, Duration) {
    if status.barrier.as_ref().is_some_and(|barrier| barrier.released_at.is_none()) {
        return (Step::Release, HOLDING);
    }
    let waiting = |snapshot: &&SnapshotStatus| observed.snapshots.get(&snapshot.name).is_none_or(|f| !f.ready_to_use);
    match status.snapshots.iter().find(waiting) {
        None => (Step::Complete, SOON),
        Some(snapshot) => match observed.snapshots.get(&snapshot.name).filter(|facts| !facts.going) {
            Some(_) => (Step::Await(Blocker { reason: Reason::SnapshotsFinishing, message: state_of(snapshot) }), SOON),
            None => {
                let message = format!("VolumeSnapshot {} was deleted before it was ready to use", snapshot.name);
                (Step::Abandon { why: Blocker { reason: Reason::SnapshotFailed, message }, again: false }, SOON)
            }
        },
    }
}

/// The snapshots that a line needs.
pub fn snapshots(
    backup: &MessageQueueBackup,
    cluster: &ClusterFacts,
    members: &BTreeSet<String>,
) -> Vec<SnapshotStatus> {
    let attempt = backup.status_or_default().attempt;
    let snapshot = |member: &String| SnapshotStatus {
        name: backup.snapshot_name(attempt, member),
        member: member.clone(),
        zone: cluster.brokers.get(member).and_then(|broker| broker.zone.clone()),
        ..SnapshotStatus::default()
    };
    members.iter().map(snapshot).collect()
}
