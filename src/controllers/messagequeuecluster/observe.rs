//! Step 1: read what is there, from the API server and from every broker, and keep only the facts that later steps use.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use futures::future::{join_all, try_join, try_join4};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod, Secret, Taint, Toleration},
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Resource, ResourceExt, api::ListParams};

use super::{
    super::{Context, Doing, Error},
    validate::Blocker,
};
use crate::{
    api::v1alpha1::{
        BROKER_CONTAINER, CLUSTER_ID_ANNOTATION, FOUNDER_ANNOTATION, INPUTS_ANNOTATION, MEMBER_LABEL,
        MEMBER_UUID_ANNOTATION, MessageQueueCluster, Names, SERVING_LABEL,
    },
    broker_admin::{AdminError, Door, Health},
    certificates::KeyedCertificate,
};

pub mod backups;
mod brokers;
pub mod restore;

pub use brokers::{Memory, ask_again, brokers_of};

/// Everything a pass knows.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub members: BTreeMap<u32, MemberFacts>,
    pub secrets: SecretFacts,
    /// Why a volume cannot be made, if its storage class is the reason.
    pub storage_class_problem: Option<String>,
    /// What belonged to an earlier object of this name, or is on its way out: `PersistentVolumeClaim data-demo-0-0`, ….
    pub leftovers: Vec<String>,
    /// Since when no broker that answers has been in touch with a majority, as far as this operator has seen.
    pub quorum_lost_since: Option<Timestamp>,
    /// When a forced recovery was last looked at in vain, and why.
    pub recovery_held: Option<(Timestamp, Blocker)>,
    /// The backup that the cluster is to begin with, while it has not begun.
    pub restore: Option<restore::RestoreFacts>,
    /// The schedules of its backups.
    pub schedules: Vec<backups::ScheduleFacts>,
}

/// What is there of one member.
#[derive(Clone, Debug, Default)]
pub struct MemberFacts {
    pub stateful_set: Option<StatefulSetFacts>,
    pub has_config: bool,
    pub pod: Option<PodFacts>,
    pub volume: Option<VolumeFacts>,
    /// What the broker says of itself; None when there is no pod to ask.
    pub answer: Option<Result<Health, AdminError>>,
    pub silent_since: Option<Timestamp>,
    pub door: Option<Door>,
    /// Answers since the last silence.
    pub answers_in_row: u32,
    /// What a broker said last that has been silent for less than `health` puts up with, while its pod is Ready. Nothing
    /// is decided by it: it keeps conditions from flapping.
    pub recent: Option<Health>,
    /// Since when there has been no pod, as far as this operator has seen.
    pub podless_since: Option<Timestamp>,
    /// When the pod was last asked to hand its leaders away, and how many it had to keep.
    pub kept_leaders: Option<(Timestamp, u64)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatefulSetFacts {
    pub inputs: Option<String>,
    pub replicas: i32,
    /// The size in its volume template, which never changes.
    pub claim_size: Option<String>,
}

/// A pod, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    pub name: String,
    pub uid: String,
    pub ip: Option<IpAddr>,
    pub inputs: Option<String>,
    pub node: Option<String>,
    /// The node's zone, by `placement.topologyKey`; None when the node has no such label or cannot be read.
    pub zone: Option<String>,
    /// Is the node about to lose its pods (cordoned, or tainted NoExecute)?
    pub node_going: bool,
    /// Since when the node's kubelet has not been heard.
    pub node_unreachable_since: Option<Timestamp>,
    /// Is the pod being deleted?
    pub going: bool,
    pub ready: bool,
    /// Does the broker's container run?
    pub running: bool,
    pub created: Option<Timestamp>,
    pub serving: bool,
    /// Reason and message of a container that waits, such as `ImagePullBackOff`.
    pub waiting: Option<(String, String)>,
    /// The scheduler's words, when it finds no node.
    pub unschedulable: Option<String>,
}

/// What a container waits for that is no good by itself.
const FAILURES: [&str; 8] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];
/// Longer than volumes and images take as a rule. A pod that is not up by then may lack something that its template
/// names; should it only be slow, it loses nothing by being made anew.
const STARTS_WITHIN: Duration = Duration::from_secs(60);

impl PodFacts {
    /// Does the broker not run because of what its template says? It does not get better by waiting.
    pub fn template_fails(&self) -> bool {
        !self.running && self.waiting.as_ref().is_some_and(|(reason, _)| FAILURES.contains(&reason.as_str()))
    }

    /// Is there no broker to lose, now or soon?
    pub fn cannot_run(&self, now: Timestamp) -> bool {
        let late = self.created.is_some_and(|at| now.duration_since(at).unsigned_abs() >= STARTS_WITHIN);
        let waits = self.unschedulable.is_some() || (self.waiting.is_some() && late);
        !self.running && (self.template_fails() || waits)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeFacts {
    /// The version of the claim that was read.
    pub version: Option<String>,
    pub requested: Option<String>,
    pub capacity: Option<String>,
    pub cluster_id: Option<String>,
    pub founder: Option<String>,
    /// The data directory on it that belonged to the cluster, last seen.
    pub member_uuid: Option<String>,
    pub bound: bool,
}

/// The Secrets, whole: they are read by name and written again unchanged.
#[derive(Clone, Debug, Default)]
pub struct SecretFacts {
    pub authority: Option<Secret>,
    pub tls: Option<Secret>,
    pub user: Option<Secret>,
    pub identity: Option<Secret>,
}

impl MemberFacts {
    /// What the broker says, if it says anything.
    pub fn health(&self) -> Option<&Health> {
        self.answer.as_ref()?.as_ref().ok()
    }

    /// Started, in touch, and its pod Ready.
    pub fn is_ready(&self) -> bool {
        self.health().is_some_and(|h| h.ready) && self.pod.as_ref().is_some_and(|p| p.ready && !p.going)
    }
}

impl Observed {
    /// The answers, by member number.
    pub fn health(&self) -> impl Iterator<Item = (u32, &Health)> {
        self.members.iter().filter_map(|(n, m)| Some((*n, m.health()?)))
    }

    /// A broker that is in touch with a majority; the metadata's leader if it answers.
    pub fn spokesman(&self) -> Option<(u32, &Health)> {
        let in_touch = || self.health().filter(|(_, h)| h.quorum);
        in_touch().find(|(_, h)| h.metadata_leader.as_deref() == Some(&h.name)).or_else(|| in_touch().next())
    }
}

impl Observed {
    /// As this, but a broker that was silent for a moment counts with what it said last: what conditions are made from.
    pub fn forgiving(&self) -> Self {
        let mut seen = self.clone();
        for member in seen.members.values_mut() {
            if let (Some(Err(_)), Some(recent)) = (&member.answer, member.recent.take()) {
                member.answer = Some(Ok(recent));
            }
        }
        seen
    }

    /// Why no certificate can be signed that running brokers would trust, if so. They read their authority at start, so
    /// another one must not be made, nor used, while any pod is there.
    pub fn authority_lost(&self) -> Option<&'static str> {
        if self.members.values().all(|m| m.pod.is_none()) {
            return None;
        }
        let trusted = self.secrets.tls.as_ref().and_then(|secret| text(secret, "ca.crt"));
        match (&self.secrets.authority, self.secrets.usable_authority()) {
            (None, _) => Some("is missing"),
            (Some(_), None) => Some("does not hold a certificate and its key"),
            (_, Some(found)) if trusted.is_some_and(|trusted| trusted != found.certificate) => {
                Some("holds another authority than the one that the brokers trust")
            }
            _ => None,
        }
    }
}

impl SecretFacts {
    /// The authority, if it can sign.
    pub fn usable_authority(&self) -> Option<KeyedCertificate> {
        self.authority.as_ref().and_then(keyed_certificate).filter(KeyedCertificate::is_usable)
    }
}

/// One field of a Secret, as text.
pub fn text(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

/// Reads everything. Brokers that do not answer are facts, not errors.
pub async fn observe(ctx: &Context, mqc: &MessageQueueCluster, now: Timestamp) -> Result<Observed, Error> {
    let names = mqc.names();
    let uid = mqc.uid().unwrap_or_default();
    let (mut observed, secrets) =
        try_join(children(ctx, &names, &uid, &mqc.spec.placement.topology_key), read_secrets(ctx, &names)).await?;
    observed.secrets = observed.own_secrets(secrets, &uid);
    if observed.members.values().any(|m| m.volume.as_ref().is_some_and(|v| !v.bound)) {
        observed.storage_class_problem = storage_class_problem(ctx, mqc).await;
    }
    brokers::ask(ctx, mqc, &mut observed, now).await?;
    observed.restore = restore::observe(ctx, mqc, &observed).await?;
    observed.schedules = backups::observe(ctx, mqc, now).await?;
    Ok(observed)
}

async fn children(ctx: &Context, names: &Names, uid: &str, topology_key: &str) -> Result<Observed, Error> {
    let own = ListParams::default().labels(&names.selector_string());
    let client = || ctx.client.clone();
    let (sets, configs, pods, volumes) = (
        Api::<StatefulSet>::namespaced(client(), &names.namespace),
        Api::<ConfigMap>::namespaced(client(), &names.namespace),
        Api::<Pod>::namespaced(client(), &names.namespace),
        Api::<PersistentVolumeClaim>::namespaced(client(), &names.namespace),
    );
    let (sets, configs, pods, volumes) =
        try_join4(sets.list(&own), configs.list_metadata(&own), pods.list(&own), volumes.list(&own))
            .await
            .doing(|| format!("cannot list what belongs to {}", names.cluster))?;

    let mut observed = Observed::default();
    let mut own_sets = BTreeSet::new();
    for set in sets {
        if observed.is_own(&set, uid)
            && let Some(number) = number_of(&set.metadata)
        {
            own_sets.insert(set.uid().unwrap_or_default());
            observed.member(number).stateful_set = Some(stateful_set_facts(&set));
        }
    }
    for config in configs.into_iter().filter(|c| !is_of_another(&c.metadata, uid)) {
        if let Some(number) = number_of(&config.metadata) {
            observed.member(number).has_config = true;
        }
    }
    for volume in volumes {
        if observed.is_own(&volume, uid)
            && let Some(number) = number_of(&volume.metadata)
        {
            observed.member(number).volume = Some(volume_facts(&volume));
        }
    }
    let orphaned = |pod: &&Pod| controller_of(&pod.metadata).is_some_and(|set| !own_sets.contains(set));
    observed.leftovers.extend(pods.iter().filter(orphaned).map(described));
    for (number, pod) in by_member(ctx, pods.items, topology_key).await {
        observed.member(number).pod = Some(pod);
    }
    Ok(observed)
}

impl Observed {
    fn member(&mut self, number: u32) -> &mut MemberFacts {
        self.members.entry(number).or_default()
    }

    /// Notes what is not, or not for long. A volume that is going away still has what is on it, so it counts as there.
    fn is_own<K: Resource<DynamicType = ()>>(&mut self, object: &K, uid: &str) -> bool {
        let of_another = is_of_another(object.meta(), uid);
        if of_another || object.meta().deletion_timestamp.is_some() {
            self.leftovers.push(described(object));
        }
        !of_another
    }

    fn own_secrets(&mut self, secrets: SecretFacts, uid: &str) -> SecretFacts {
        let mut own = |secret: Option<Secret>| secret.filter(|s| self.is_own(s, uid));
        SecretFacts {
            authority: own(secrets.authority),
            tls: own(secrets.tls),
            user: own(secrets.user),
            identity: own(secrets.identity),
        }
    }
}

fn described<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{} {}", K::kind(&()), object.name_any())
}

fn controller_of(meta: &ObjectMeta) -> Option<&str> {
    let owner = meta.owner_references.iter().flatten().find(|o| o.controller == Some(true))?;
    Some(&owner.uid)
}

/// Only the pods, read anew.
async fn pods(ctx: &Context, names: &Names, topology_key: &str) -> Result<BTreeMap<u32, PodFacts>, Error> {
    let api = Api::<Pod>::namespaced(ctx.client.clone(), &names.namespace);
    let own = ListParams::default().labels(&names.selector_string());
    let pods = api.list(&own).await.doing(|| format!("cannot list the pods of {}", names.cluster))?;
    Ok(by_member(ctx, pods.items, topology_key).await)
}

async fn by_member(ctx: &Context, pods: Vec<Pod>, topology_key: &str) -> BTreeMap<u32, PodFacts> {
    let nodes = read_nodes(ctx, &pods).await;
    pods.iter().filter_map(|pod| Some((number_of(&pod.metadata)?, pod_facts(pod, &nodes, topology_key)))).collect()
}

fn number_of(meta: &ObjectMeta) -> Option<u32> {
    meta.labels.as_ref()?.get(MEMBER_LABEL)?.parse().ok()
}

/// Is this a leftover of an earlier cluster of that name, which the garbage collector is about to take? It counts as
/// absent: what is in it goes with it.
fn is_of_another(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner != uid)
}

async fn read_secrets(ctx: &Context, names: &Names) -> Result<SecretFacts, Error> {
    let api = Api::<Secret>::namespaced(ctx.client.clone(), &names.namespace);
    let (ca, tls_name, user_name, identity_name) =
        (names.authority_secret(), names.tls_secret(), names.user_secret(), names.identity_secret());
    let (authority, tls, user, identity) =
        try_join4(api.get_opt(&ca), api.get_opt(&tls_name), api.get_opt(&user_name), api.get_opt(&identity_name))
            .await
            .doing(|| format!("cannot read the Secrets of {}", names.cluster))?;
    let read = [(&ca, &authority), (&tls_name, &tls), (&user_name, &user), (&identity_name, &identity)];
    for (name, secret) in read {
        ctx.applied.read_secret(&names.namespace, name, secret.as_ref());
    }
    Ok(SecretFacts { authority, tls, user, identity })
}

/// Nodes may be unreadable where the operator has no cluster-wide rights: then zones are unknown, and nothing fails.
async fn read_nodes(ctx: &Context, pods: &[Pod]) -> BTreeMap<String, Node> {
    let wanted: BTreeSet<&str> = pods.iter().filter_map(|p| p.spec.as_ref()?.node_name.as_deref()).collect();
    let api = Api::<Node>::all(ctx.client.clone());
    let found = join_all(wanted.into_iter().map(|name| {
        let api = &api;
        async move {
            match api.get_opt(name).await {
                Ok(node) => Some((name.to_owned(), node?)),
                Err(error) => {
                    tracing::debug!(node = name, %error, "cannot read a node; its zone counts as unknown");
                    None
                }
            }
        }
    }));
    found.await.into_iter().flatten().collect()
}

fn stateful_set_facts(set: &StatefulSet) -> StatefulSetFacts {
    StatefulSetFacts {
        inputs: set.annotations().get(INPUTS_ANNOTATION).cloned(),
        replicas: set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1),
        claim_size: set
            .spec
            .as_ref()
            .and_then(|s| s.volume_claim_templates.as_ref()?.first()?.spec.as_ref()?.resources.as_ref())
            .and_then(|r| r.requests.as_ref()?.get("storage"))
            .map(|q| q.0.clone()),
    }
}

fn volume_facts(volume: &PersistentVolumeClaim) -> VolumeFacts {
    let requested = volume.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let capacity = volume.status.as_ref().and_then(|s| s.capacity.as_ref());
    VolumeFacts {
        requested: requested.and_then(|r| r.get("storage")).map(|q| q.0.clone()),
        capacity: capacity.and_then(|c| c.get("storage")).map(|q| q.0.clone()),
        cluster_id: volume.annotations().get(CLUSTER_ID_ANNOTATION).cloned(),
        version: volume.resource_version(),
        founder: volume.annotations().get(FOUNDER_ANNOTATION).cloned(),
        member_uuid: volume.annotations().get(MEMBER_UUID_ANNOTATION).cloned(),
        bound: volume.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Bound")),
    }
}

fn pod_facts(pod: &Pod, nodes: &BTreeMap<String, Node>, topology_key: &str) -> PodFacts {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let node_name = spec.and_then(|s| s.node_name.clone());
    let node = node_name.as_ref().and_then(|name| nodes.get(name));
    let condition =
        |type_: &str| status.and_then(|s| s.conditions.as_ref()).and_then(|all| all.iter().find(|c| c.type_ == type_));
    let container = status
        .and_then(|s| s.container_statuses.as_ref())
        .and_then(|all| all.iter().find(|c| c.name == BROKER_CONTAINER))
        .and_then(|c| c.state.as_ref());
    let waiting = container.and_then(|s| s.waiting.as_ref());
    PodFacts {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        ip: status.and_then(|s| s.pod_ip.as_deref()).and_then(|ip| ip.parse().ok()),
        inputs: pod.annotations().get(INPUTS_ANNOTATION).cloned(),
        zone: node.and_then(|n| n.labels().get(topology_key).cloned()),
        node_going: node.is_some_and(|node| node_is_going(node, pod)),
        node_unreachable_since: node.and_then(unreachable_since),
        node: node_name,
        going: pod.metadata.deletion_timestamp.is_some(),
        created: pod.creation_timestamp().map(|at| at.0),
        ready: condition("Ready").is_some_and(|c| c.status == "True"),
        running: container.is_some_and(|s| s.running.is_some()),
        serving: pod.labels().get(SERVING_LABEL).is_some_and(|v| v == "true"),
        waiting: waiting.map(|w| (w.reason.clone().unwrap_or_default(), w.message.clone().unwrap_or_default())),
        unschedulable: condition("PodScheduled")
            .filter(|c| c.status == "False")
            .map(|c| c.message.clone().unwrap_or_else(|| "no node fits".into())),
    }
}

/// Cordoned, or with a taint that puts this pod off. A taint that the pod tolerates for good is how nodes are kept for it.
fn node_is_going(node: &Node, pod: &Pod) -> bool {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    let stays = |taint: &Taint| tolerations.iter().any(|t| t.toleration_seconds.is_none() && tolerates(t, taint));
    let spec = node.spec.as_ref();
    let taints = spec.and_then(|s| s.taints.as_deref()).unwrap_or_default();
    spec.and_then(|s| s.unschedulable).unwrap_or(false)
        || taints.iter().any(|taint| taint.effect == "NoExecute" && !stays(taint))
}

fn unreachable_since(node: &Node) -> Option<Timestamp> {
    let conditions = node.status.as_ref()?.conditions.as_deref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status != "True")?;
    ready.last_transition_time.as_ref().map(|at| at.0)
}

/// As Kubernetes matches them: a toleration without effect is for every effect, one without key (and with Exists) for
/// every taint.
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(str::to_owned);
    given(&toleration.effect).is_none_or(|effect| effect == taint.effect)
        && given(&toleration.key).is_none_or(|key| key == taint.key)
        && match toleration.operator.as_deref() {
            Some("Exists") => true,
            _ => given(&toleration.key).is_some() && given(&toleration.value) == given(&taint.value),
        }
}

/// None when the class is there, or when that cannot be found out.
async fn storage_class_problem(ctx: &Context, mqc: &MessageQueueCluster) -> Option<String> {
    let api = Api::<StorageClass>::all(ctx.client.clone());
    match &mqc.spec.storage.storage_class_name {
        Some(name) => match api.get_opt(name).await {
            Ok(None) => Some(format!(
                "storage class '{name}' does not exist: create it, or apply the cluster anew with another storage.storageClassName"
            )),
            _ => None,
        },
        None => {
            let classes = api.list_metadata(&ListParams::default()).await.ok()?;
            let is_default = |meta: &ObjectMeta| {
                meta.annotations
                    .as_ref()
                    .is_some_and(|a| a.get("storageclass.kubernetes.io/is-default-class").is_some_and(|v| v == "true"))
            };
            (!classes.iter().any(|class| is_default(&class.metadata))).then(|| {
                "the Kubernetes cluster has no default storage class: set storage.storageClassName, or mark a class as default".into()
            })
        }
    }
}

/// What a cluster's authority is called; signing needs the same name again.
pub fn authority_name(mqc: &MessageQueueCluster) -> String {
    let names = mqc.names();
    format!("{}/{}", names.namespace, names.cluster)
}

/// Certificate and key of a TLS Secret.
pub fn keyed_certificate(secret: &Secret) -> Option<KeyedCertificate> {
    Some(KeyedCertificate { certificate: text(secret, "tls.crt")?, key: text(secret, "tls.key")? })
}
