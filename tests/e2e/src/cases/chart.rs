//! What Helm renders is accepted by a real API server, field for field, without being stored.

use anyhow::{Context as _, Result, ensure};

use super::Context;
use crate::install::{OPERATOR_NAMESPACE, RELEASE};
use crate::kubernetes::run as run_program;

/// Values that a user would try first, each with what it changes.
const VARIANTS: &[(&str, &[&str])] = &[
    ("the defaults", &[]),
    ("one namespace only", &["--set=watchNamespace=holdfast-system"]),
    ("without CRDs", &["--set=crds.enabled=false"]),
];

pub(super) async fn run(_context: &Context) -> Result<()> {
    let namespace = format!("--namespace={OPERATOR_NAMESPACE}");
    for (what, values) in VARIANTS {
        let mut args = vec!["template", RELEASE, "charts/holdfast", &namespace];
        args.extend_from_slice(values);
        let rendered = run_program("helm", &args, None).await.context(*what)?;
        let apply = ["apply", "--server-side", "--dry-run=server", "--force-conflicts", &namespace, "--filename=-"];
        let answer = run_program("kubectl", &apply, Some(&rendered)).await.context(*what)?;
        let objects = answer.lines().filter(|line| line.contains("serverside-applied")).count();
        println!("e2e: chart with {what}: {objects} objects accepted");
        ensure!(objects > 0, "nothing was rendered with {what}");
    }
    Ok(())
}
