//! Specs that the API server must refuse, each with a message that says what to write instead.

use anyhow::{Result, ensure};

use super::Context;

struct Refusal {
    why: &'static str,
    spec: &'static str,
    says: &'static str,
}

const REFUSALS: &[Refusal] = &[
    Refusal { why: "a negative number of members", spec: "{members: -1, storage: {size: 1Gi}}", says: "members" },
    Refusal { why: "an unknown field", spec: "{members: 3, storage: {size: 1Gi}, storrage: {}}", says: "storrage" },
    Refusal { why: "a size that is no quantity", spec: "{members: 3, storage: {size: 10 gigs}}", says: "size" },
    Refusal {
        why: "more replicas than members",
        spec: "{members: 1, storage: {size: 1Gi}, replication: {factor: 3}}",
        says: "factor",
    },
];

pub(super) async fn run(context: &Context) -> Result<()> {
    for refusal in REFUSALS {
        let manifest = format!(
            "apiVersion: holdfast.dev/v1alpha1\nkind: MessageQueueCluster\nmetadata: {{name: refused}}\nspec: {}\n",
            refusal.spec
        );
        let answer = context.kubernetes.apply(&manifest).await;
        let Err(error) = answer else {
            context.kubernetes.kubectl(&["delete", "mqc", "refused", "--ignore-not-found"]).await?;
            anyhow::bail!("{} was accepted", refusal.why);
        };
        let text = format!("{error:#}");
        println!("e2e: {}: {text}", refusal.why);
        ensure!(text.contains(refusal.says), "the refusal of {} does not name {}: {text}", refusal.why, refusal.says);
    }
    Ok(())
}
