//! Installs the operator with Helm and applies clusters, as the README tells a user to.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::kubernetes::{Kubernetes, eventually, run};

/// Where the operator of the local cluster lives.
pub const OPERATOR_NAMESPACE: &str = "holdfast-system";
/// Its Helm release.
pub const RELEASE: &str = "holdfast";

/// The figure of the README: from `kubectl apply` to `Ready=True` takes at most this, the image being present.
pub const READY_WITHIN: Duration = Duration::from_secs(20);

/// Which images the release runs, when they are not the chart's defaults.
#[derive(Clone, Debug, Default)]
pub struct Images {
    /// The operator's image.
    pub operator: Option<String>,
    /// The broker's image.
    pub broker: Option<String>,
}

/// One installation of the operator.
#[derive(Clone, Debug)]
pub struct Release {
    /// The Helm release.
    pub name: &'static str,
    /// Where it lives.
    pub namespace: &'static str,
    /// Set on somebody else's cluster: it looks after its own namespace only, and only after clusters that name it, so
    /// that an installation that is there already is neither upgraded nor disturbed.
    pub controller: Option<&'static str>,
}

impl Release {
    /// The one of the local cluster, for all namespaces.
    #[must_use]
    pub fn of_the_local_cluster() -> Self {
        Self { name: RELEASE, namespace: OPERATOR_NAMESPACE, controller: None }
    }

    /// `helm upgrade --install` of the chart in this work tree, until the operator's Deployment is available.
    ///
    /// # Errors
    /// What Helm printed.
    pub async fn install(&self, images: &Images) -> Result<()> {
        let mut args =
            ["upgrade", "--install", self.name, "charts/holdfast", "--create-namespace"].map(str::to_owned).to_vec();
        args.extend(["--wait", "--timeout=90s"].map(str::to_owned));
        args.push(format!("--namespace={}", self.namespace));
        for (key, image) in [("image", &images.operator), ("broker.image", &images.broker)] {
            args.extend(image.iter().map(|image| format!("--set={key}={image}")));
        }
        if let Some(controller) = self.controller {
            args.push(format!("--set=watchNamespace={}", self.namespace));
            args.push(format!("--set=controllerName={controller}"));
            let crd = ["get", "crd", "messagequeueclusters.holdfast.dev", "--ignore-not-found", "--output=json"];
            let found: serde_json::Value =
                serde_json::from_str(&run("kubectl", &crd, None).await?).unwrap_or(serde_json::Value::Null);
            let owner = &found["metadata"]["annotations"]["meta.helm.sh/release-name"];
            // CRDs of another installation stay as they are.
            if !found.is_null() && owner != self.name {
                args.push("--set=crds.enabled=false".to_owned());
            }
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        if let Err(error) = run("helm", &args, None).await {
            print_state_of(self.namespace).await;
            return Err(error);
        }
        Ok(())
    }
}

/// Prints what an SRE would look at first when pods of a namespace do not become ready. A look that fails is printed too.
pub async fn print_state_of(namespace: &str) {
    let looks: [&[&str]; 5] = [
        &["describe", "nodes"],
        &["get", "pods", "--all-namespaces", "--output=wide"],
        &["describe", "pods", "--namespace", namespace],
        &["get", "events", "--namespace", namespace, "--sort-by=.lastTimestamp"],
        &[
            "logs",
            "--namespace",
            namespace,
            "--selector=app.kubernetes.io/component in (operator,broker)",
            "--tail=50",
            "--prefix",
        ],
    ];
    for look in looks {
        println!("$ kubectl {}", look.join(" "));
        println!("{}", run("kubectl", look, None).await.unwrap_or_else(|error| format!("{error:#}")));
    }
}

/// Makes the namespace when it is missing.
///
/// # Errors
/// What `kubectl` printed.
pub async fn namespace(kubernetes: &Kubernetes) -> Result<()> {
    let manifest = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}\n", kubernetes.namespace);
    kubernetes.apply(&manifest).await.map(|_| ())
}

/// A manifest of three members, one in each zone.
#[must_use]
pub fn three_member_cluster(name: &str) -> String {
    format!(
        "apiVersion: holdfast.dev/v1alpha1\n\
         kind: MessageQueueCluster\n\
         metadata: {{name: {name}}}\n\
         spec:\n  members: 3\n  storage: {{size: 1Gi}}\n  replication: {{factor: 3}}\n"
    )
}

/// The same for somebody else's cluster, which may have fewer zones, looked after by the operator of that name.
#[must_use]
pub fn three_member_cluster_of(controller: &str, name: &str) -> String {
    let manifest = three_member_cluster(name);
    format!("{manifest}  controllerName: {controller}\n  placement: {{whenUnsatisfiable: ScheduleAnyway}}\n")
}

/// Applies a cluster and waits for `Ready=True`; returns how long that took.
///
/// # Errors
/// When it is not Ready in time: the conditions as they stand.
pub async fn cluster(kubernetes: &Kubernetes, name: &str, manifest: &str) -> Result<Duration> {
    let start = Instant::now();
    kubernetes.apply(manifest).await?;
    if let Err(error) = kubernetes.wait_for_condition(name, "Ready", "True", READY_WITHIN * 6).await {
        print_state_of(&kubernetes.namespace).await;
        return Err(error);
    }
    Ok(start.elapsed())
}

/// Deletes a cluster and waits until its pods are gone; with `volumes`, its claims too. One that is not there is no error.
///
/// # Errors
/// When its pods are still there after two minutes.
pub async fn remove_cluster(kubernetes: &Kubernetes, name: &str, volumes: bool) -> Result<()> {
    kubernetes.kubectl(&["delete", "mqc", name, "--ignore-not-found", "--wait=true", "--timeout=60s"]).await?;
    eventually(&format!("pods of {name} are gone"), Duration::from_secs(120), || async {
        let pods = kubernetes.broker_pods(name).await?;
        anyhow::ensure!(pods.is_empty(), "{} pods are left", pods.len());
        Ok(())
    })
    .await?;
    if volumes {
        let selector = format!("--selector=app.kubernetes.io/instance={name}");
        kubernetes.kubectl(&["delete", "pvc,secret", &selector, "--wait=true", "--timeout=60s"]).await?;
    }
    Ok(())
}

/// On the local cluster nothing else offers a volume again once its claim is gone.
///
/// # Errors
/// What the cluster's script printed.
pub async fn offer_released_volumes() -> Result<()> {
    let released = run("tests/cluster/cluster", &["volumes"], None).await;
    released.context("offer the released volumes again").map(|_| ())
}
