//! Forced recovery, as the brokers plan it (`/v1/recovery/plan`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a forced recovery would do, as `POST /v1/recovery/plan` has it, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RecoveryPlan {
    pub plan_hash: String,
    /// A majority of some group is not on the disks that are left.
    pub needed: bool,
    pub person_needed: PersonNeeded,
    pub plan: PlannedCluster,
}

/// Why a person has to decide, by how the missing members went; none where all policies allow it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PersonNeeded {
    pub on_failure: Option<String>,
    pub on_shutdown: Option<String>,
}

impl Default for PersonNeeded {
    /// A broker that does not say is of a version that knows of no such policies.
    fn default() -> Self {
        let unsaid = || Some("the broker does not say whether the policies allow it".to_owned());
        Self { on_failure: unsaid(), on_shutdown: unsaid() }
    }
}

/// The plan itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlannedCluster {
    pub epoch: u64,
    /// Names of members whose disks are not here.
    pub absent: Vec<String>,
    /// Members' names by id.
    pub names: BTreeMap<u64, String>,
    /// The metadata first.
    pub groups: Vec<PlannedGroup>,
}

/// What becomes of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlannedGroup {
    pub group: u64,
    /// `whole`, `unborn`, `deleted`; of all others something may be lost.
    pub outcome: String,
    /// The member whose copy it goes on from.
    pub source: u64,
    pub queues: Vec<PlannedQueue>,
    pub position: Option<PlannedPosition>,
}

/// A queue in a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlannedQueue {
    pub vhost: String,
    pub name: String,
}

/// Where a copy ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlannedPosition {
    /// When its last entry was stamped, milliseconds since 1970; 0 if never.
    pub stamped_ms: u64,
}

impl RecoveryPlan {
    /// The member whose copy of the metadata goes on.
    pub fn metadata_source(&self) -> Option<&str> {
        self.plan.names.get(&self.plan.groups.first()?.source).map(String::as_str)
    }

    /// Queues of which something confirmed may be lost, and after what time (milliseconds since 1970; 0 if unknown).
    pub fn may_have_lost(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let losing = |group: &&PlannedGroup| !["whole", "unborn", "deleted"].contains(&group.outcome.as_str());
        self.plan.groups.iter().filter(losing).flat_map(|group| {
            let since = group.position.as_ref().map_or(0, |position| position.stamped_ms);
            group.queues.iter().map(move |queue| (format!("{} in {}", queue.name, queue.vhost), since))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_as_the_brokers_write_it() {
        // The brokers have a test of the same file.
        let plan: RecoveryPlan = serde_json::from_str(include_str!("../../tests/recovery-plan.json")).expect("a plan");
        assert!(plan.needed && plan.plan_hash.len() == 64);
        assert_eq!(plan.person_needed.on_failure, None);
        assert!(plan.person_needed.on_shutdown.is_some_and(|why| why.contains("'orders'")));
        assert_eq!(
            (plan.plan.epoch, plan.plan.absent.as_slice()),
            (1, ["demo-1-0".to_owned(), "demo-2-0".to_owned()].as_slice())
        );
    }

    #[test]
    fn what_may_be_lost_is_named_and_the_metadata_are_applied_last_where_they_are() {
        let plan: RecoveryPlan = serde_json::from_str(include_str!("../../tests/recovery-plan.json")).expect("a plan");
        assert_eq!(plan.metadata_source(), Some("demo-0-0"));
        assert_eq!(plan.may_have_lost().collect::<Vec<_>>(), [("orders in /".to_owned(), 1_795_390_812_999)]);
    }
}
