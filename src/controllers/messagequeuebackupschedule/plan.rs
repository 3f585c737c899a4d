//! Steps 2 and 3: which backup is due, and which are removed. Pure.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;

use super::{
    calendar::Calendar,
    observe::{BackupFacts, Observed},
    retention,
};
use crate::{
    api::v1alpha1::{BackupPhase, ConcurrencyPolicy, MessageQueueBackupSchedule, Reason, VerificationResult},
    controllers::messagequeuecluster::validate::Blocker,
};

/// The longest time between two passes: clocks may be set.
const LONGEST: Duration = Duration::from_secs(300);
/// While something is missing.
const SOON: Duration = Duration::from_secs(10);

/// What this pass does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Why no backup can be begun.
    pub problem: Option<Blocker>,
    /// The backup to make; making it twice makes one, since its name follows from its time.
    pub create: Option<String>,
    /// It is to be proven by restoring it.
    pub verify: bool,
    /// The time that is acted on, or left out.
    pub acted_on: Option<Timestamp>,
    /// A time that is left out, and the backup that is still at work.
    pub left_out: Option<(Timestamp, String)>,
    /// Backups to remove, and why.
    pub remove: Vec<(String, Removal)>,
    /// The next time that is due.
    pub next_due: Option<Timestamp>,
    pub next: Duration,
}

/// Why a backup is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// No rule of `retention` asks for it.
    Surplus,
    /// It failed, and there are newer ones that did.
    Failed,
    /// It is at work, and gives way to the next one.
    Replaced,
}

/// Decides.
pub fn plan(
    schedule: &MessageQueueBackupSchedule,
    calendar: Result<&Calendar, String>,
    observed: &Observed,
    now: Timestamp,
) -> Plan {
    let spec = &schedule.spec;
    let calendar = match calendar {
        Ok(calendar) => calendar,
        Err(message) => {
            let problem = Some(Blocker { reason: Reason::InvalidSpec, message });
            return Plan { problem, next: LONGEST, ..Plan::default() };
        }
    };
    let next_due = calendar.next(now);
    let mut plan = Plan { next_due, next: wait(next_due, now), ..Plan::default() };
    if spec.suspend {
        return Plan { next_due: None, next: LONGEST, ..plan };
    }
    plan.remove = surplus(schedule, calendar, observed, now);
    if next_due.is_none() {
        let message = format!("schedule: '{}' names a day that never comes", spec.schedule);
        plan.problem = Some(Blocker { reason: Reason::InvalidSpec, message });
    }
    if !observed.has_cluster {
        let message = format!("there is no MessageQueueCluster {} in this namespace: create it", spec.cluster.name);
        plan.problem = Some(Blocker { reason: Reason::ClusterMissing, message });
        plan.next = SOON;
        return plan;
    }
    let Some(due) = due(schedule, calendar, now) else { return plan };
    plan.acted_on = Some(due);
    match (active(observed), spec.concurrency_policy) {
        (Some(active), ConcurrencyPolicy::Forbid) => plan.left_out = Some((due, active)),
        (active, _) => {
            plan.remove.extend(active.map(|name| (name, Removal::Replaced)));
            plan.verify = verification_is_due(schedule, observed);
            plan.create = Some(format!("{}-{}", schedule.name_any(), due.strftime("%Y%m%d%H%M%S")));
        }
    }
    plan
}

/// Was none of the last so many proven, nor is to be?
fn verification_is_due(schedule: &MessageQueueBackupSchedule, observed: &Observed) -> bool {
    let Some(verification) = &schedule.spec.verification else { return false };
    let mut newest_first: Vec<_> =
        observed.backups.iter().filter(|backup| backup.phase != BackupPhase::Failed).collect();
    newest_first.sort_by_key(|backup| (std::cmp::Reverse(backup.created), backup.name.as_str()));
    newest_first.iter().take(verification.every.max(1) as usize - 1).all(|backup| !backup.is_verified)
}

/// The newest backup that was proven.
pub fn last_verified(observed: &Observed) -> Option<&BackupFacts> {
    let verified = |b: &&BackupFacts| b.verification.as_ref().is_some_and(|v| v.result == VerificationResult::Verified);
    observed.backups.iter().filter(verified).max_by_key(|backup| (backup.completed, &backup.name))
}

/// The backup at work, if there is one.
pub fn active(observed: &Observed) -> Option<String> {
    let at_work = |phase| !matches!(phase, BackupPhase::Completed | BackupPhase::Failed);
    observed.backups.iter().find(|backup| at_work(backup.phase)).map(|backup| backup.name.clone())
}

/// The last time that was due and has not been acted on.
fn due(schedule: &MessageQueueBackupSchedule, calendar: &Calendar, now: Timestamp) -> Option<Timestamp> {
    let created = schedule.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let status = schedule.status.clone().unwrap_or_default();
    let last = status.last_schedule_time.and_then(|at| at.parse::<Timestamp>().ok());
    match last {
        None if schedule.spec.immediate => Some(calendar.due(created, now).unwrap_or(created)),
        last => calendar.due(last.unwrap_or(created), now),
    }
}

fn surplus(
    schedule: &MessageQueueBackupSchedule,
    calendar: &Calendar,
    observed: &Observed,
    now: Timestamp,
) -> Vec<(String, Removal)> {
    let completed: Vec<(&str, Timestamp)> = observed
        .backups
        .iter()
        .filter(|backup| backup.phase == BackupPhase::Completed)
        .filter_map(|backup| Some((backup.name.as_str(), backup.completed?)))
        .collect();
    let day = |at| calendar.day(at);
    // What is known to restore is worth more than what is newer; what is being proven is in use.
    let proven = last_verified(observed).map(|backup| backup.name.as_str());
    let in_use = |name: &str| {
        let backup = observed.backups.iter().find(|backup| backup.name == name);
        backup.is_some_and(|b| {
            b.is_verified && b.verification.as_ref().is_none_or(|v| v.result == VerificationResult::Running)
        })
    };
    let surplus = retention::surplus(&schedule.spec.retention, &completed, day, now).into_iter();
    let surplus = surplus.filter(|name| proven != Some(*name) && !in_use(name));
    let mut failed: Vec<_> = observed.backups.iter().filter(|backup| backup.phase == BackupPhase::Failed).collect();
    failed.sort_by_key(|backup| (std::cmp::Reverse(backup.created), backup.name.as_str()));
    let old = failed.into_iter().skip(schedule.spec.failed_history_limit.max(0) as usize);
    let old = old.map(|backup| (backup.name.clone(), Removal::Failed));
    surplus.map(|name| (name.to_owned(), Removal::Surplus)).chain(old).collect()
}

fn wait(next: Option<Timestamp>, now: Timestamp) -> Duration {
    let until = next.map_or(LONGEST, |next| next.duration_since(now).unsigned_abs());
    until.clamp(Duration::from_millis(100), LONGEST)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::v1alpha1::VerificationStatus;

    fn at(text: &str) -> Timestamp {
        format!("2026-11-{text}Z").parse().expect("a time")
    }

    fn schedule(change: Value, last: Option<&str>) -> MessageQueueBackupSchedule {
        let mut spec = json!({ "cluster": { "name": "demo" }, "schedule": "0 3 * * *" });
        let fields = change.as_object().cloned().unwrap_or_default();
        spec.as_object_mut().expect("an object").extend(fields);
        let last = last.map(|last| at(last).to_string());
        serde_json::from_value(json!({
            "apiVersion": "holdfast.dev/v1alpha1", "kind": "MessageQueueBackupSchedule", "spec": spec,
            "metadata": { "name": "nightly", "namespace": "shop", "creationTimestamp": "2026-11-20T12:00:00Z" },
            "status": { "lastScheduleTime": last },
        }))
        .expect("a schedule")
    }

    fn planned(schedule: &MessageQueueBackupSchedule, backups: Vec<BackupFacts>, now: &str) -> Plan {
        let calendar = Calendar::of(&schedule.spec);
        let observed = Observed { has_cluster: true, backups };
        plan(schedule, calendar.as_ref().map_err(Clone::clone), &observed, at(now))
    }

    fn backup(name: &str, phase: BackupPhase, day: &str) -> BackupFacts {
        let when = Some(at(day));
        BackupFacts { name: name.into(), created: when, phase, completed: when, ..BackupFacts::default() }
    }

    #[test]
    fn one_backup_is_made_for_all_the_times_that_were_missed() {
        let table = [
            // last, now, made
            (None, "21T02:59:59", None),
            (None, "21T03:00:00", Some("nightly-20261121030000")),
            (Some("21T03:00:00"), "21T18:00:00", None),
            (Some("21T03:00:00"), "24T18:00:00", Some("nightly-20261124030000")),
        ];
        for (last, now, made) in table {
            let plan = planned(&schedule(json!({}), last), Vec::new(), now);
            assert_eq!(plan.create.as_deref(), made, "{last:?} {now}");
        }
        assert_eq!(planned(&schedule(json!({}), None), Vec::new(), "20T13:00:00").next_due, Some(at("21T03:00:00")));
    }

    #[test]
    fn an_immediate_schedule_makes_its_first_backup_when_it_is_created() {
        let immediate = json!({ "immediate": true });
        let plan = planned(&schedule(immediate.clone(), None), Vec::new(), "20T12:00:01");
        assert_eq!((plan.create.as_deref(), plan.acted_on), (Some("nightly-20261120120000"), Some(at("20T12:00:00"))));
        assert_eq!(planned(&schedule(immediate, Some("20T12:00:00")), Vec::new(), "20T12:00:01").create, None);
    }

    #[test]
    fn a_time_that_comes_while_a_backup_is_at_work_is_left_out_or_takes_its_place() {
        let at_work = || vec![backup("nightly-1", BackupPhase::Cutting, "21T03:00:00")];
        let forbid = planned(&schedule(json!({}), Some("21T03:00:00")), at_work(), "22T03:00:01");
        assert_eq!((forbid.create, forbid.remove), (None, Vec::new()));
        assert_eq!(forbid.left_out, Some((at("22T03:00:00"), "nightly-1".into())));
        assert_eq!(forbid.acted_on, Some(at("22T03:00:00")), "it does not come again when the other is done");
        let replace = json!({ "concurrencyPolicy": "Replace" });
        let replace = planned(&schedule(replace, Some("21T03:00:00")), at_work(), "22T03:00:01");
        assert_eq!(replace.remove, [("nightly-1".to_owned(), Removal::Replaced)]);
        assert_eq!(replace.create.as_deref(), Some("nightly-20261122030000"));
    }

    #[test]
    fn surplus_and_old_failures_are_removed_and_what_is_at_work_is_not() {
        let backups = vec![
            backup("a", BackupPhase::Completed, "18T03:00:00"),
            backup("b", BackupPhase::Failed, "19T03:00:00"),
            backup("c", BackupPhase::Completed, "20T03:00:00"),
            backup("d", BackupPhase::Failed, "21T03:00:00"),
            backup("e", BackupPhase::Pending, "22T03:00:00"),
        ];
        let rules = json!({ "retention": { "count": 1 }, "failedHistoryLimit": 1 });
        let plan = planned(&schedule(rules.clone(), Some("22T03:00:00")), backups.clone(), "22T12:00:00");
        assert_eq!(plan.remove, [("a".to_owned(), Removal::Surplus), ("b".to_owned(), Removal::Failed)]);
        let mut suspended = rules;
        suspended["suspend"] = json!(true);
        let plan = planned(&schedule(suspended, Some("21T03:00:00")), backups, "24T12:00:00");
        assert_eq!((plan.create, plan.remove, plan.next_due), (None, Vec::new(), None));
    }

    fn proven(name: &str, day: &str, result: VerificationResult) -> BackupFacts {
        let verification = Some(VerificationStatus { result, ..VerificationStatus::default() });
        BackupFacts { is_verified: true, verification, ..backup(name, BackupPhase::Completed, day) }
    }

    #[test]
    fn each_so_manieth_backup_is_proven() {
        let every = |n: i32| schedule(json!({ "verification": { "every": n } }), Some("21T03:00:00"));
        let plain = |name, day| backup(name, BackupPhase::Completed, day);
        let verified = || proven("a", "19T03:00:00", VerificationResult::Verified);
        let table = [
            (every(1), vec![verified()], true),
            (every(3), vec![], true),
            (every(3), vec![verified(), plain("b", "20T03:00:00")], false),
            (every(3), vec![verified(), plain("b", "20T03:00:00"), plain("c", "21T03:00:00")], true),
            (
                every(3),
                vec![verified(), plain("b", "20T03:00:00"), backup("c", BackupPhase::Failed, "21T03:00:00")],
                false,
            ),
            (schedule(json!({}), Some("21T03:00:00")), vec![], false),
        ];
        for (row, (schedule, backups, expected)) in table.into_iter().enumerate() {
            assert_eq!(planned(&schedule, backups, "22T03:00:01").verify, expected, "row {row}");
        }
    }

    #[test]
    fn the_last_proven_backup_is_never_removed_nor_one_that_is_being_proven() {
        let backups = vec![
            proven("a", "17T03:00:00", VerificationResult::Verified),
            proven("b", "18T03:00:00", VerificationResult::Verified),
            proven("c", "19T03:00:00", VerificationResult::Damaged),
            proven("d", "20T03:00:00", VerificationResult::Running),
            backup("e", BackupPhase::Completed, "21T03:00:00"),
            backup("f", BackupPhase::Completed, "22T03:00:00"),
        ];
        let plan =
            planned(&schedule(json!({ "retention": { "count": 1 } }), Some("22T03:00:00")), backups, "22T12:00:00");
        let removed: Vec<&str> = plan.remove.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(removed, ["e", "c", "a"]);
    }

    #[test]
    fn without_its_cluster_a_schedule_waits_and_makes_up_for_the_last_time_later() {
        let schedule = schedule(json!({}), None);
        let calendar = Calendar::of(&schedule.spec);
        let plan = plan(&schedule, calendar.as_ref().map_err(Clone::clone), &Observed::default(), at("21T04:00:00"));
        assert_eq!((plan.create, plan.acted_on), (None, None));
        assert_eq!(plan.problem.map(|problem| problem.reason), Some(Reason::ClusterMissing));
    }
}
