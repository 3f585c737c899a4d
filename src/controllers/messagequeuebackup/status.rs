//! Step 6: how far the backup is.

use jiff::Timestamp;
use kube::{Resource, runtime::events::EventType};

use super::{
    super::{
        Context, Error,
        conditions::{Truth, Verdict, merged},
        status::{announce, write_status},
    },
    apply::{Found, Outcome},
    observe::{ClusterFacts, Observed},
    plan::{self, Plan, Step},
};
use crate::{
    api::v1alpha1::{
        BackedUpCluster, BackupPhase, BackupTotals, BarrierStatus, ConditionType, MessageQueueBackup,
        MessageQueueBackupStatus, Reason, SnapshotStatus,
    },
    broker_admin::Barrier,
    controllers::messagequeuecluster::validate::Blocker,
};

/// Queues that are named in a status.
const MAX_LEFT_OUT: usize = 20;

/// Writes the status if it changed, and tells what matters as Events.
pub async fn report(
    ctx: &Context,
    backup: &MessageQueueBackup,
    observed: &Observed,
    plan: &Plan,
    outcome: &Outcome,
    now: Timestamp,
) -> Result<(), Error> {
    let before = backup.status_or_default();
    let after = next(backup, observed, plan, outcome, now);
    if before == after {
        return Ok(());
    }
    write_status(ctx, backup, &after).await?;
    let reference = backup.object_ref(&());
    if let Some(failure) = after.failures.first().filter(|_| before.failures.len() < after.failures.len()) {
        announce(ctx, &reference, EventType::Warning, Reason::BackupFailed, failure).await;
    }
    if after.phase == BackupPhase::Completed {
        let message = verdict(&after, plan).message;
        announce(ctx, &reference, EventType::Normal, Reason::BackupCompleted, &message).await;
    }
    Ok(())
}

/// The status after this pass. Pure.
pub fn next(
    backup: &MessageQueueBackup,
    observed: &Observed,
    plan: &Plan,
    outcome: &Outcome,
    now: Timestamp,
) -> MessageQueueBackupStatus {
    let mut status = backup.status_or_default();
    status.observed_generation = backup.metadata.generation;
    note_snapshots(&mut status, observed);
    match (&plan.step, &outcome.found) {
        (_, Found::Failed(why)) => note_failure(&mut status, &plan::abandon(backup, why.clone()), now),
        (step @ Step::Abandon { .. }, Found::CleanedUp) => note_failure(&mut status, step, now),
        (Step::Begin { attempt, asked }, _) => begin(&mut status, backup, observed, *attempt, asked, now),
        (_, Found::Line(line, snapshots)) => note_line(&mut status, line, snapshots),
        (_, Found::Proven) => status.phase = BackupPhase::Finishing,
        (Step::Release, Found::Released) => {
            if let Some(barrier) = &mut status.barrier {
                barrier.released_at = Some(now.to_string());
            }
        }
        (Step::Complete, _) => {
            status.phase = BackupPhase::Completed;
            status.completed_at = Some(now.to_string());
        }
        _ => {}
    }
    let mut verdict = verdict(&status, plan);
    if let Some(failure) = &outcome.failure {
        verdict = Verdict::new(Truth::False, Reason::ApplyFailed, failure.to_string());
    }
    let mut verdicts = vec![(ConditionType::Ready, verdict.clone())];
    match status.phase {
        BackupPhase::Completed => {}
        BackupPhase::Failed => verdicts.push((ConditionType::Stalled, Verdict { status: Truth::True, ..verdict })),
        _ => verdicts.push((ConditionType::Reconciling, Verdict { status: Truth::True, ..verdict })),
    }
    status.conditions = merged(&status.conditions, verdicts, backup.metadata.generation, now);
    status
}

fn begin(
    status: &mut MessageQueueBackupStatus,
    backup: &MessageQueueBackup,
    observed: &Observed,
    attempt: i32,
    asked: &[String],
    now: Timestamp,
) {
    status.phase = BackupPhase::Barrier;
    status.attempt = attempt;
    status.started_at.get_or_insert_with(|| now.to_string());
    status.barrier =
        Some(BarrierStatus { id: backup.barrier_id(attempt), asked: asked.to_vec(), ..BarrierStatus::default() });
    status.cluster = observed.cluster.as_ref().map(backed_up);
    (status.snapshots, status.totals, status.left_out) = (Vec::new(), None, Vec::new());
}

fn backed_up(cluster: &ClusterFacts) -> BackedUpCluster {
    BackedUpCluster {
        cluster_id: cluster.cluster_id.clone().unwrap_or_default(),
        members: cluster.members,
        storage_size: cluster.storage_size.clone(),
        storage_class_name: cluster.storage_class.clone(),
        image: cluster.image.clone(),
        replication_factor: cluster.replication_factor,
    }
}

fn note_line(status: &mut MessageQueueBackupStatus, line: &Barrier, snapshots: &[SnapshotStatus]) {
    status.phase = BackupPhase::Cutting;
    status.snapshots = snapshots.to_vec();
    let totals = line.totals;
    status.totals = Some(BackupTotals {
        queues: totals.queues as i64,
        messages: totals.messages as i64,
        bytes: totals.message_bytes as i64,
    });
    status.left_out = line.missing.iter().flat_map(|group| &group.queues).take(MAX_LEFT_OUT).cloned().collect();
    if let Some(barrier) = &mut status.barrier {
        barrier.at = Timestamp::from_millisecond(line.taken_at_ms as i64).ok().map(|at| at.to_string());
        barrier.pause_ms = Some(line.pause_ms as i64);
        barrier.manifest_sha256 = Some(line.manifest_sha256.clone());
    }
}

fn note_snapshots(status: &mut MessageQueueBackupStatus, observed: &Observed) {
    for snapshot in &mut status.snapshots {
        let Some(facts) = observed.snapshots.get(&snapshot.name) else { continue };
        snapshot.creation_time = facts.creation_time.clone();
        snapshot.ready_to_use = facts.ready_to_use;
        snapshot.restore_size = facts.restore_size.clone();
        snapshot.error = facts.error.clone();
    }
}

fn note_failure(status: &mut MessageQueueBackupStatus, step: &Step, now: Timestamp) {
    let Step::Abandon { why, again } = step else { return };
    let tried = status.attempt.max(1);
    status.failures.insert(0, format!("try {tried} at {now}: {}: {}", why.reason, why.message));
    status.phase = if *again { BackupPhase::Pending } else { BackupPhase::Failed };
    // They were deleted with the try.
    status.snapshots.clear();
}

fn verdict(status: &MessageQueueBackupStatus, plan: &Plan) -> Verdict {
    let no = |reason, message: String| Verdict::new(Truth::False, reason, message);
    match (status.phase, &plan.step) {
        (BackupPhase::Completed, _) => {
            let totals = status.totals.unwrap_or_default();
            let message = format!(
                "{} messages of {} queues are in {} snapshots{}",
                totals.messages,
                totals.queues,
                status.snapshots.len(),
                match status.left_out.len() {
                    0 => String::new(),
                    _ => format!("; left out, without a majority: {}", status.left_out.join(", ")),
                }
            );
            Verdict::new(Truth::True, Reason::BackupCompleted, message)
        }
        (BackupPhase::Failed, _) => no(Reason::BackupFailed, status.failures.first().cloned().unwrap_or_default()),
        (_, Step::Wait(Blocker { reason, message }) | Step::Await(Blocker { reason, message })) => {
            no(*reason, message.clone())
        }
        (BackupPhase::Pending, _) => {
            no(Reason::BackupRetried, status.failures.first().cloned().unwrap_or_else(|| "not begun yet".into()))
        }
        (BackupPhase::Barrier, _) => no(Reason::BackupBegun, "the brokers draw the line".into()),
        (BackupPhase::Cutting, _) => {
            let cut = status.snapshots.iter().filter(|s| s.creation_time.is_some()).count();
            no(Reason::SnapshotsCutting, format!("{cut} of {} snapshots are cut", status.snapshots.len()))
        }
        (BackupPhase::Finishing, _) => no(Reason::SnapshotsFinishing, "the storage finishes the snapshots".into()),
    }
}
