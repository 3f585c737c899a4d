//! The brokers of a cluster under test: their endpoints for clients, and their admin API for questions about leaders.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::forward::Forwards;
use crate::kubernetes::{Kubernetes, Pod, run};
use crate::load::Endpoints;

/// Port of AMQP without TLS.
pub const AMQP_PORT: u16 = 5672;
/// Port of the admin API.
pub const ADMIN_PORT: u16 = 5690;

/// A running cluster, seen from outside.
#[derive(Clone)]
pub struct Brokers {
    /// Where its pods are.
    pub kubernetes: Kubernetes,
    /// Its name.
    pub cluster: String,
    user: String,
    password: String,
    certificates: Arc<tempfile::TempDir>,
    /// How pods are reached from outside their network; none inside it.
    forwards: Option<Arc<Forwards>>,
}

impl Brokers {
    /// Reads the generated user and the admin certificates.
    ///
    /// # Errors
    /// When a Secret is missing.
    pub async fn connect(kubernetes: &Kubernetes, cluster: &str) -> Result<Self> {
        let user_secret = format!("{cluster}-default-user");
        let tls_secret = format!("{cluster}-tls");
        let certificates = tempfile::tempdir().context("a directory for certificates")?;
        for key in ["ca.crt", "tls.crt", "tls.key"] {
            let value = kubernetes.secret(&tls_secret, key).await?;
            std::fs::write(certificates.path().join(key), value)?;
        }
        Ok(Self {
            kubernetes: kubernetes.clone(),
            cluster: cluster.to_owned(),
            user: kubernetes.secret(&user_secret, "username").await?,
            password: kubernetes.secret(&user_secret, "password").await?,
            certificates: Arc::new(certificates),
            forwards: None,
        })
    }

    /// Reaches the pods through the API server (`kubectl port-forward`) from now on, as one must from outside the
    /// network of the pods.
    ///
    /// # Errors
    /// When the pods cannot be listed, or this machine has no free port.
    pub async fn through_the_api_server(mut self) -> Result<Self> {
        let pods = self.kubernetes.broker_pods(&self.cluster).await?;
        let names: Vec<String> = pods.into_iter().map(|pod| pod.name).collect();
        self.forwards = Some(Arc::new(Forwards::start(&self.kubernetes, &names)?));
        Ok(self)
    }

    /// AMQP URIs of the pods that have an address now, asked from the API server at every call.
    #[must_use]
    pub fn endpoints(&self) -> Endpoints {
        let this = self.clone();
        Arc::new(move || {
            let this = this.clone();
            Box::pin(async move { this.uris().await.unwrap_or_default() })
        })
    }

    async fn uris(&self) -> Result<Vec<String>> {
        let pods = self.kubernetes.broker_pods(&self.cluster).await?;
        Ok(pods.iter().filter(|pod| !pod.ip.is_empty()).map(|pod| self.uri(pod)).collect())
    }

    /// The AMQP URI of one pod, vhost `/`.
    #[must_use]
    pub fn uri(&self, pod: &Pod) -> String {
        let address = match &self.forwards {
            Some(forwards) => forwards.amqp(&pod.name).to_string(),
            None => format!("{}:{AMQP_PORT}", pod.ip),
        };
        format!("amqp://{}:{}@{address}/%2f", self.user, self.password)
    }

    /// `GET` from the admin API of one pod.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub async fn admin(&self, pod: &Pod, path: &str) -> Result<Value> {
        let directory = self.certificates.path();
        let file = |name: &str| Path::join(directory, name).display().to_string();
        let host = format!("{}.{}-nodes.{}.svc", pod.name, self.cluster, self.kubernetes.namespace);
        let address = match &self.forwards {
            Some(forwards) => forwards.admin(&pod.name).to_string(),
            None => format!("{}:{ADMIN_PORT}", pod.ip),
        };
        let connect_to = format!("{host}:{ADMIN_PORT}:{address}");
        let url = format!("https://{host}:{ADMIN_PORT}{path}");
        let (ca, cert, key) = (file("ca.crt"), file("tls.crt"), file("tls.key"));
        let args = [
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "3",
            "--connect-to",
            &connect_to,
            "--cacert",
            &ca,
            "--cert",
            &cert,
            "--key",
            &key,
            &url,
        ];
        Ok(serde_json::from_str(&run("curl", &args, None).await?)?)
    }

    /// The pod that leads the group of `queue`, as any reachable member reports it.
    ///
    /// # Errors
    /// When no member knows a leader.
    pub async fn leader_of(&self, queue: &str) -> Result<Pod> {
        let pods = self.kubernetes.broker_pods(&self.cluster).await?;
        for pod in pods.iter().filter(|pod| !pod.ip.is_empty()) {
            let Ok(report) = self.admin(pod, "/v1/groups").await else {
                continue;
            };
            let Some(leader) = leader_in_report(&report, queue) else {
                continue;
            };
            if let Some(found) = pods.iter().find(|candidate| candidate.name == leader) {
                return Ok(found.clone());
            }
        }
        bail!("no member reports a leader of queue {queue}")
    }
}

/// Queues are reported as `vhost/name`; the cases use the vhost `/`.
fn leader_in_report(report: &Value, queue: &str) -> Option<String> {
    let full_name = format!("//{queue}");
    let groups = report["groups"].as_array()?;
    let holds = |group: &Value| group["queues"].as_array().is_some_and(|queues| queues.iter().any(|q| *q == full_name));
    groups.iter().find(|group| holds(group))?["leader"].as_str().map(str::to_owned)
}
