//! A plan with its hash, from what was found in data directories.

use holdfast_engine::recovery::{GroupPlan, Plan, PlanError, Survey, plan};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::recovery_dirs::{Record, Surveyed};

/// A plan and the hash that must be given to carry it out.
#[derive(Clone, Debug)]
pub struct HashedPlan {
    pub plan: Plan,
    /// SHA-256, in hex, of the plan and of all that it was made from.
    pub hash: String,
}

impl HashedPlan {
    /// Makes the plan. `begun` is the hash of one that may have been carried out in some of the directories already; without
    /// it, one that was begun there is found. Then the plan is made from what they held before, and is the same again.
    pub fn make(found: &[Surveyed], begun: Option<&str>) -> Result<Self, PlanError> {
        let begun = begun.map(str::to_owned).or_else(|| unfinished(found));
        let of = |one: &Surveyed| match begun.as_ref().and_then(|hash| one.before(hash)) {
            Some(record) => record.before.clone(),
            None => one.survey.clone(),
        };
        let mut surveys: Vec<Survey> = found.iter().map(of).collect();
        surveys.sort_by(|a, b| (a.member, &a.uuid).cmp(&(b.member, &b.uuid)));
        let plan = plan(&surveys)?;
        let hash = Sha256::digest(json!([plan, surveys]).to_string());
        Ok(Self { plan, hash: hash.iter().map(|byte| format!("{byte:02x}")).collect() })
    }

    /// For programs.
    pub fn as_json(&self) -> Value {
        json!({
            "planHash": self.hash,
            "needed": self.plan.is_needed,
            "mayLose": self.plan.groups.iter().any(GroupPlan::may_lose),
            "personNeeded": {
                "onFailure": self.plan.needs_a_person(false),
                "onShutdown": self.plan.needs_a_person(true),
            },
            "plan": self.plan,
        })
    }
}

/// A recovery that some of the directories have behind them, and others that are parts of it have not.
fn unfinished(found: &[Surveyed]) -> Option<String> {
    let lacks = |record: &&Record| {
        let part = |one: &&Surveyed| record.parts.contains(&one.survey.uuid);
        found.iter().filter(part).any(|one| one.survey.epoch < record.epoch)
    };
    found.iter().filter_map(|one| one.record.as_ref()).find(lacks).map(|record| record.plan_hash.clone())
}
