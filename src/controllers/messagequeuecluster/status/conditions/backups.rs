//! What the cluster's backup schedules come to together. Without a schedule nothing is said.

use super::super::super::{
    super::conditions::{Truth, Verdict},
    observe::backups::ScheduleFacts,
};
use crate::api::v1alpha1::Reason;

/// Every schedule that is not suspended has a good backup that is no older than its ticks ask for.
pub fn healthy(schedules: &[ScheduleFacts]) -> Option<Verdict> {
    let working: Vec<&ScheduleFacts> = schedules.iter().filter(|schedule| !schedule.suspended).collect();
    if working.is_empty() {
        let all = names(schedules)?;
        return Some(Verdict::new(Truth::Unknown, Reason::Suspended, format!("no backup is made: {all} suspended")));
    }
    together(working.into_iter().map(health).collect())
}

/// The last backup of each schedule that was restored to prove it, was as it should be. A suspended one is still a backup.
pub fn verified(schedules: &[ScheduleFacts]) -> Option<Verdict> {
    together(schedules.iter().filter_map(proof).collect())
}

fn names(schedules: &[ScheduleFacts]) -> Option<String> {
    let names: Vec<&str> = schedules.iter().map(|schedule| schedule.name.as_str()).collect();
    match names.as_slice() {
        [] => None,
        [one] => Some(format!("{one} is")),
        all => Some(format!("{} are", all.join(", "))),
    }
}

/// The worst of them decides; a person reads of all that are as bad.
fn together(verdicts: Vec<Verdict>) -> Option<Verdict> {
    let badness = |verdict: &Verdict| match verdict.status {
        Truth::False => 2,
        Truth::Unknown => 1,
        Truth::True => 0,
    };
    let worst = verdicts.iter().map(badness).max()?;
    let mut worst = verdicts.into_iter().filter(|verdict| badness(verdict) == worst);
    let first = worst.next()?;
    Some(worst.fold(first, |all, next| Verdict { message: format!("{}; {}", all.message, next.message), ..all }))
}

fn health(schedule: &ScheduleFacts) -> Verdict {
    let ScheduleFacts { name, last_completed, overdue, healthy, .. } = schedule;
    let said = healthy.as_ref().map(|c| (c.status.as_str(), c.message.as_str()));
    let last = match last_completed {
        Some(last) => format!("the last good backup is {} of {}", last.name, last.at),
        None => "there is no good backup yet".into(),
    };
    match (said, overdue) {
        (Some(("False", message)), _) => {
            Verdict::new(Truth::False, Reason::BackupFailed, format!("{name}: {message}; {last}"))
        }
        (_, Some(due)) => {
            let message = format!("{name}: the backup that was due at {due} is not there; {last}: see kubectl get mqb");
            Verdict::new(Truth::False, Reason::BackupOverdue, message)
        }
        (Some(("True", _)), None) => Verdict::new(Truth::True, Reason::BackupCompleted, format!("{name}: {last}")),
        _ => Verdict::new(Truth::Unknown, Reason::Pending, format!("{name}: {last}")),
    }
}

fn proof(schedule: &ScheduleFacts) -> Option<Verdict> {
    let said = schedule.verified.as_ref()?;
    let (status, reason) = match said.status.as_str() {
        "True" => (Truth::True, Reason::Verified),
        "False" if said.reason == Reason::BackupDamaged.to_string() => (Truth::False, Reason::BackupDamaged),
        "False" => (Truth::False, Reason::VerificationFailed),
        _ => (Truth::Unknown, Reason::Pending),
    };
    Some(Verdict::new(status, reason, format!("{}: {}", schedule.name, said.message)))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::api::v1alpha1::BackupMention;

    fn said(status: &str, reason: &str) -> Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
        let condition = json!({
            "type": "x", "status": status, "reason": reason, "message": "so it is",
            "lastTransitionTime": "2026-11-23T03:00:00Z",
        });
        Some(serde_json::from_value(condition).expect("a condition"))
    }

    fn schedule(name: &str) -> ScheduleFacts {
        let last_completed = Some(BackupMention { name: format!("{name}-1"), at: "2026-11-23T03:01:00Z".into() });
        ScheduleFacts {
            name: name.into(),
            last_completed,
            healthy: said("True", "BackupCompleted"),
            ..ScheduleFacts::default()
        }
    }

    #[test]
    fn the_worst_schedule_decides_and_suspended_ones_do_not_count() {
        let late = || ScheduleFacts { overdue: Some(Timestamp::UNIX_EPOCH), ..schedule("late") };
        let failed = || ScheduleFacts { healthy: said("False", "BackupFailed"), ..schedule("failed") };
        let new = || ScheduleFacts { healthy: said("Unknown", "Pending"), last_completed: None, ..schedule("new") };
        let off = || ScheduleFacts { suspended: true, ..late() };
        let table = [
            (vec![], None),
            (vec![schedule("a"), schedule("b")], Some((Truth::True, Reason::BackupCompleted, "b: the last good"))),
            (vec![schedule("a"), new()], Some((Truth::Unknown, Reason::Pending, "new: there is no good backup yet"))),
            (
                vec![schedule("a"), late(), new()],
                Some((Truth::False, Reason::BackupOverdue, "late: the backup that was due")),
            ),
            (vec![failed(), schedule("a")], Some((Truth::False, Reason::BackupFailed, "failed-1 of 2026"))),
            (vec![schedule("a"), off()], Some((Truth::True, Reason::BackupCompleted, "a: the last good"))),
            (vec![off()], Some((Truth::Unknown, Reason::Suspended, "late is suspended"))),
        ];
        for (row, (schedules, expected)) in table.into_iter().enumerate() {
            let found = healthy(&schedules);
            assert_eq!(found.as_ref().map(|v| (v.status, v.reason)), expected.map(|(s, r, _)| (s, r)), "row {row}");
            let message = found.map(|v| v.message).unwrap_or_default();
            assert!(message.contains(expected.map_or("", |(.., words)| words)), "row {row}: {message}");
        }
    }

    #[test]
    fn a_damaged_backup_of_one_schedule_is_told_of_the_cluster() {
        let proven =
            |name: &str, status: &str, reason: &str| ScheduleFacts { verified: said(status, reason), ..schedule(name) };
        assert_eq!(verified(&[schedule("a")]), None, "nothing is to be proven");
        let good = verified(&[schedule("a"), proven("b", "True", "Verified")]).expect("a verdict");
        assert_eq!((good.status, good.reason), (Truth::True, Reason::Verified));
        let bad = [proven("b", "True", "Verified"), proven("c", "False", "BackupDamaged")];
        let bad = verified(&bad).expect("a verdict");
        assert_eq!(
            (bad.status, bad.reason, bad.message.as_str()),
            (Truth::False, Reason::BackupDamaged, "c: so it is")
        );
    }
}
