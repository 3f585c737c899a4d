//! What is written on the volumes of a cluster: whose they are, before any broker hears of it.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::{Map, json};

use super::{
    super::{
        observe::Observed,
        plan::{Latch, Plan},
        validate::ValidatedCluster,
    },
    Object,
};
use crate::api::v1alpha1::{CLUSTER_ID_ANNOTATION, DeletionPolicy, FOUNDER_ANNOTATION, MEMBER_UUID_ANNOTATION};

/// One object for each volume that exists. With `deletionPolicy: Delete` the volumes go when the cluster goes.
pub fn objects(cluster: &ValidatedCluster, observed: &Observed, plan: &Plan) -> Vec<Object> {
    let Some(id) = plan.latch.cluster_id() else { return Vec::new() };
    let owner = cluster.owner.clone().filter(|_| cluster.deletion_policy == DeletionPolicy::Delete);
    let existing = observed.members.iter().filter_map(|(n, m)| Some((*n, m.volume.as_ref()?)));
    existing
        .map(|(number, volume)| {
            let mut annotations = Map::from_iter([(CLUSTER_ID_ANNOTATION.to_owned(), json!(id))]);
            let founder = match &plan.latch {
                Latch::Record { founder: Some(founder), .. } => Some(format!("{}/{}", founder.member, founder.uuid)),
                _ => volume.founder.clone(),
            };
            if let Some(founder) = founder {
                annotations.insert(FOUNDER_ANNOTATION.into(), json!(founder));
            }
            let joined =
                observed.members.get(&number).and_then(|m| m.health()).filter(|h| h.cluster_id.as_deref() == Some(id));
            if let Some(uuid) = joined.map(|h| h.member_uuid.clone()).or_else(|| volume.member_uuid.clone()) {
                annotations.insert(MEMBER_UUID_ANNOTATION.into(), json!(uuid));
            }
            let labels = cluster.names.member_labels(number);
            let name = cluster.names.volume(number);
            let mut object = Object::new::<PersistentVolumeClaim>(&cluster.names, &owner, name, labels, json!({}));
            // An operator that was paused since it looked must not write over what its successor has recorded.
            if let (Latch::Record { .. }, Some(version)) = (&plan.latch, &volume.version) {
                object.body["metadata"]["resourceVersion"] = json!(version);
            }
            object.annotated(annotations.into())
        })
        .collect()
}
