//! Step 5: write what was built, and ask the brokers what was planned.
//!
//! Objects go first, in their order, by server-side apply; then the brokers are asked; pods go last. The first failure
//! ends the step: what follows may rely on what came before. It is reported in the status like everything else.

use std::{collections::HashMap, sync::Mutex};

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Secret};
use kube::{
    Api, Resource, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
    core::{ObjectMeta, PartialObjectMeta},
};
use serde_json::json;

use super::{
    super::{Context, Doing, Error},
    build::{Children, Object},
    observe::Observed,
    plan::{Latch, Plan, restore::Restore},
    recover, remove,
    validate::{Blocker, Validation, hex_digest},
};
use crate::api::v1alpha1::{MANAGER, MessageQueueCluster, Reason, SERVING_LABEL};

/// What came of the plan. The status is built from this, so it cannot claim what was not done.
#[derive(Debug, Default)]
pub struct Outcome {
    pub failure: Option<Error>,
    /// What was done, for `status.decisions` and Events.
    pub done: Vec<Blocker>,
    /// What turned out not to be possible now.
    pub held: Vec<Blocker>,
    /// The version of the user's Secret whose password the brokers now have.
    pub user_version: Option<String>,
    /// How many copies confirms wait for, as the brokers were told in this pass.
    pub told_min_in_sync: Option<i32>,
    /// Were all objects written?
    pub applied: bool,
}

impl Outcome {
    /// Nothing was done.
    pub fn failed(error: Error) -> Self {
        Self { failure: Some(error), ..Self::default() }
    }

    pub(super) fn did(&mut self, reason: Reason, message: String) {
        tracing::info!(%reason, "{message}");
        self.done.push(Blocker { reason, message });
    }

    pub(super) fn hold(&mut self, reason: Reason, message: String) {
        self.held.push(Blocker { reason, message });
    }
}

/// Does everything that the plan says.
pub async fn apply(
    ctx: &Context,
    mqc: &MessageQueueCluster,
    validation: &Validation,
    observed: &Observed,
    plan: &Plan,
    children: Children,
) -> Outcome {
    let mut outcome = Outcome::default();
    if plan.hands_off {
        return outcome;
    }
    let result = async {
        let kinds = [
            (&children.shared, Known::Skipped),
            (&children.members, Known::Written),
            (&children.volumes, Known::Skipped),
            (&children.loaders, Known::Written),
        ];
        for (objects, known) in kinds {
            for object in objects {
                apply_object(ctx, &children.namespace, object, known).await?;
            }
        }
        outcome.applied = true;
        if let Latch::Record { cluster_id, adopted: true, .. } = &plan.latch {
            outcome.did(Reason::Adopted, format!("the volumes belong to cluster {cluster_id}, which goes on"));
        }
        grow_volumes(ctx, &children, &mut outcome).await;
        change_serving(ctx, &children.namespace, plan, &mut outcome).await?;
        if let Some(recovery) = &plan.recovery {
            recover::recover(ctx, mqc, validation, observed, recovery, &mut outcome).await?;
        }
        tell_brokers(ctx, observed, plan, &children, &mut outcome).await?;
        move_leaders(ctx, mqc, observed, plan, &mut outcome).await;
        if let Some(removal) = &plan.removal {
            remove::remove_pod(ctx, mqc, observed, removal, &mut outcome).await?;
        }
        Ok(())
    };
    if let Err(error) = result.await {
        outcome.failure = Some(error);
    }
    outcome
}

/// What is done with an object that, as far as is known, is as it should be.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    Skipped,
    /// The plan has found that it is not.
    Written,
}

async fn apply_object(ctx: &Context, namespace: &str, object: &Object, known: Known) -> Result<(), Error> {
    let key = key(&object.resource.kind, namespace, &object.name);
    let hash = hex_digest(&object.body.to_string());
    if known == Known::Skipped && ctx.applied.holds(&key, &hash) {
        return Ok(());
    }
    ctx.applied.begin(&key);
    let api = Api::<DynamicObject>::namespaced_with(ctx.client.clone(), namespace, &object.resource);
    let applied = api
        .patch(&object.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object.body))
        .await
        .doing(|| format!("cannot apply {} {}", object.resource.kind, object.name))?;
    ctx.applied.remember(key, hash, &applied.metadata);
    Ok(())
}

/// The storage class may not allow it: that is the user's to know, and no reason to stop.
async fn grow_volumes(ctx: &Context, children: &Children, outcome: &mut Outcome) {
    let api = Api::<PersistentVolumeClaim>::namespaced(ctx.client.clone(), &children.namespace);
    for (volume, size) in &children.grow {
        let patch = json!({ "spec": { "resources": { "requests": { "storage": size } } } });
        match api.patch(volume, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => outcome.did(Reason::Scaling, format!("volume {volume} is to have {size}")),
            Err(error) => outcome.hold(
                Reason::StorageGrowthRefused,
                format!("volume {volume} cannot be given {size}: {error}. Set storage.size back, or use a storage class that allows expansion"),
            ),
        }
    }
}

async fn change_serving(ctx: &Context, namespace: &str, plan: &Plan, outcome: &mut Outcome) -> Result<(), Error> {
    let api = Api::<Pod>::namespaced(ctx.client.clone(), namespace);
    for (pod, serving) in &plan.serving {
        let patch = json!({ "metadata": { "labels": { SERVING_LABEL: serving.to_string() } } });
        match api.patch_metadata(pod, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            other => other.doing(|| format!("cannot label pod {pod}"))?,
        };
        match serving {
            true => outcome.did(Reason::PutInService, format!("{pod} answers again and takes connections")),
            false => outcome.did(Reason::TakenOffService, format!("{pod} does not answer and gets no new connections")),
        }
    }
    Ok(())
}

async fn tell_brokers(
    ctx: &Context,
    observed: &Observed,
    plan: &Plan,
    children: &Children,
    outcome: &mut Outcome,
) -> Result<(), Error> {
    let door = |number: &u32| observed.members.get(number).and_then(|m| m.door.as_ref());
    if let (Latch::Found { member, cluster_id }, Some(request)) = (&plan.latch, &children.bootstrap)
        && let Some(door) = door(member)
    {
        match &plan.restore {
            None => {
                ctx.brokers.bootstrap(door, request).await?;
                outcome.told_min_in_sync = Some(request.default_min_in_sync_replicas);
                outcome.did(Reason::Bootstrapped, format!("{} founded cluster {cluster_id}", door.member));
            }
            Some(Restore { discard: Some(other), .. }) => ctx.brokers.restore_discard(door, other).await?,
            Some(Restore { apply: true, source: Some(source), .. }) => {
                ctx.brokers.restore_apply(door, &source.barrier, request).await?;
            }
            Some(_) => {}
        }
    }
    let Some(door) = observed.spokesman().and_then(|(n, _)| door(&n)) else { return Ok(()) };
    if let Some(members) = &plan.membership {
        ctx.brokers.put_members(door, members).await?;
    }
    if let Some(copies) = plan.set_min_in_sync {
        ctx.brokers.put_min_in_sync(door, copies).await?;
        outcome.told_min_in_sync = Some(copies);
    }
    if plan.set_user
        && let Some(secrets) = &children.secrets
    {
        ctx.brokers.put_user(door, &secrets.user).await?;
        outcome.user_version = observed.secrets.user.as_ref().and_then(|s| s.metadata.resource_version.clone());
    }
    Ok(())
}

/// A member that cannot be asked hands its leaders over by itself when its pod stops; so no failure here matters.
async fn move_leaders(
    ctx: &Context,
    mqc: &MessageQueueCluster,
    observed: &Observed,
    plan: &Plan,
    outcome: &mut Outcome,
) {
    for number in &plan.drain {
        let Some(member) = observed.members.get(number) else { continue };
        let (Some(door), Some(health)) = (&member.door, member.health()) else { continue };
        match ctx.brokers.drain_leaders(door, mqc.spec.rollout.drain_deadline()).await {
            Ok(remaining) => {
                let uid = member.pod.as_ref().map(|p| p.uid.as_str()).unwrap_or_default();
                let now = (ctx.clock)();
                ctx.remembered(&mqc.uid().unwrap_or_default(), |memory| memory.drained(uid, now, remaining));
                let moved = health.groups.leading.saturating_sub(remaining);
                if moved > 0 {
                    outcome.did(Reason::LeadersMoved, format!("{} is going away: {moved} leaders moved", door.member));
                }
            }
            Err(error) => outcome.hold(Reason::LeadersMoved, error.to_string()),
        }
    }
}

/// What was applied last, by object, so that a pass over an unchanged cluster writes nothing.
///
/// An entry is dropped as soon as the watch (or, for Secrets, a read) shows the object in another version than the one
/// that was written, so a change by somebody else is undone in the pass that its event starts. That holds for what each
/// pass renders. ConfigMap and StatefulSet of a member are rendered only when their inputs change, so that another version
/// of the operator restarts nothing: a hand edit of them stays until then, but for what the operator notes on them.
#[derive(Debug, Default)]
pub struct AppliedCache {
    entries: Mutex<HashMap<Key, Entry>>,
    /// The version in which an object was seen while it was being written: the event may be quicker than the answer.
    seen: Mutex<HashMap<Key, Option<String>>>,
}

type Key = (String, String, String);

#[derive(Debug)]
struct Entry {
    hash: String,
    version: Option<String>,
}

fn key(kind: &str, namespace: &str, name: &str) -> Key {
    (kind.to_owned(), namespace.to_owned(), name.to_owned())
}

/// The generation, which statuses do not change, and the metadata that do not change it; objects without a generation are
/// known by their resource version.
fn version(meta: &ObjectMeta) -> Option<String> {
    let noted = || format!("{:?}{:?}{:?}", meta.labels, meta.annotations, meta.owner_references);
    let generation = meta.generation.map(|generation| format!("g{generation} {}", hex_digest(&noted())));
    generation.or_else(|| meta.resource_version.clone())
}

impl AppliedCache {
    fn holds(&self, key: &Key, hash: &str) -> bool {
        self.lock().get(key).is_some_and(|entry| entry.hash == hash)
    }

    /// A write is on its way: what was known does not hold any more.
    fn begin(&self, key: &Key) {
        self.lock().remove(key);
        self.lock_seen().insert(key.clone(), None);
    }

    /// The write was answered. If somebody else's change was seen in the meantime, the object is written again.
    fn remember(&self, key: Key, hash: String, meta: &ObjectMeta) {
        let version = version(meta);
        match self.lock_seen().remove(&key).flatten() {
            Some(seen) if version.as_ref() != Some(&seen) => {}
            _ => drop(self.lock().insert(key, Entry { hash, version })),
        }
    }

    /// An object was seen, or seen to be gone.
    pub fn saw<K: Resource<DynamicType = ()>>(&self, meta: &PartialObjectMeta<K>, gone: bool) {
        let (namespace, name) = (meta.namespace().unwrap_or_default(), meta.name_any());
        self.compare(key(&K::kind(&()), &namespace, &name), Some(&meta.metadata).filter(|_| !gone));
    }

    /// A Secret was read, or found to be missing.
    pub fn read_secret(&self, namespace: &str, name: &str, found: Option<&Secret>) {
        self.compare(key("Secret", namespace, name), found.map(|secret| &secret.metadata));
    }

    fn compare(&self, key: Key, found: Option<&ObjectMeta>) {
        if let Some(seen) = self.lock_seen().get_mut(&key) {
            *seen = Some(found.and_then(version).unwrap_or_default());
        }
        let mut entries = self.lock();
        let stale = |entry: &Entry| found.is_none_or(|meta| entry.version != version(meta));
        if entries.get(&key).is_some_and(stale) {
            entries.remove(&key);
        }
    }

    fn lock_seen(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Option<String>>> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(generation: i64, label: &str) -> ObjectMeta {
        let labels = Some([("mine".to_owned(), label.to_owned())].into());
        ObjectMeta { generation: Some(generation), labels, ..ObjectMeta::default() }
    }

    #[test]
    fn what_somebody_else_changed_is_not_taken_for_what_was_written() {
        let key = || key("Service", "ns", "demo");
        let ours = seen(3, "ours");
        // The watch shows: nothing yet; this very write; a later change, before and after the answer to the write.
        type Step<'a> = (Option<ObjectMeta>, Option<ObjectMeta>, bool);
        let table: [Step<'_>; 5] = [
            (None, None, true),
            (Some(ours.clone()), Some(ours.clone()), true),
            (Some(seen(4, "ours")), None, false),
            (None, Some(seen(4, "ours")), false),
            (None, Some(seen(3, "theirs")), false),
        ];
        for (row, (meanwhile, later, known)) in table.into_iter().enumerate() {
            let cache = AppliedCache::default();
            cache.begin(&key());
            meanwhile.iter().for_each(|meta| cache.compare(key(), Some(meta)));
            cache.remember(key(), "hash".into(), &ours);
            later.iter().for_each(|meta| cache.compare(key(), Some(meta)));
            assert_eq!(cache.holds(&key(), "hash"), known, "row {row}");
        }
        let cache = AppliedCache::default();
        cache.begin(&key());
        cache.remember(key(), "hash".into(), &ours);
        cache.compare(key(), None);
        assert!(!cache.holds(&key(), "hash"), "it is gone");
        cache.remember(key(), "hash".into(), &ours);
        cache.begin(&key());
        assert!(!cache.holds(&key(), "hash"), "a write that was not answered may or may not have been done");
    }
}
