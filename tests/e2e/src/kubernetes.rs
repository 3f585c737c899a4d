//! The cluster under test as `kubectl` shows it, and the few things that only the machine below it can do.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Bound on one `kubectl` or `helm` call.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// One namespace of a Kubernetes cluster.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    /// The namespace that every call names.
    pub namespace: String,
}

/// One broker pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name, which is the member's too.
    pub name: String,
    /// Its UID, as cgroups carry it.
    pub uid: String,
    /// Its address, empty until it has one.
    pub ip: String,
    /// Its node.
    pub node: String,
    /// Its condition `Ready`.
    pub ready: bool,
    /// It is being deleted.
    pub terminating: bool,
}

/// Runs a program to its end and returns its output.
///
/// # Errors
/// When it does not end in time or fails; the error carries what it printed on stderr.
pub async fn run(program: &str, args: &[&str], input: Option<&str>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take().context("stdin")?;
    if let Some(input) = input {
        stdin.write_all(input.as_bytes()).await.with_context(|| format!("write to {program}"))?;
    }
    drop(stdin);
    let what = || format!("{program} {}", args.join(" "));
    let output = tokio::time::timeout(CALL_TIMEOUT * 3, child.wait_with_output()).await.with_context(what)??;
    if !output.status.success() {
        bail!("{}: {}", what(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks `probe` again until it gives a value, at most `limit`.
///
/// # Errors
/// When the time is up: names `what` and the last reason.
pub async fn eventually<T, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let end = Instant::now() + limit;
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error.context(format!("{what}: not within {} s", limit.as_secs())));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

impl Kubernetes {
    /// `kubectl` in the namespace.
    ///
    /// # Errors
    /// What `kubectl` printed.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let mut all = vec!["--namespace", self.namespace.as_str(), "--request-timeout=30s"];
        all.extend_from_slice(args);
        run("kubectl", &all, None).await
    }

    /// `kubectl apply --server-side` of a manifest.
    ///
    /// # Errors
    /// What `kubectl` printed.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        let args = ["--namespace", self.namespace.as_str(), "apply", "--server-side", "--filename=-"];
        run("kubectl", &args, Some(manifest)).await
    }

    /// `kubectl get … -o json`.
    ///
    /// # Errors
    /// What `kubectl` printed.
    pub async fn get(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "--output=json"];
        all.extend_from_slice(args);
        Ok(serde_json::from_str(&self.kubectl(&all).await?)?)
    }

    /// The broker pods of a cluster, by name.
    ///
    /// # Errors
    /// What `kubectl` printed.
    pub async fn broker_pods(&self, cluster: &str) -> Result<Vec<Pod>> {
        let selector = format!("--selector=app.kubernetes.io/instance={cluster},app.kubernetes.io/component=broker");
        let list = self.get(&["pods", &selector]).await?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let mut pods: Vec<Pod> = items.iter().map(Pod::from_json).collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(pods)
    }

    /// One pod by name.
    ///
    /// # Errors
    /// What `kubectl` printed.
    pub async fn pod(&self, name: &str) -> Result<Pod> {
        Ok(Pod::from_json(&self.get(&["pod", name]).await?))
    }

    /// A value of a Secret, decoded.
    ///
    /// # Errors
    /// When the Secret or its key is missing.
    pub async fn secret(&self, name: &str, key: &str) -> Result<String> {
        let template = format!("--output=go-template={{{{index .data \"{key}\" | base64decode}}}}");
        self.kubectl(&["get", "secret", name, &template]).await.with_context(|| format!("Secret {name}, key {key}"))
    }

    /// Waits for a condition of a `MessageQueueCluster`.
    ///
    /// # Errors
    /// When the time is up: prints its conditions as they stand.
    pub async fn wait_for_condition(&self, cluster: &str, kind: &str, status: &str, limit: Duration) -> Result<Value> {
        eventually(&format!("mqc/{cluster} {kind}={status}"), limit, || async move {
            let object = self.get(&["mqc", cluster]).await?;
            let generation = &object["metadata"]["generation"];
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let found = conditions.iter().any(|condition| {
                condition["type"] == kind
                    && condition["status"] == status
                    && &object["status"]["observedGeneration"] == generation
            });
            if found {
                return Ok(object);
            }
            bail!("conditions are {}", describe_conditions(&conditions))
        })
        .await
    }
}

fn describe_conditions(conditions: &[Value]) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    conditions
        .iter()
        .map(|c| {
            format!("{}={} ({}: {})", text(&c["type"]), text(&c["status"]), text(&c["reason"]), text(&c["message"]))
        })
        .collect::<Vec<_>>()
        .join("; ")
}

impl Pod {
    fn from_json(item: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let conditions = item["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Self {
            name: text(&item["metadata"]["name"]),
            uid: text(&item["metadata"]["uid"]),
            ip: text(&item["status"]["podIP"]),
            node: text(&item["spec"]["nodeName"]),
            ready: conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"),
            terminating: item["metadata"]["deletionTimestamp"].is_string(),
        }
    }

    /// Process ids of the container whose command line holds `program`, found by the pod's UID in the cgroups of this machine.
    #[must_use]
    pub fn process_ids(&self, program: &str) -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| self.owns(*pid, program))
            .collect()
    }

    fn owns(&self, pid: u32, program: &str) -> bool {
        let read = |file: &str| std::fs::read(PathBuf::from(format!("/proc/{pid}/{file}"))).unwrap_or_default();
        let cgroup = String::from_utf8_lossy(&read("cgroup")).into_owned();
        let command = String::from_utf8_lossy(&read("cmdline")).into_owned();
        cgroup.contains(&self.uid) && command.contains(program)
    }

    /// SIGKILL to the broker process, as a crash would end it.
    ///
    /// # Errors
    /// When the process is not found on this machine.
    pub async fn sigkill(&self) -> Result<()> {
        let pids = self.process_ids("holdfast-broker");
        let Some(pid) = pids.first() else {
            bail!("no broker process of pod {} is visible on this machine", self.name);
        };
        run("kill", &["-KILL", &pid.to_string()], None).await.map(|_| ())
    }
}
