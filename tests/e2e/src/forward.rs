//! Ports of this machine that lead to broker pods through the API server, for clients outside the pods' network.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::brokers::{ADMIN_PORT, AMQP_PORT};
use crate::kubernetes::Kubernetes;

/// A forward that ended (its pod died) is tried again after this time.
const RETRY: Duration = Duration::from_millis(200);

/// One `kubectl port-forward` for each pod, started again whenever it ends. Dropping it ends them all.
pub struct Forwards {
    ports: BTreeMap<String, Ports>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Clone, Copy)]
struct Ports {
    amqp: u16,
    admin: u16,
}

impl Forwards {
    /// Starts forwards to the pods of these names.
    ///
    /// # Errors
    /// When this machine has no free port.
    pub fn start(kubernetes: &Kubernetes, pods: &[String]) -> Result<Self> {
        let mut forwards = Self { ports: BTreeMap::new(), tasks: Vec::new() };
        for pod in pods {
            let ports = Ports { amqp: free_port()?, admin: free_port()? };
            forwards.ports.insert(pod.clone(), ports);
            forwards.tasks.push(tokio::spawn(forward(kubernetes.namespace.clone(), pod.clone(), ports)));
        }
        Ok(forwards)
    }

    /// Where a pod's AMQP listener is reached; port 0 for a pod that is not known.
    #[must_use]
    pub fn amqp(&self, pod: &str) -> SocketAddr {
        here(self.ports.get(pod).map_or(0, |ports| ports.amqp))
    }

    /// Where a pod's admin API is reached; port 0 for a pod that is not known.
    #[must_use]
    pub fn admin(&self, pod: &str) -> SocketAddr {
        here(self.ports.get(pod).map_or(0, |ports| ports.admin))
    }
}

impl Drop for Forwards {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn here(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(here(0)).context("find a free port on this machine")?;
    Ok(listener.local_addr()?.port())
}

async fn forward(namespace: String, pod: String, ports: Ports) {
    loop {
        let child = Command::new("kubectl")
            .args(["--namespace", &namespace, "port-forward", "--address=127.0.0.1", &format!("pod/{pod}")])
            .args([format!("{}:{AMQP_PORT}", ports.amqp), format!("{}:{ADMIN_PORT}", ports.admin)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        if let Ok(mut child) = child {
            let _ = child.wait().await;
        }
        tokio::time::sleep(RETRY).await;
    }
}
