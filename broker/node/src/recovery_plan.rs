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

/// The number of a recovery that is carried out in several places, none of which knows what another one drew. Plans of other
/// disks, or of the same disks in another state, have another hash, so those recoveries are told apart all the same.
pub fn nonce_of(plan_hash: &str) -> u64 {
    let hash = Sha256::digest(format!("nonce of {plan_hash}"));
    hash.iter().take(8).fold(0, |nonce, byte| nonce << 8 | u64::from(*byte))
}

/// A recovery that some of the directories have behind them, and others that are parts of it have not.
fn unfinished(found: &[Surveyed]) -> Option<String> {
    let lacks = |record: &&Record| {
        let part = |one: &&Surveyed| record.parts.contains(&one.survey.uuid);
        found.iter().filter(part).any(|one| one.survey.epoch < record.epoch)
    };
    found.iter().filter_map(|one| one.record.as_ref()).find(lacks).map(|record| record.plan_hash.clone())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use holdfast_engine::recovery::{CopySurvey, Life, MetadataSurvey, PlacedGroup, QueueSurvey, Replica};

    use super::*;

    /// What the operator reads (`src/broker_admin/recovery.rs` has a test of the same file).
    const AS_THE_OPERATOR_READS_IT: &str = include_str!("../../../tests/recovery-plan.json");

    /// One disk of three, with a queue whose policy lets the operator go ahead.
    fn left_of_three() -> Surveyed {
        let voters = || (1..=3).map(|member| Replica { member, generation: 0 }).collect::<Vec<_>>();
        let queue = |messages| QueueSurvey {
            id: 1,
            vhost: "/".into(),
            name: "orders".into(),
            messages,
            promote_on_failure: true,
            promote_on_shutdown: false,
        };
        let copy = |group, queues| CopySurvey {
            group,
            life: Life::default(),
            last_term: 2,
            last_index: 9,
            commit: 9,
            stamped_ms: 1_795_390_812_999,
            memberships: vec![vec![voters()]],
            queues,
            ..CopySurvey::default()
        };
        let placed = |queues| PlacedGroup { voters: voters(), preferred_leader: 1, queues, ..PlacedGroup::default() };
        let metadata = MetadataSurvey {
            members: (1..=3).map(|id| (id, (format!("demo-{}-0", id - 1), format!("uuid-{id}")))).collect(),
            groups: BTreeMap::from([(0, placed(Vec::new())), (1, placed(vec![queue(0)]))]),
            last_member: 3,
            last_group: 1,
            last_queue: 1,
        };
        let survey = Survey {
            uuid: "uuid-1".into(),
            cluster_id: "c".into(),
            epoch: 1,
            member: 1,
            copies: vec![copy(0, Vec::new()), copy(1, vec![queue(5)])],
            metadata: Some(metadata),
            ..Survey::default()
        };
        Surveyed { survey, record: None }
    }

    #[test]
    fn the_plan_for_programs_is_as_the_operator_reads_it() {
        let made = HashedPlan::make(&[left_of_three()], None).expect("a plan").as_json();
        let golden: Value = serde_json::from_str(AS_THE_OPERATOR_READS_IT).expect("JSON");
        assert_eq!(made, golden, "if that is meant, the file is to be: {made:#}");
    }
}
