//! Policies: kept by virtual host, matched by name, merged into what counts for each queue.

use super::effect::{Change, MetaReply, Refusal};
use super::machine::{MetaMachine, Outcome};
use super::pattern::Pattern;
use super::policy_keys::{self, Effect, Promote, Replication};
use super::state::{QueueInfo, Vhost};
use crate::arguments::Arguments;
use crate::codec::{Codec, DecodeError, Reader, Writer, codec_enum, codec_struct};
use crate::ids::QueueId;
use std::collections::BTreeMap;

/// Longest name or pattern of a policy, in bytes: as long as the names that it matches (AMQP short strings).
const MAX_TEXT_BYTES: usize = 255;

/// What a policy applies to, in RabbitMQ's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApplyTo {
    /// `all`
    #[default]
    All,
    /// `queues`
    Queues,
    /// `exchanges`
    Exchanges,
    /// `classic_queues`: those without `x-queue-type: quorum`.
    ClassicQueues,
    /// `quorum_queues`
    QuorumQueues,
}

codec_enum!(ApplyTo, "apply-to" { 1 => All, 2 => Queues, 3 => Exchanges, 4 => ClassicQueues, 5 => QuorumQueues });

impl ApplyTo {
    const NAMES: [(&'static str, ApplyTo); 5] = [
        ("all", ApplyTo::All),
        ("queues", ApplyTo::Queues),
        ("exchanges", ApplyTo::Exchanges),
        ("classic_queues", ApplyTo::ClassicQueues),
        ("quorum_queues", ApplyTo::QuorumQueues),
    ];

    /// As clients write it.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, kind)| *kind == self).map_or("all", |(name, _)| name)
    }

    /// What a client wrote.
    ///
    /// # Errors
    /// What there is.
    pub fn from_name(name: &str) -> Result<ApplyTo, String> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
        found.ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name);
            format!("apply-to must be one of: {}, not '{name}'", names.join(", "))
        })
    }

    fn covers_queue(self, queue: &QueueInfo) -> bool {
        let is_quorum = queue.arguments.get("x-queue-type").and_then(|value| value.as_text()) == Some("quorum");
        match self {
            ApplyTo::All | ApplyTo::Queues => true,
            ApplyTo::ClassicQueues => !is_quorum,
            ApplyTo::QuorumQueues => is_quorum,
            ApplyTo::Exchanges => false,
        }
    }

    fn covers_exchanges(self) -> bool {
        matches!(self, ApplyTo::All | ApplyTo::Exchanges)
    }
}

/// A policy as it is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewPolicy {
    /// A regular expression, searched for anywhere in the names of queues and exchanges.
    pub pattern: String,
    /// What it applies to.
    pub apply_to: ApplyTo,
    /// Of several that match, the highest counts; of equal ones, the one whose name comes first.
    pub priority: i64,
    /// Keys and values; [`MetaCommand::PutPolicy`](super::MetaCommand::PutPolicy) refuses unknown ones.
    pub definition: Arguments,
}

codec_struct! {
    NewPolicy { pattern, apply_to, priority, definition }
}

/// A policy that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    asked: NewPolicy,
    pattern: Pattern,
}

impl Policy {
    fn new(name: &str, asked: NewPolicy, is_operator: bool) -> Result<Policy, String> {
        for (what, text) in [("name", name), ("pattern", asked.pattern.as_str())] {
            if text.len() > MAX_TEXT_BYTES {
                return Err(format!("the {what} has {} bytes; at most {MAX_TEXT_BYTES} are allowed", text.len()));
            }
        }
        if name.is_empty() {
            return Err("the policy needs a name".to_owned());
        }
        policy_keys::check(&asked.definition, is_operator)?;
        Ok(Policy { pattern: Pattern::new(&asked.pattern)?, asked })
    }

    /// As it was set.
    pub fn asked(&self) -> &NewPolicy {
        &self.asked
    }
}

impl Codec for Policy {
    fn encode(&self, out: &mut Writer) {
        self.asked.encode(out);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let asked = NewPolicy::decode(input)?;
        let pattern = Pattern::new(&asked.pattern).map_err(|_| DecodeError::Invalid("a policy's pattern"))?;
        Ok(Policy { asked, pattern })
    }
}

/// Whose policy it is. Of each kind at most one applies to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyKind {
    /// Set by users.
    User,
    /// Set by operators of the cluster: limits that users cannot exceed.
    Operator,
}

codec_enum!(PolicyKind, "policy kind" { 1 => User, 2 => Operator });

/// What counts for one queue or exchange.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EffectivePolicy {
    /// Name of the user's policy that matches.
    pub user: Option<String>,
    /// Name of the operator's policy that matches.
    pub operator: Option<String>,
    /// Both merged, by key.
    pub definition: Arguments,
    pub(super) replication: Replication,
}

impl Vhost {
    pub(super) fn policies_of(&self, kind: PolicyKind) -> &BTreeMap<String, Policy> {
        match kind {
            PolicyKind::User => &self.policies,
            PolicyKind::Operator => &self.operator_policies,
        }
    }

    fn effective(&self, name: &str, covers: impl Fn(ApplyTo) -> bool) -> Option<EffectivePolicy> {
        let best = |kind: PolicyKind| {
            let all = self.policies_of(kind).iter();
            let matching = all.filter(|(_, policy)| covers(policy.asked.apply_to) && policy.pattern.matches(name));
            // The first of the highest: `max_by_key` would give the last.
            matching.min_by_key(|(_, policy)| std::cmp::Reverse(policy.asked.priority))
        };
        let (user, operator) = (best(PolicyKind::User), best(PolicyKind::Operator));
        if user.is_none() && operator.is_none() {
            return None;
        }
        let nothing = Arguments::default();
        let definition_of =
            |found: Option<(&String, &'_ Policy)>| found.map(|(_, policy)| policy.asked.definition.clone());
        let (of_user, of_operator) = (definition_of(user), definition_of(operator));
        let definition =
            policy_keys::merge(of_user.as_ref().unwrap_or(&nothing), of_operator.as_ref().unwrap_or(&nothing));
        let replication = Replication::of(&definition);
        let named = |found: Option<(&String, &Policy)>| found.map(|(name, _)| name.clone());
        Some(EffectivePolicy { user: named(user), operator: named(operator), definition, replication })
    }
}

impl MetaMachine {
    /// The policies of a kind: virtual host, name, policy.
    pub fn policies(&self, kind: PolicyKind) -> impl Iterator<Item = (&str, &str, &Policy)> {
        self.vhosts.iter().flat_map(move |(vhost, info)| {
            info.policies_of(kind).iter().map(|(name, policy)| (vhost.as_str(), name.as_str(), policy))
        })
    }

    /// What counts for a queue, if any policy matches it.
    pub fn policy_of(&self, queue: QueueId) -> Option<&EffectivePolicy> {
        self.effective.get(&queue)
    }

    /// What policies say of going on with the copies that are left when a queue's quorum is lost: nothing, if none matches.
    pub fn promote(&self, queue: QueueId) -> Promote {
        self.policy_of(queue).map(|policy| policy.replication.promote).unwrap_or_default()
    }

    /// What counts for an exchange, if any policy matches it.
    pub fn policy_of_exchange(&self, vhost: &str, name: &str) -> Option<EffectivePolicy> {
        self.vhost(vhost)?.effective(name, ApplyTo::covers_exchanges)
    }

    pub(super) fn put_policy(
        &mut self,
        kind: PolicyKind,
        vhost: &str,
        name: String,
        policy: NewPolicy,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        let policy = Policy::new(&name, policy, kind == PolicyKind::Operator)
            .map_err(|text| Refusal { code: 406, text: format!("policy '{name}': {text}") })?;
        self.policies_mut(kind, vhost)?.insert(name, policy);
        self.apply_policies(vhost, changes);
        Ok(MetaReply::Done)
    }

    pub(super) fn delete_policy(
        &mut self,
        kind: PolicyKind,
        vhost: &str,
        name: &str,
        changes: &mut Vec<Change>,
    ) -> Outcome {
        if self.policies_mut(kind, vhost)?.remove(name).is_none() {
            return Err(Refusal { code: 404, text: format!("no policy '{name}' in vhost '{vhost}'") });
        }
        self.apply_policies(vhost, changes);
        Ok(MetaReply::Done)
    }

    fn policies_mut(&mut self, kind: PolicyKind, vhost: &str) -> Result<&mut BTreeMap<String, Policy>, Refusal> {
        let Some(vhost) = self.vhosts.get_mut(vhost) else {
            return Err(Refusal { code: 404, text: format!("no vhost '{vhost}'") });
        };
        Ok(match kind {
            PolicyKind::User => &mut vhost.policies,
            PolicyKind::Operator => &mut vhost.operator_policies,
        })
    }

    /// What would count for a queue, by the policies that there are.
    pub(super) fn match_policies(&self, queue: &QueueInfo) -> Option<EffectivePolicy> {
        self.vhost(&queue.vhost)?.effective(&queue.name, |apply_to| apply_to.covers_queue(queue))
    }

    /// Finds anew what counts for the queues of a virtual host, and moves their replicas accordingly.
    fn apply_policies(&mut self, vhost: &str, changes: &mut Vec<Change>) {
        let queues: Vec<QueueId> =
            self.vhost(vhost).map(|vhost| vhost.queues.values().copied().collect()).unwrap_or_default();
        for queue in queues {
            let now = self.queues.get(&queue).and_then(|info| self.match_policies(info));
            let before = match now.clone() {
                Some(now) => self.effective.insert(queue, now),
                None => self.effective.remove(&queue),
            };
            let placed = |policy: Option<EffectivePolicy>| {
                let of = policy.map(|policy| policy.replication).unwrap_or_default();
                (of.mode, of.manual_sync)
            };
            if placed(before) != placed(now) {
                self.retarget_queue(queue, changes);
            }
        }
        changes.push(Change::Replication);
    }

    /// Derives what counts for every queue.
    pub(super) fn derive_policies(&mut self) {
        let found = self.queues.iter().filter_map(|(id, queue)| Some((*id, self.match_policies(queue)?)));
        self.effective = found.collect();
    }
}

/// Keys of a definition that a member refuses, since nothing would come of them.
pub fn keys_not_honoured(definition: &Arguments) -> Vec<String> {
    let matching = |name: &&str| policy_keys::find(name).is_some_and(|key| key.effect == Effect::None);
    definition.iter().map(|(name, _)| name).filter(matching).map(str::to_owned).collect()
}
