//! Specs that the API server must refuse, each with a message that says what to write instead.

use anyhow::{Result, bail, ensure};

use super::Context;

/// Name of the clusters that must not come to be.
const NAME: &str = "refused";

/// An object that is refused when it is made.
struct Refusal {
    why: &'static str,
    name: &'static str,
    spec: &'static str,
    /// Words of the advice, not of the field's path, which the API server prints anyway.
    says: &'static str,
}

const fn of(why: &'static str, spec: &'static str, says: &'static str) -> Refusal {
    Refusal { why, name: NAME, spec, says }
}

const REFUSALS: &[Refusal] = &[
    of("no members", "{members: 0}", "to stop every broker and keep the data, set hibernate: true"),
    of("a negative number of members", "{members: -1}", "members must be at least 1"),
    of("too many members", "{members: 10}", "should be less than or equal to 9"),
    of("an unknown field", "{members: 3, storrage: {}}", ".spec.storrage: field not declared"),
    of("a size that is no quantity", "{storage: {size: 10 gigs}}", "a quantity such as 10Gi"),
    of("more replicas than members", "{members: 1, replication: {factor: 3}}", "raise members, or lower the factor"),
    of("an even number of replicas", "{members: 3, replication: {factor: 2}}", "must be odd"),
    of(
        "confirms that wait for more copies than there are",
        "{replication: {factor: 3, minInSyncReplicas: 5}}",
        "lower it to factor or less",
    ),
    of("confirms that wait for no copy", "{replication: {minInSyncReplicas: 0}}", "leave it out for a majority"),
    of("more time to drain than a pod gets", "{rollout: {drainSeconds: 21}}", "should be less than or equal to 20"),
    of("a member lost at once", "{health: {replaceAfterSeconds: 5}}", "should be greater than or equal to 60"),
    of("an image and a version", "{image: a/b:c, version: c}", "set either image"),
    of("a version that is no tag", "{version: 'a b'}", "should match"),
    of("no listener", "{listeners: {amqp: {enabled: false}, amqps: {enabled: false}}}", "leave at least one"),
    of("a zone named twice", "{placement: {zones: [a, a]}}", "name each zone once"),
    of("an unknown deletion policy", "{storage: {deletionPolicy: Keep}}", "upported value"),
    Refusal { why: "a name that no Service can have", name: "1-orders", spec: "{}", says: "start with a letter" },
    Refusal {
        why: "a name that is too long to make others from",
        name: "a-name-of-more-than-forty-characters-is-too-long",
        spec: "{}",
        says: "use a shorter one",
    },
];

/// A change of an accepted object that is refused: what it was made with, the merge patch, and words of the advice.
const CHANGES: &[(&str, &str, &str, &str)] = &[
    (
        "another storage class",
        "{paused: true, storage: {storageClassName: local}}",
        r#"{"spec":{"storage":{"storageClassName":"other"}}}"#,
        "put the former value back",
    ),
    (
        "a storage class taken out",
        "{paused: true, storage: {storageClassName: local}}",
        r#"{"spec":{"storage":{"storageClassName":null}}}"#,
        "put the former value back",
    ),
    (
        "a storage class put in",
        "{paused: true}",
        r#"{"spec":{"storage":{"storageClassName":"local"}}}"#,
        "put the former value back",
    ),
];

pub(super) async fn run(context: &Context) -> Result<()> {
    for refusal in REFUSALS {
        let answer = context.kubernetes.apply(&manifest(refusal.name, refusal.spec)).await.map(drop);
        if answer.is_ok() {
            remove(context, refusal.name).await?;
        }
        check(refusal.why, answer, refusal.says)?;
    }
    for (why, spec, patch, says) in CHANGES {
        context.kubernetes.apply(&manifest(NAME, spec)).await?;
        let patch = ["patch", "mqc", NAME, "--type=merge", "--patch", patch];
        let answer = context.kubernetes.kubectl(&patch).await.map(drop);
        remove(context, NAME).await?;
        check(why, answer, says)?;
    }
    println!("e2e: {} bad specs and {} bad changes were refused, each with advice", REFUSALS.len(), CHANGES.len());
    Ok(())
}

fn manifest(name: &str, spec: &str) -> String {
    format!("apiVersion: holdfast.dev/v1alpha1\nkind: MessageQueueCluster\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

async fn remove(context: &Context, name: &str) -> Result<()> {
    context.kubernetes.kubectl(&["delete", "mqc", name, "--ignore-not-found", "--timeout=30s"]).await.map(drop)
}

fn check(why: &str, answer: Result<()>, says: &str) -> Result<()> {
    let Err(error) = answer else { bail!("{why} was accepted") };
    let text = format!("{error:#}");
    ensure!(text.contains(says), "the refusal of {why} does not say {says:?}: {text}");
    Ok(())
}
