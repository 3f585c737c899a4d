//! Step 6: what was found and done.

use jiff::Timestamp;
use kube::{Resource, ResourceExt, runtime::events::EventType};

use super::{
    super::{
        Context, Error,
        conditions::{Truth, Verdict, merged},
        status::{announce, write_status},
    },
    apply::Outcome,
    observe::{BackupFacts, Observed},
    plan::{self, Plan},
};
use crate::api::v1alpha1::{
    BackupMention, BackupPhase, ConditionType, MessageQueueBackupSchedule, MessageQueueBackupScheduleStatus, Reason,
    VerificationResult, VerificationStatus,
};

/// Writes the status if it changed.
pub async fn report(
    ctx: &Context,
    schedule: &MessageQueueBackupSchedule,
    observed: &Observed,
    plan: &Plan,
    outcome: &Outcome,
    now: Timestamp,
) -> Result<(), Error> {
    let reference = schedule.object_ref(&());
    for (reason, message) in &outcome.done {
        let type_ = if *reason == Reason::BackupLeftOut { EventType::Warning } else { EventType::Normal };
        announce(ctx, &reference, type_, *reason, message).await;
    }
    let before = schedule.status.clone().unwrap_or_default();
    let after = next(schedule, observed, plan, outcome, now);
    if before == after {
        return Ok(());
    }
    write_status(ctx, schedule, &after).await
}

/// The status after this pass. Pure.
pub fn next(
    schedule: &MessageQueueBackupSchedule,
    observed: &Observed,
    plan: &Plan,
    outcome: &Outcome,
    now: Timestamp,
) -> MessageQueueBackupScheduleStatus {
    let mut status = schedule.status.clone().unwrap_or_default();
    status.observed_generation = schedule.metadata.generation;
    if let (true, Some(time)) = (outcome.acted, plan.acted_on) {
        status.last_schedule_time = Some(time.to_string());
    }
    status.next_schedule_time = plan.next_due.map(|time| time.to_string());
    let ended = |phase| observed.backups.iter().filter(move |backup| backup.phase == phase);
    let newest = |phase| {
        let when = |backup: &super::observe::BackupFacts| backup.completed.or(backup.created);
        let found = ended(phase).filter_map(|b| Some((when(b)?, b))).max_by_key(|(at, b)| (*at, b.name.clone()));
        found.map(|(at, backup)| (BackupMention { name: backup.name.clone(), at: at.to_string() }, at, &backup.message))
    };
    let (completed, failed) = (newest(BackupPhase::Completed), newest(BackupPhase::Failed));
    let failed = failed.filter(|(_, at, _)| completed.as_ref().is_none_or(|(_, good, _)| at > good));
    status.kept = ended(BackupPhase::Completed).count() as i32;
    status.active = plan::active(observed);
    let health = match (&completed, &failed) {
        (_, Some((last, _, why))) => {
            Verdict::new(Truth::False, Reason::BackupFailed, format!("{} failed: {why}", last.name))
        }
        (Some((last, ..)), None) => {
            Verdict::new(Truth::True, Reason::BackupCompleted, format!("{} completed at {}", last.name, last.at))
        }
        (None, None) => Verdict::new(Truth::Unknown, Reason::Pending, "no backup has ended yet"),
    };
    status.last_completed = completed.map(|(mention, ..)| mention);
    status.last_failed = failed.map(|(mention, ..)| mention);
    let mut verdicts =
        vec![(ConditionType::Ready, ready(schedule, plan, outcome)), (ConditionType::BackupHealthy, health)];
    let verified = plan::last_verified(observed);
    status.last_verified = verified.and_then(|backup| {
        let at = backup.verification.as_ref()?.ended_at.clone()?;
        Some(BackupMention { name: backup.name.clone(), at })
    });
    verdicts.extend(proven(schedule, observed).map(|verdict| (ConditionType::BackupVerified, verdict)));
    if let Some(problem) = plan.problem.as_ref().filter(|problem| problem.reason == Reason::InvalidSpec) {
        let stalled = Verdict::new(Truth::True, problem.reason, problem.message.clone());
        verdicts.push((ConditionType::Stalled, stalled));
    }
    status.conditions = merged(&status.conditions, verdicts, schedule.metadata.generation, now);
    status
}

/// None while nothing is to be proven.
fn proven(schedule: &MessageQueueBackupSchedule, observed: &Observed) -> Option<Verdict> {
    let ended = |backup: &BackupFacts| {
        let verification = backup.verification.clone().filter(|v| v.result != VerificationResult::Running)?;
        Some((verification.ended_at.clone(), backup.name.clone(), verification))
    };
    let last = observed.backups.iter().filter_map(ended).max_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    match last {
        None if schedule.spec.verification.is_none() => None,
        None => Some(Verdict::new(Truth::Unknown, Reason::Pending, "no backup has been restored to prove it yet")),
        Some((_, name, VerificationStatus { result: VerificationResult::Verified, messages, seconds, .. })) => {
            let (messages, seconds) = (messages.unwrap_or_default(), seconds.unwrap_or_default());
            let message = format!("{name}: {messages} messages were restored in {seconds} s and are as they were");
            Some(Verdict::new(Truth::True, Reason::Verified, message))
        }
        Some((_, name, VerificationStatus { result, message, .. })) => {
            let reason = match result {
                VerificationResult::Damaged => Reason::BackupDamaged,
                _ => Reason::VerificationFailed,
            };
            Some(Verdict::new(Truth::False, reason, format!("{name}: {}", message.unwrap_or_default())))
        }
    }
}

fn ready(schedule: &MessageQueueBackupSchedule, plan: &Plan, outcome: &Outcome) -> Verdict {
    if let Some(problem) = &plan.problem {
        return Verdict::new(Truth::False, problem.reason, problem.message.clone());
    }
    if let Some(failure) = &outcome.failure {
        return Verdict::new(Truth::False, Reason::ApplyFailed, failure.to_string());
    }
    if schedule.spec.suspend {
        return Verdict::new(Truth::True, Reason::Suspended, "suspend is true: nothing is begun and nothing removed");
    }
    let next = plan.next_due.map_or_else(|| "never".into(), |time| time.to_string());
    Verdict::new(Truth::True, Reason::Scheduled, format!("{}: the next backup is due at {next}", schedule.name_any()))
}
