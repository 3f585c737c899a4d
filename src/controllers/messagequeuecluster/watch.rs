//! What starts a pass: a change of a cluster object, or of anything that belongs to one.
//!
//! Children are watched as metadata only, and not kept: a pass reads what it needs. So memory does not grow with pods.
//! Secrets are not watched: that would need the right to list them all. Each pass reads its own by name.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt, stream::SelectAll};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Resource,
    core::PartialObjectMeta,
    runtime::{
        Controller, WatchStreamExt, controller,
        reflector::ObjectRef,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

use super::{super::Context, after_error, reconcile};
use crate::api::v1alpha1::{MANAGER, MessageQueueCluster};

/// Bursts of events of one cluster become one pass.
const DEBOUNCE: Duration = Duration::from_millis(150);
/// Clusters that are worked on at the same time.
const CONCURRENCY: u16 = 8;

type Triggers = SelectAll<futures::stream::BoxStream<'static, ObjectRef<MessageQueueCluster>>>;

/// Looks after every cluster in `namespace`, or in all, until `shutdown`.
pub async fn run(
    ctx: Arc<Context>,
    namespace: Option<String>,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let clusters: Api<MessageQueueCluster> = scoped(&ctx, namespace.as_deref());
    Controller::new(clusters, watcher::Config::default().any_semantic())
        .with_config(controller::Config::default().debounce(DEBOUNCE).concurrency(CONCURRENCY))
        .reconcile_on(children(&ctx, namespace.as_deref()))
        .graceful_shutdown_on(shutdown)
        .run(reconcile, after_error, ctx)
        .for_each(|result| async move {
            if let Err(controller::Error::QueueError(error)) = result {
                tracing::warn!(%error, "cannot watch MessageQueueClusters");
            }
        })
        .await;
}

fn scoped<K>(ctx: &Context, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(ctx.client.clone(), namespace),
        None => Api::all(ctx.client.clone()),
    }
}

fn children(ctx: &Arc<Context>, namespace: Option<&str>) -> Triggers {
    let mut triggers = SelectAll::new();
    triggers.push(child::<StatefulSet>(ctx, namespace).boxed());
    triggers.push(child::<Pod>(ctx, namespace).boxed());
    triggers.push(child::<Service>(ctx, namespace).boxed());
    triggers.push(child::<ServiceAccount>(ctx, namespace).boxed());
    triggers.push(child::<ConfigMap>(ctx, namespace).boxed());
    triggers.push(child::<PersistentVolumeClaim>(ctx, namespace).boxed());
    triggers.push(child::<PodDisruptionBudget>(ctx, namespace).boxed());
    triggers
}

/// The clusters whose children of kind `K` change. Cached writes of such a child are forgotten first.
fn child<K>(ctx: &Arc<Context>, namespace: Option<&str>) -> impl Stream<Item = ObjectRef<MessageQueueCluster>> + use<K>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let ours = watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={MANAGER}")).any_semantic();
    let ctx = ctx.clone();
    watcher(scoped::<PartialObjectMeta<K>>(&ctx, namespace), ours).default_backoff().filter_map(move |event| {
        let seen = match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => Some((object, false)),
            Ok(Event::Delete(object)) => Some((object, true)),
            Ok(Event::Init | Event::InitDone) => None,
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "cannot watch");
                None
            }
        };
        let owner = seen.and_then(|(object, gone)| {
            ctx.applied.saw(&object, gone);
            owner(&object)
        });
        std::future::ready(owner)
    })
}

/// By label, since pods and volumes have other owners.
fn owner<K>(object: &PartialObjectMeta<K>) -> Option<ObjectRef<MessageQueueCluster>> {
    let name = object.metadata.labels.as_ref()?.get("app.kubernetes.io/instance")?;
    Some(ObjectRef::new(name).within(object.metadata.namespace.as_deref()?))
}
