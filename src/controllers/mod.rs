//! One module a kind. What they share: the context of a reconcile and its errors.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use kube::{Api, Client, Resource, ResourceExt, core::NamespaceResourceScope, runtime::events::Recorder};
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::{
    api::v1alpha1::MessageQueueCluster, broker_admin::BrokerAdmin, certificates::CertificateError, telemetry::Telemetry,
};

pub mod conditions;
pub mod messagequeuebackup;
pub mod messagequeuebackupschedule;
pub mod messagequeuecluster;
mod status;

/// The controller name of objects that name none.
pub const DEFAULT_CONTROLLER_NAME: &str = "holdfast.dev/operator";

/// Between a pass that failed and the next one.
const RETRY: Duration = Duration::from_secs(3);

/// Objects that are remembered at a time.
const MEMORY_LIMIT: usize = 1000;

/// What the operator was started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The broker image of clusters that name none.
    pub broker_image: String,
    /// Only objects with this `spec.controllerName` are looked after.
    pub controller_name: String,
}

/// What every reconcile shares. Everything in it may be lost without harm: it only saves calls.
pub struct Context {
    pub client: Client,
    pub brokers: Arc<dyn BrokerAdmin>,
    pub settings: Settings,
    pub recorder: Recorder,
    pub telemetry: Arc<Telemetry>,
    pub memory: Mutex<HashMap<String, messagequeuecluster::Memory>>,
    pub applied: messagequeuecluster::AppliedCache,
    /// The clock; tests set their own.
    pub clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Context {
    /// Is the cluster this operator's business, and what belongs to it?
    pub fn looks_after(&self, cluster: &MessageQueueCluster) -> bool {
        cluster.is_for(&self.settings.controller_name, DEFAULT_CONTROLLER_NAME)
    }

    /// The object as it is now; none if it is gone. What starts a pass comes out of a cache that may lag behind the status
    /// that the pass before it wrote: whoever acts on that does the same thing twice.
    pub async fn fresh<K>(&self, cached: &K) -> Result<Option<K>, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let (namespace, name) = (cached.namespace().unwrap_or_default(), cached.name_any());
        let found = Api::<K>::namespaced(self.client.clone(), &namespace).get_opt(&name).await;
        found.doing(|| format!("cannot read {} {name}", K::kind(&())))
    }

    /// Objects of a kind in one namespace, or in all.
    pub fn scoped<K>(&self, namespace: Option<&str>) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// What is remembered about the object with this UID.
    pub fn remembered<T>(&self, uid: &str, with: impl FnOnce(&mut messagequeuecluster::Memory) -> T) -> T {
        let mut memory = self.memory.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Objects that are gone leave their entries behind.
        if memory.len() >= MEMORY_LIMIT && !memory.contains_key(uid) {
            memory.clear();
        }
        with(memory.entry(uid.to_owned()).or_default())
    }
}

/// A reconcile that could not finish; it is tried again with back-off.
#[derive(Debug, Error)]
pub enum Error {
    #[error("{doing}: {source}")]
    Api {
        doing: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("the API server answered with an object that is not understood ({what}): {source}")]
    Malformed { what: &'static str, source: serde_json::Error },
    #[error(transparent)]
    Certificates(#[from] CertificateError),
    #[error(transparent)]
    Admin(#[from] crate::broker_admin::AdminError),
}

/// Says what was being done when the API server refused.
pub trait Doing<T> {
    /// `doing` reads as "cannot …".
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, kube::Error> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Api { doing: doing(), source: Box::new(source) })
    }
}
