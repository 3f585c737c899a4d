//! What Helm renders is accepted by a real API server, field for field, without being stored.

use anyhow::{Context as _, Result, ensure};

use super::Context;
use crate::install::{OPERATOR_NAMESPACE, RELEASE};
use crate::kubernetes::run as run_program;

/// Values that a user would try first, each with what it changes and the number of objects that it makes.
const VARIANTS: &[(&str, &[&str], usize)] = &[
    ("the defaults", &[], 11),
    ("one namespace only", &["--set=watchNamespace=holdfast-system"], 11),
    ("without CRDs", &["--set=crds.enabled=false"], 8),
];

/// Values that the chart's schema must refuse before anything reaches the API server.
const REFUSED: &[&str] = &["--set=replicaz=2", "--set=replicas=many", "--set=crds.enabled=maybe"];

pub(super) async fn run(_context: &Context) -> Result<()> {
    let namespace = format!("--namespace={OPERATOR_NAMESPACE}");
    for (what, values, expected) in VARIANTS {
        let mut args = vec!["template", RELEASE, "charts/holdfast", &namespace];
        args.extend_from_slice(values);
        let rendered = run_program("helm", &args, None).await.context(*what)?;
        let apply = ["apply", "--server-side", "--dry-run=server", "--force-conflicts", &namespace, "--filename=-"];
        let answer = run_program("kubectl", &apply, Some(&rendered)).await.context(*what)?;
        let objects = answer.lines().filter(|line| line.contains("serverside-applied")).count();
        println!("e2e: chart with {what}: {objects} objects accepted");
        ensure!(objects == *expected, "{objects} objects with {what}, not {expected}: {answer}");
    }
    let plain = ["apply", "--server-side", "--dry-run=server", "--force-conflicts", "--filename=charts/install.yaml"];
    run_program("kubectl", &plain, None).await.context("charts/install.yaml, for those without Helm")?;
    for value in REFUSED {
        let args = ["template", RELEASE, "charts/holdfast", &namespace, value];
        let refused = run_program("helm", &args, None).await.is_err();
        ensure!(refused, "the chart took {value}, which its schema should refuse");
    }
    Ok(())
}
