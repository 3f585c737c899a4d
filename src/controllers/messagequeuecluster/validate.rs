//! Step 2: from what the user wrote to a cluster that can be built, and a list of what cannot be done and why.
//!
//! CEL has checked single fields. Here are the relations between fields, and between the spec and what exists. Each
//! problem is a [`Blocker`] that names what to write instead; the rest of the pass goes on where it can.

use k8s_openapi::{
    api::core::v1::{LocalObjectReference, PodTemplateSpec, ResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::OwnerReference},
};
use kube::ResourceExt;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    super::Settings,
    observe::{MemberFacts, Observed, VolumeFacts, authority_name},
};
use crate::api::v1alpha1::{
    DeletionPolicy, HealthSpec, ImagePullPolicy, ListenersSpec, MessageQueueCluster, Names, Reason, ResourcesSpec,
    VERIFICATION_LABEL, WhenUnsatisfiable, default_factor,
};

/// What the later steps work from.
#[derive(Debug)]
pub struct Validation {
    /// None when the spec makes no cluster at all: then what exists is left as it is.
    pub cluster: Option<ValidatedCluster>,
    pub blockers: Vec<Blocker>,
}

/// Something that the spec asks for and that is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    pub reason: Reason,
    pub message: String,
}

/// A cluster that can be built. Only this module makes one.
#[derive(Clone, Debug)]
pub struct ValidatedCluster {
    pub names: Names,
    /// The authority's own name.
    pub authority_name: String,
    pub owner: Option<OwnerReference>,
    /// The numbers of all members: those that exist, and those that the spec adds.
    pub members: Vec<u32>,
    /// Replicas of a queue that does not say: what the brokers were given at bootstrap.
    pub replication_factor: i32,
    /// Is that less than is usual for so many members, because the cluster was founded with fewer?
    pub outgrew_factor: bool,
    /// Copies that a confirm waits for; 0 is a majority.
    pub min_in_sync_replicas: i32,
    pub storage_size: Quantity,
    pub storage_class: Option<String>,
    pub deletion_policy: DeletionPolicy,
    pub listeners: ListenersSpec,
    pub health: HealthSpec,
    pub hibernate: bool,
    pub paused: bool,
    pub template: Template,
    /// No template is written and no pod is removed: what members should be cannot be told, or must not be applied.
    pub frozen: bool,
    /// The cluster was made to prove a backup: each snapshot is read whole, also what is not needed.
    pub proves_backup: bool,
    zones: Vec<String>,
}

/// What a member's pod template is rendered from. A change of anything in it, and of nothing else, restarts members.
#[derive(Clone, Debug, Serialize)]
pub struct Template {
    pub image: String,
    pub image_pull_policy: Option<ImagePullPolicy>,
    pub image_pull_secrets: Vec<LocalObjectReference>,
    pub resources: ResourceRequirements,
    pub topology_key: String,
    pub when_unsatisfiable: WhenUnsatisfiable,
    pub amqp: bool,
    pub amqps: bool,
    /// The user's partial template.
    pub overrides: Option<Value>,
}

impl ValidatedCluster {
    /// The zone that a member is pinned to, if the spec lists zones.
    pub fn pinned_zone(&self, member: u32) -> Option<&str> {
        let count = self.zones.len();
        (count > 0).then(|| self.zones[member as usize % count].as_str())
    }

    /// The hash of what member `member` is rendered from. `leaf` identifies the certificate: brokers read it at start.
    pub fn inputs(&self, member: u32, leaf: &str) -> String {
        let inputs = serde_json::json!({
            "template": self.template, "zone": self.pinned_zone(member), "leaf": leaf,
        });
        hex_digest(&inputs.to_string())
    }

    /// The names and addresses that the brokers' certificate holds.
    pub fn certificate_names(&self) -> Vec<String> {
        let Names { namespace, cluster } = &self.names;
        let nodes = self.names.nodes_service();
        let mut sans = vec![
            format!("*.{nodes}.{namespace}.svc"),
            format!("*.{nodes}.{namespace}"),
            format!("*.{nodes}"),
            format!("{cluster}.{namespace}.svc"),
            format!("{cluster}.{namespace}"),
            cluster.clone(),
            "localhost".into(),
        ];
        sans.extend(self.listeners.advertised_address.clone());
        sans.extend(self.listeners.extra_sans.iter().cloned());
        sans.dedup();
        sans
    }

    /// Where clients connect: host, port and scheme, without TLS where both are offered.
    pub fn client_address(&self) -> (String, u16, &'static str) {
        let host = match &self.listeners.advertised_address {
            Some(address) => address.clone(),
            None => format!("{}.{}.svc", self.names.client_service(), self.names.namespace),
        };
        match self.listeners.amqp.enabled {
            true => (host, 5672, "amqp"),
            false => (host, 5671, "amqps"),
        }
    }
}

/// The first half of a SHA-256, in hexadecimal: enough to tell inputs apart.
pub fn hex_digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Checks relations; never fails as a whole.
pub fn validate(mqc: &MessageQueueCluster, observed: &Observed, settings: &Settings) -> Validation {
    let mut blockers = Vec::new();
    let members = members(mqc, observed, &mut blockers);
    let is_running = observed.members.values().any(|m| m.stateful_set.is_some());
    let mut frozen = authority_is_lost(mqc, observed, &mut blockers) && !mqc.spec.hibernate;
    if let Err(blocker) = check_overrides(mqc) {
        frozen = true;
        blockers.push(blocker);
    }
    let unmade = blockers.iter().find(|b| b.reason == Reason::InvalidSpec && !is_running).cloned();
    let cluster = unmade.map_or(Ok(()), Err).and_then(|()| {
        let storage_size = storage_size(mqc, observed, &mut blockers)?;
        let factor = founding_factor(mqc);
        if factor as usize > members.len() {
            return Err(invalid(format!(
                "replication.factor is {factor}, but there are {} members: raise members, or lower the factor to an odd number that is not above it",
                members.len()
            )));
        }
        let outgrew_factor = mqc.spec.replication.as_ref().and_then(|r| r.factor).is_none()
            && factor < default_factor(members.len() as i32);
        Ok(ValidatedCluster {
            names: mqc.names(),
            authority_name: authority_name(mqc),
            owner: mqc.owner(),
            members,
            replication_factor: factor,
            outgrew_factor,
            min_in_sync_replicas: min_in_sync_replicas(mqc, factor, &mut blockers),
            storage_size,
            storage_class: mqc.spec.storage.storage_class_name.clone(),
            deletion_policy: mqc.spec.storage.deletion_policy,
            listeners: mqc.spec.listeners.clone(),
            health: mqc.spec.health.clone(),
            hibernate: mqc.spec.hibernate,
            paused: mqc.spec.paused,
            template: template(mqc, settings),
            frozen,
            proves_backup: mqc.labels().contains_key(VERIFICATION_LABEL),
            zones: mqc.spec.placement.zones.clone(),
        })
    });
    let cluster = match cluster {
        Ok(cluster) => Some(cluster),
        Err(blocker) => {
            if !blockers.contains(&blocker) {
                blockers.push(blocker);
            }
            None
        }
    };
    if let Some(problem) = &observed.storage_class_problem {
        blockers.push(Blocker { reason: Reason::StorageClassMissing, message: problem.clone() });
    }
    Validation { cluster, blockers }
}

fn invalid(message: String) -> Blocker {
    Blocker { reason: Reason::InvalidSpec, message }
}

/// The brokers are given it once, so what was recorded then counts.
fn founding_factor(mqc: &MessageQueueCluster) -> i32 {
    let recorded = mqc.status.as_ref().and_then(|s| s.replication.as_ref()?.factor);
    recorded.unwrap_or_else(|| mqc.spec.replication_factor())
}

/// What is asked for, if the queues can have so many copies; else what the brokers have.
fn min_in_sync_replicas(mqc: &MessageQueueCluster, factor: i32, blockers: &mut Vec<Blocker>) -> i32 {
    let asked = mqc.spec.replication.as_ref().and_then(|r| r.min_in_sync_replicas).unwrap_or(0);
    if asked <= factor {
        return asked;
    }
    blockers.push(invalid(format!(
        "replication.minInSyncReplicas is {asked}, but queues get {factor} replicas, so nothing could be confirmed: set it to {factor} or less"
    )));
    mqc.status.as_ref().and_then(|s| s.replication.as_ref()?.min_in_sync_replicas).unwrap_or(0)
}

fn authority_is_lost(mqc: &MessageQueueCluster, observed: &Observed, blockers: &mut Vec<Blocker>) -> bool {
    let Some(why) = observed.authority_lost() else { return false };
    blockers.push(Blocker {
        reason: Reason::CertificatesInvalid,
        message: format!(
            "Secret {} {why}, and brokers run that trust the former authority: put the Secret back from a backup, or set hibernate: true, wait until no broker runs, and set it to false again; then an authority is made anew",
            mqc.names().authority_secret()
        ),
    });
    true
}

/// Numbers are never reused, and a member that exists stays: removing one needs its replicas moved first. It exists with
/// its StatefulSet, or with a volume of this cluster, which is what is left when the object was deleted with Retain.
fn members(mqc: &MessageQueueCluster, observed: &Observed, blockers: &mut Vec<Blocker>) -> Vec<u32> {
    let wanted = mqc.spec.members.max(1) as u32;
    let id = mqc.status_or_default().cluster_id;
    let is_ours = |volume: &VolumeFacts| volume.cluster_id.is_some() && (id.is_none() || volume.cluster_id == id);
    let exists = |m: &MemberFacts| m.stateful_set.is_some() || m.volume.as_ref().is_some_and(is_ours);
    let existing = || observed.members.iter().filter(|(_, m)| exists(m)).map(|(n, _)| *n);
    let count = existing().max().map_or(0, |highest| highest + 1);
    if count > wanted {
        blockers.push(Blocker {
            reason: Reason::MembersNotRemovable,
            message: format!(
                "members is {wanted}, but the cluster has {count}, and members cannot be removed yet: set members to {count}, or hibernate: true to stop them all"
            ),
        });
    }
    (0..wanted.max(count)).collect()
}

fn check_overrides(mqc: &MessageQueueCluster) -> Result<(), Blocker> {
    let Some(overrides) = &mqc.spec.pod else { return Ok(()) };
    serde_json::from_value::<PodTemplateSpec>(without_nulls(overrides)).map(|_| ()).map_err(|error| {
        invalid(format!(
            "pod is not a partial pod template: {error}; it may have metadata and spec, as in a Deployment's template"
        ))
    })
}

fn template(mqc: &MessageQueueCluster, settings: &Settings) -> Template {
    let spec = &mqc.spec;
    Template {
        image: image(mqc, settings),
        image_pull_policy: spec.image_pull_policy,
        image_pull_secrets: spec.image_pull_secrets.clone(),
        resources: resources(&spec.resources),
        topology_key: spec.placement.topology_key.clone(),
        when_unsatisfiable: spec.placement.when_unsatisfiable,
        amqp: spec.listeners.amqp.enabled,
        amqps: spec.listeners.amqps.enabled,
        overrides: spec.pod.clone(),
    }
}

/// A founded cluster that names no image keeps the one it runs, so that a new operator restarts nothing.
fn image(mqc: &MessageQueueCluster, settings: &Settings) -> String {
    let status = mqc.status_or_default();
    match (&mqc.spec.image, &mqc.spec.version, status.image) {
        (Some(image), _, _) => image.clone(),
        (None, Some(version), _) => format!("{}:{version}", without_tag(&settings.broker_image)),
        (None, None, Some(running)) if status.cluster_id.is_some() => running,
        (None, None, _) => settings.broker_image.clone(),
    }
}

/// `registry:5000/a/b:tag@sha256:…` without tag and digest.
fn without_tag(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    match name.rfind(':') {
        Some(colon) if !name[colon..].contains('/') => &name[..colon],
        _ => name,
    }
}

fn resources(spec: &ResourcesSpec) -> ResourceRequirements {
    let quantities = |map: &std::collections::BTreeMap<String, Value>| {
        (!map.is_empty()).then(|| {
            map.iter()
                .map(|(name, value)| {
                    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    (name.clone(), Quantity(text))
                })
                .collect()
        })
    };
    ResourceRequirements { claims: None, requests: quantities(&spec.requests), limits: quantities(&spec.limits) }
}

/// The size volumes are to have. One below a volume's capacity is refused, and the larger one kept.
fn storage_size(
    mqc: &MessageQueueCluster,
    observed: &Observed,
    blockers: &mut Vec<Blocker>,
) -> Result<Quantity, Blocker> {
    let asked = &mqc.spec.storage.size;
    let bytes = quantity_bytes(asked)
        .filter(|bytes| *bytes >= 1.0)
        .ok_or_else(|| invalid(format!("storage.size is '{asked}': write a quantity such as 10Gi")))?;
    // A volume made by hand may be larger than what was asked for, and a growth that failed smaller: neither counts.
    let floor = |volume: &VolumeFacts| {
        let sizes = [volume.capacity.clone()?, volume.requested.clone()?];
        let in_bytes = sizes.into_iter().filter_map(|text| Some((quantity_bytes(&text)?, text)));
        in_bytes.min_by(|a, b| a.0.total_cmp(&b.0))
    };
    let volumes = observed.members.values().filter_map(|m| floor(m.volume.as_ref()?));
    match volumes.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((present, text)) if bytes < present => {
            blockers.push(Blocker {
                reason: Reason::StorageNotShrinkable,
                message: format!("storage.size is {asked}, but a volume already has {text}, and volumes cannot shrink: set storage.size to {text} or more"),
            });
            Ok(Quantity(text))
        }
        _ => Ok(Quantity(asked.clone())),
    }
}

/// Bytes of a quantity; None if it is none.
pub fn quantity_bytes(text: &str) -> Option<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let factor = match &text[digits..] {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        _ => return None,
    };
    Some(number * factor)
}

/// A copy in which fields that are to be removed are absent.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect()
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::messagequeuecluster::observe::StatefulSetFacts;

    fn settings() -> Settings {
        Settings { broker_image: "registry:5000/holdfast/broker:dev".into(), controller_name: "c".into() }
    }

    fn mqc(spec: Value) -> MessageQueueCluster {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "holdfast.dev/v1alpha1", "kind": "MessageQueueCluster",
            "metadata": { "name": "demo", "namespace": "ns", "uid": "u" }, "spec": spec,
        }))
        .expect("a cluster")
    }

    fn check(spec: Value, observed: &Observed) -> Validation {
        validate(&mqc(spec), observed, &settings())
    }

    fn existing(count: u32, capacity: &str) -> Observed {
        let members = (0..count).map(|n| {
            let volume = VolumeFacts {
                requested: Some(capacity.into()),
                capacity: Some(capacity.into()),
                ..VolumeFacts::default()
            };
            let set = StatefulSetFacts::default();
            (n, MemberFacts { stateful_set: Some(set), volume: Some(volume), ..MemberFacts::default() })
        });
        Observed { members: members.collect(), ..Observed::default() }
    }

    #[test]
    fn the_defaults_make_three_members_of_three_replicas() {
        let found = check(serde_json::json!({}), &Observed::default());
        let cluster = found.cluster.expect("valid");
        assert_eq!((cluster.members, cluster.replication_factor), (vec![0, 1, 2], 3));
        assert_eq!(cluster.template.image, "registry:5000/holdfast/broker:dev");
        assert_eq!(found.blockers, vec![]);
    }

    #[test]
    fn each_refusal_says_what_to_write_instead() {
        let cases = [
            (serde_json::json!({"members": 1, "replication": {"factor": 3}}), Reason::InvalidSpec, "raise members"),
            (serde_json::json!({"pod": {"spec": {"containers": 7}}}), Reason::InvalidSpec, "partial pod template"),
            (serde_json::json!({"replication": {"minInSyncReplicas": 4}}), Reason::InvalidSpec, "set it to 3 or less"),
            (
                serde_json::json!({"members": 1, "replication": {"minInSyncReplicas": 2}}),
                Reason::InvalidSpec,
                "set it to 1 or less",
            ),
            (serde_json::json!({"members": 3}), Reason::MembersNotRemovable, "set members to 5"),
            (
                serde_json::json!({"members": 5, "storage": {"size": "1Gi"}}),
                Reason::StorageNotShrinkable,
                "20Gi or more",
            ),
        ];
        for (spec, reason, words) in cases {
            let found = check(spec.clone(), &existing(if reason == Reason::InvalidSpec { 0 } else { 5 }, "20Gi"));
            let said = found.blockers.iter().find(|b| b.reason == reason);
            assert!(said.is_some_and(|b| b.message.contains(words)), "{spec}: {:?}", found.blockers);
        }
    }

    #[test]
    fn volumes_that_are_left_of_a_larger_cluster_are_members_of_it() {
        let left = |count: u32, id: &str| {
            let mut observed = existing(count, "10Gi");
            for member in observed.members.values_mut() {
                member.stateful_set = None;
                member.volume.as_mut().expect("a volume").cluster_id = Some(id.into());
            }
            observed
        };
        let found = check(serde_json::json!({"members": 1}), &left(5, "c1"));
        assert_eq!(found.blockers.iter().map(|b| b.reason).collect::<Vec<_>>(), [Reason::MembersNotRemovable]);
        assert!(found.blockers[0].message.contains("set members to 5"), "{}", found.blockers[0].message);
        assert_eq!(found.cluster.expect("valid").members.len(), 5);
        // Volumes that no cluster ever wrote its id on, or another one did, are nobody's members.
        let mut blank = left(5, "c1");
        blank.members.values_mut().for_each(|m| m.volume.as_mut().expect("a volume").cluster_id = None);
        assert_eq!(check(serde_json::json!({}), &blank).blockers, vec![]);
        let mut founded = mqc(serde_json::json!({}));
        founded.status = serde_json::from_value(serde_json::json!({"clusterID": "c2"})).expect("a status");
        assert_eq!(validate(&founded, &left(5, "c1"), &settings()).blockers, vec![]);
    }

    #[test]
    fn a_refused_change_leaves_the_rest_of_the_cluster_as_it_is() {
        let found = check(serde_json::json!({"members": 3, "storage": {"size": "1Gi"}}), &existing(5, "20Gi"));
        let cluster = found.cluster.expect("still valid");
        assert_eq!(cluster.members.len(), 5);
        assert_eq!(cluster.storage_size.0, "20Gi");
    }

    #[test]
    fn a_volume_made_larger_than_asked_is_no_shrinking() {
        let mut observed = existing(3, "10Gi");
        for member in observed.members.values_mut() {
            if let Some(volume) = &mut member.volume {
                volume.capacity = Some("50Gi".into());
            }
        }
        let found = check(serde_json::json!({"storage": {"size": "10Gi"}}), &observed);
        assert_eq!(found.blockers, vec![]);
    }

    #[test]
    fn version_replaces_the_tag_and_a_founded_cluster_keeps_its_image() {
        let tagged = check(serde_json::json!({"version": "1.2"}), &Observed::default()).cluster.expect("valid");
        assert_eq!(tagged.template.image, "registry:5000/holdfast/broker:1.2");
        let mut founded = mqc(serde_json::json!({}));
        founded.status =
            serde_json::from_value(serde_json::json!({"clusterID": "c", "image": "old:1"})).expect("a status");
        let kept = validate(&founded, &Observed::default(), &settings()).cluster.expect("valid");
        assert_eq!(kept.template.image, "old:1");
    }

    /// An operator that renders the same members from other hashes restarts every cluster when it is installed. A field
    /// that is added to the template is left out of the hash while it has its default.
    #[test]
    fn what_members_are_rendered_from_has_the_hash_that_it_always_had() {
        let plain = check(serde_json::json!({"image": "b:1"}), &Observed::default()).cluster.expect("valid");
        let full = check(
            serde_json::json!({
                "image": "b:1", "imagePullPolicy": "Always", "imagePullSecrets": [{"name": "pull"}],
                "placement": {"zones": ["a"], "whenUnsatisfiable": "ScheduleAnyway"},
                "resources": {"limits": {"cpu": 2}}, "pod": {"spec": {"priorityClassName": "high"}},
            }),
            &Observed::default(),
        );
        let hashes = [plain.inputs(0, "leaf"), full.cluster.expect("valid").inputs(0, "leaf")];
        assert_eq!(hashes, ["3d52023f3aa02915", "9c5474d97378189e"]);
    }

    #[test]
    fn only_inputs_of_the_template_change_its_hash() {
        let base = check(serde_json::json!({}), &Observed::default()).cluster.expect("valid").inputs(0, "leaf");
        let same = [
            serde_json::json!({"members": 5}),
            serde_json::json!({"storage": {"size": "99Gi"}}),
            serde_json::json!({"health": {"intervalSeconds": 9, "failureThreshold": 4, "successThreshold": 2}}),
            serde_json::json!({"health": {"replaceAfterSeconds": 60}}),
            serde_json::json!({"rollout": {"smallQueueWaitSeconds": 1, "drainSeconds": 9}}),
            serde_json::json!({"replication": {"factor": 1, "minInSyncReplicas": 1}}),
            serde_json::json!({"hibernate": true}),
        ];
        for spec in same {
            let cluster = check(spec.clone(), &Observed::default()).cluster.expect("valid");
            assert_eq!(cluster.inputs(0, "leaf"), base, "{spec}");
        }
        let other = [
            serde_json::json!({"image": "x:1"}),
            serde_json::json!({"resources": {"limits": {"cpu": 2}}}),
            serde_json::json!({"listeners": {"amqp": {"enabled": false}}}),
            serde_json::json!({"placement": {"zones": ["a"]}}),
        ];
        for spec in other {
            let cluster = check(spec.clone(), &Observed::default()).cluster.expect("valid");
            assert_ne!(cluster.inputs(0, "leaf"), base, "{spec}");
        }
    }
}
