//! Installs the operator with Helm and applies clusters, as the README tells a user to.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::kubernetes::{Kubernetes, eventually, run};

/// Where the operator lives.
pub const OPERATOR_NAMESPACE: &str = "holdfast-system";
/// The Helm release.
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

/// `helm upgrade --install` of the chart in this work tree, until the operator's Deployment is available.
///
/// # Errors
/// What Helm printed.
pub async fn operator(images: &Images) -> Result<()> {
    let mut args = vec![
        "upgrade".to_owned(),
        "--install".to_owned(),
        RELEASE.to_owned(),
        "charts/holdfast".to_owned(),
        format!("--namespace={OPERATOR_NAMESPACE}"),
        "--create-namespace".to_owned(),
        "--wait".to_owned(),
        "--timeout=90s".to_owned(),
    ];
    for (key, image) in [("image", &images.operator), ("broker.image", &images.broker)] {
        if let Some(image) = image {
            args.push(format!("--set={key}={image}"));
        }
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    run("helm", &args, None).await.map(|_| ())
}

/// Removes the release and its namespace.
///
/// # Errors
/// What Helm printed.
pub async fn remove_operator() -> Result<()> {
    let namespace = format!("--namespace={OPERATOR_NAMESPACE}");
    run("helm", &["uninstall", RELEASE, &namespace, "--wait", "--ignore-not-found"], None).await.map(|_| ())
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

/// Applies a cluster and waits for `Ready=True`; returns how long that took.
///
/// # Errors
/// When it is not Ready in time: the conditions as they stand.
pub async fn cluster(kubernetes: &Kubernetes, name: &str, manifest: &str) -> Result<Duration> {
    let start = Instant::now();
    kubernetes.apply(manifest).await?;
    kubernetes.wait_for_condition(name, "Ready", "True", READY_WITHIN * 6).await?;
    Ok(start.elapsed())
}

/// Deletes a cluster and waits until its pods are gone; with `volumes`, its claims too.
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
        if Path::new("tests/cluster/cluster").exists() && std::env::var_os("HOLDFAST_EXISTING_CLUSTER").is_none() {
            run("tests/cluster/cluster", &["volumes"], None).await.context("offer the released volumes again")?;
        }
    }
    Ok(())
}
