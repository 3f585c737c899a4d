//! Forced recovery without a person, where the policies of all queues that may lose something allow it.
//!
//! The brokers make the plan and carry it out (`/v1/recovery/…`); they refuse when a majority is there after all, or when
//! a disk is not as the plan has it. What was begun and cut off is finished by the next pass: the same surveys make the
//! same plan, and the nonce is in what the first members wrote.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::Value;

use super::{
    super::{Context, Error},
    apply::Outcome,
    observe::{self, Observed},
    plan::recovery::{Recovery, disks},
    validate::{Blocker, ValidatedCluster, Validation},
};
use crate::{
    api::v1alpha1::{MessageQueueCluster, Reason},
    broker_admin::{AdminError, Door, RecoveryPlan},
};

/// Nothing becomes durable on the members that are left for so long, while the plan is made and carried out.
const FREEZE: Duration = Duration::from_secs(300);
/// Queues that are named where something may be lost; the rest is a number.
const NAMED: usize = 10;

/// Surveys the disks that are left, has a plan made of them, and carries it out if no person has to decide.
pub async fn recover(
    ctx: &Context,
    mqc: &MessageQueueCluster,
    validation: &Validation,
    observed: &Observed,
    recovery: &Recovery,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let Some(cluster) = validation.cluster.as_ref() else { return Ok(()) };
    // Minutes may have passed since the pass began.
    let fresh = observe::ask_again(ctx, mqc, observed, (ctx.clock)()).await?;
    if disks(cluster, &fresh).is_none_or(|now| now != (recovery.intact.clone(), recovery.lost.clone())) {
        return Ok(());
    }
    let doors: Vec<&Door> =
        recovery.intact.iter().filter_map(|number| fresh.members.get(number)?.door.as_ref()).collect();
    let held = match prepared(ctx, &doors, recovery).await {
        Ok(Ready { plan, found }) => match carry_out(ctx, &doors, &plan, found).await {
            Ok(()) => {
                outcome.did(Reason::RecoveredByPolicy, said(cluster, recovery, &plan));
                return Ok(());
            }
            Err(error) => format!("the forced recovery is not finished: {error}"),
        },
        Err(why) => {
            for door in doors {
                // Otherwise it ends by itself.
                let _ = ctx.brokers.recovery_freeze(door, Duration::ZERO).await;
            }
            why
        }
    };
    let held = Blocker { reason: Reason::RecoveryHeld, message: held };
    let at = (ctx.clock)();
    ctx.remembered(&mqc.uid().unwrap_or_default(), |memory| memory.recovery_held = Some((at, held.clone())));
    outcome.hold(held.reason, held.message);
    Ok(())
}

/// A plan that may be carried out, and what it was made from.
struct Ready {
    plan: RecoveryPlan,
    found: Vec<Value>,
}

/// The plan; or why nothing is done, in words.
async fn prepared(ctx: &Context, doors: &[&Door], recovery: &Recovery) -> Result<Ready, String> {
    let refused = |error: AdminError| format!("no plan for a forced recovery: {error}");
    for door in doors {
        ctx.brokers.recovery_freeze(door, FREEZE).await.map_err(refused)?;
    }
    let mut found = Vec::new();
    for door in doors {
        found.push(ctx.brokers.recovery_survey(door).await.map_err(refused)?);
    }
    let first = doors.first().ok_or("no disk is left")?;
    let plan = ctx.brokers.recovery_plan(first, &found).await.map_err(refused)?;
    if !plan.needed {
        return Err("a majority of every queue is here: the members need no recovery, but to reach each other".into());
    }
    if let Some(why) = &plan.person_needed.on_failure {
        return Err(format!(
            "a person has to decide on a forced recovery (`holdfast-broker recover`, or /v1/recovery): {why}"
        ));
    }
    let unaccounted = plan.plan.absent.iter().find(|name| !recovery.lost.contains(name));
    match unaccounted {
        Some(name) => {
            Err(format!("the disk of {name} is not here, and is not known to be gone: a person has to decide"))
        }
        None => Ok(Ready { plan, found }),
    }
}

/// On every member that is left; the one with the metadata last, so that nothing serves before all parts are there.
async fn carry_out(ctx: &Context, doors: &[&Door], plan: &RecoveryPlan, found: Vec<Value>) -> Result<(), AdminError> {
    let begun = found
        .iter()
        .filter_map(|one| one.get("record"))
        .find(|record| record.get("planHash").and_then(Value::as_str) == Some(plan.plan_hash.as_str()));
    let nonce = begun.and_then(|record| record.get("nonce")?.as_u64());
    let nonce = nonce.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
    let source = plan.metadata_source();
    let mut doors = doors.to_vec();
    doors.sort_by_key(|door| Some(door.member.as_str()) == source);
    for door in doors {
        ctx.brokers.recovery_apply(door, &plan.plan_hash, nonce, &found).await?;
    }
    Ok(())
}

fn said(cluster: &ValidatedCluster, recovery: &Recovery, plan: &RecoveryPlan) -> String {
    let intact: Vec<String> = recovery.intact.iter().map(|number| cluster.names.pod(*number)).collect();
    let losing: Vec<String> = plan.may_have_lost().map(|(queue, since)| format!("{queue}{}", after(since))).collect();
    let lost = match losing.len() {
        0 => "Nothing that was confirmed is lost.".to_owned(),
        count => {
            let more = if count > NAMED { format!(" and {} more", count - NAMED) } else { String::new() };
            let named = losing.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            format!("What was confirmed may be lost in {count} queues: {named}{more}.")
        }
    };
    format!(
        "no majority since {}, and the disks of {} are blank: recovered by force without a person, as the queues' policies \
         say (ha-promote-on-failure: always); epoch {} begins from the disks of {}. {lost}",
        recovery.since,
        recovery.lost.join(", "),
        plan.plan.epoch + 1,
        intact.join(", ")
    )
}

fn after(stamped_ms: u64) -> String {
    let at = i64::try_from(stamped_ms).ok().filter(|ms| *ms > 0).and_then(|ms| Timestamp::from_millisecond(ms).ok());
    at.map_or_else(String::new, |at| format!(" (after {at})"))
}
