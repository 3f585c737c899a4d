//! Conditions of every kind: what a pass finds, merged with what the status says already.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::v1alpha1::{ConditionType, Reason};

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A condition without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub status: Truth,
    pub reason: Reason,
    pub message: String,
}

impl Verdict {
    /// `message` says what is so, and what to do where somebody has to.
    pub fn new(status: Truth, reason: Reason, message: impl Into<String>) -> Self {
        Self { status, reason, message: message.into() }
    }
}

/// Conditions that are only present while true disappear; a transition time changes with the status only.
pub fn merged(
    before: &[Condition],
    verdicts: Vec<(ConditionType, Verdict)>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let condition = |(type_, verdict): (ConditionType, Verdict)| {
        let former = before.iter().find(|c| c.type_ == type_.to_string() && c.status == verdict.status.as_str());
        Condition {
            type_: type_.to_string(),
            status: verdict.status.as_str().into(),
            reason: verdict.reason.to_string(),
            message: verdict.message,
            observed_generation: generation,
            last_transition_time: former.map_or_else(|| Time(whole_seconds(now)), |c| c.last_transition_time.clone()),
        }
    };
    verdicts.into_iter().map(condition).collect()
}

/// Times in conditions are written in whole seconds; anything finer would make each status differ from what is stored.
pub fn whole_seconds(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
