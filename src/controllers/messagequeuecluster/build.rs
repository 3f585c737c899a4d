//! Step 4: from the plan to whole objects. Pure but for fresh keys and passwords.
//!
//! One file for each kind of child. An object is built as the JSON that is applied: it holds the fields that this
//! operator manages and nothing else, which is what server-side apply wants.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, api::ApiResource};
use serde_json::{Value, json};

use super::{
    super::Error,
    observe::Observed,
    plan::Plan,
    validate::{ValidatedCluster, Validation},
};
use crate::api::v1alpha1::{MessageQueueCluster, Names};

mod loader;
mod member;
mod merge;
mod secrets;
mod services;
mod volumes;

pub use secrets::Secrets;

/// An object to apply.
#[derive(Clone, Debug)]
pub struct Object {
    pub resource: ApiResource,
    pub name: String,
    pub body: Value,
}

/// Everything this pass applies, in the order in which it is applied.
#[derive(Debug, Default)]
pub struct Children {
    pub namespace: String,
    /// Accounts, Services, Secrets, the disruption budget.
    pub shared: Vec<Object>,
    /// ConfigMap and StatefulSet of the members whose turn it is.
    pub members: Vec<Object>,
    /// Annotations and owners of volumes that exist.
    pub volumes: Vec<Object>,
    pub secrets: Option<Secrets>,
    /// What volumes are to grow (or fall back) to, by volume name.
    pub grow: BTreeMap<String, String>,
    /// Jobs that bring a backup to the founder.
    pub loaders: Vec<Object>,
    /// What the founder is asked, if it is asked.
    pub bootstrap: Option<crate::broker_admin::Bootstrap>,
}

/// Builds what the plan asks for. Nothing, when hands are to be kept off.
pub fn build(
    mqc: &MessageQueueCluster,
    validation: &Validation,
    observed: &Observed,
    plan: &Plan,
    now: Timestamp,
) -> Result<Children, Error> {
    let Some(cluster) = validation.cluster.as_ref().filter(|_| !plan.hands_off) else {
        return Ok(Children { namespace: mqc.namespace_or_default(), ..Children::default() });
    };
    let secrets = secrets::settle(cluster, observed, plan, now)?;
    let mut shared = vec![services::account(cluster), services::nodes(cluster), services::clients(cluster)];
    shared.extend(services::disruption_budget(cluster));
    shared.extend(secrets.objects(cluster, plan));
    let members = plan.write.iter().flat_map(|n| member::objects(cluster, observed, *n, plan.leaf.id()));
    let bootstrap = match &plan.latch {
        super::plan::Latch::Found { cluster_id, .. } => Some(crate::broker_admin::Bootstrap {
            cluster_id: cluster_id.clone(),
            members: super::plan::expected_members(cluster, observed),
            user: secrets.user.clone(),
            default_replication_factor: cluster.replication_factor,
            default_min_in_sync_replicas: cluster.min_in_sync_replicas,
        }),
        _ => None,
    };
    let loaders = match (&plan.latch, &plan.restore) {
        (super::plan::Latch::Found { member, .. }, Some(restore)) => loader::objects(cluster, restore, *member),
        _ => Vec::new(),
    };
    Ok(Children {
        namespace: cluster.names.namespace.clone(),
        loaders,
        members: members.collect(),
        volumes: volumes::objects(cluster, observed, plan),
        grow: plan.grow.iter().map(|n| (cluster.names.volume(*n), cluster.storage_size.0.clone())).collect(),
        bootstrap,
        shared,
        secrets: Some(secrets),
    })
}

impl Object {
    /// An object of type `K` with the usual metadata; `fields` are its top-level fields beside those.
    fn new<K: Resource<DynamicType = ()>>(
        names: &Names,
        owner: &Option<OwnerReference>,
        name: String,
        labels: BTreeMap<String, String>,
        fields: Value,
    ) -> Self {
        let mut metadata = json!({ "name": name, "namespace": names.namespace, "labels": labels });
        if let Some(owner) = owner {
            metadata["ownerReferences"] = json!([owner]);
        }
        let mut body = json!({ "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": metadata });
        if let (Value::Object(body), Value::Object(fields)) = (&mut body, fields) {
            body.extend(fields);
        }
        Self { resource: ApiResource::erase::<K>(&()), name, body }
    }

    /// With annotations.
    fn annotated(mut self, annotations: Value) -> Self {
        self.body["metadata"]["annotations"] = annotations;
        self
    }
}

/// For a child of the whole cluster.
fn shared<K: Resource<DynamicType = ()>>(cluster: &ValidatedCluster, name: String, fields: Value) -> Object {
    Object::new::<K>(&cluster.names, &cluster.owner, name, cluster.names.labels(), fields)
}
