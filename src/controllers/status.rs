//! What every kind's last step does: one patch of the status, and Events.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    core::NamespaceResourceScope,
    runtime::events::{Event, EventType},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{Context, Doing, Error};
use crate::api::v1alpha1::{Reason, STATUS_MANAGER};

/// Writes the whole status. An object that is gone needs none.
pub async fn write_status<K, S: Serialize>(ctx: &Context, object: &K, status: &S) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let api = Api::<K>::namespaced(ctx.client.clone(), &object.namespace().unwrap_or_default());
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": object.name_any() },
        "status": status,
    });
    let params = PatchParams::apply(STATUS_MANAGER).force();
    match api.patch_status(&object.name_any(), &params, &Patch::Apply(patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(|_| ()).doing(|| format!("cannot write the status of {}", object.name_any())),
    }
}

/// Publishes an Event; one that is lost is no reason to stop.
pub async fn announce(ctx: &Context, about: &ObjectReference, type_: EventType, reason: Reason, note: &str) {
    publish(ctx, about, event(type_, &reason.to_string(), note)).await;
}

pub async fn publish(ctx: &Context, about: &ObjectReference, event: Event) {
    if let Err(error) = ctx.recorder.publish(&event, about).await {
        tracing::debug!(%error, "cannot publish an Event");
    }
}

/// An Event of the operator.
pub fn event(type_: EventType, reason: &str, note: &str) -> Event {
    // The API server takes 1 kB.
    let note = note.chars().take(1000).collect();
    Event { type_, reason: reason.into(), note: Some(note), action: "Reconcile".into(), secondary: None }
}
