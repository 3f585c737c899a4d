//! A new cluster that begins with a backup: the founder is blank until what is in the snapshots has been sent to it, and is
//! then told to found the cluster with that instead of with nothing. Restored volumes never become members' disks.

use super::super::{
    observe::{
        Observed,
        restore::{LoaderFacts, RestoreFacts, Source, SourceSnapshot},
    },
    validate::{Blocker, ValidatedCluster, hex_digest},
};
use crate::{
    api::v1alpha1::Reason,
    broker_admin::{RestoreProgress, RestoreState},
};

/// `app.kubernetes.io/component` of what brings a backup to the founder.
pub const COMPONENT: &str = "restore";

/// What this pass does for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    pub source: Option<Source>,
    /// Jobs that are to be made.
    pub loaders: Vec<Loader>,
    /// All of it has arrived: the founder is asked.
    pub apply: bool,
    /// The founder has received something of another backup, which the spec named before: it is to forget that.
    pub discard: Option<String>,
    pub progress: RestoreProgress,
    /// What is on snapshots and is not what their manifest says.
    pub damaged: Vec<String>,
    /// How far it is, or why it does not go on.
    pub state: Blocker,
}

/// A Job that sends what is on one snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loader {
    pub name: String,
    pub snapshot: SourceSnapshot,
}

/// None where nothing is to be restored.
pub fn restore(cluster: &ValidatedCluster, observed: &Observed) -> Option<Restore> {
    let facts = observed.restore.as_ref()?;
    let source = match &facts.source {
        Ok(source) => source,
        Err(why) => {
            let (loaders, damaged) = (Vec::new(), Vec::new());
            let progress = RestoreProgress::default();
            return Some(Restore {
                source: None,
                loaders,
                apply: false,
                discard: None,
                progress,
                damaged,
                state: why.clone(),
            });
        }
    };
    let loader = |snapshot: &SourceSnapshot| Loader { name: name(cluster, snapshot), snapshot: snapshot.clone() };
    let loaders: Vec<Loader> = source.snapshots.iter().map(loader).collect();
    let progress = facts.progress.clone().and_then(Result::ok).unwrap_or_default();
    let of_this = progress.backup.as_ref().is_none_or(|backup| *backup == source.barrier);
    let state = state(facts, source, &loaders, &progress, of_this);
    // A copy that is still being sent is waited for: it may turn out to be damaged, which somebody should hear of.
    let at_work = |f: &LoaderFacts| !f.succeeded && !f.failed && f.trouble.is_none();
    let apply = of_this && progress.state == RestoreState::Complete && !facts.loaders.values().any(at_work);
    let damage = |loader: &Loader| {
        let what = facts.loaders.get(&loader.name)?.damage.as_ref()?;
        Some(format!("VolumeSnapshot {}: {what}", loader.snapshot.name))
    };
    let damaged = loaders.iter().filter_map(damage).collect();
    // What has arrived needs nobody to send it.
    let sends = of_this && matches!(progress.state, RestoreState::None | RestoreState::Receiving);
    let absent = |loader: &Loader| sends && !facts.loaders.contains_key(&loader.name);
    let loaders = loaders.into_iter().filter(absent).collect();
    let discard = progress.backup.clone().filter(|_| !of_this);
    Some(Restore { source: Some(source.clone()), loaders, apply, discard, progress, damaged, state })
}

/// Follows from the snapshot, so that another source has loaders of its own.
fn name(cluster: &ValidatedCluster, snapshot: &SourceSnapshot) -> String {
    format!("{}-restore-{}", cluster.names.cluster, &hex_digest(&snapshot.name)[..8])
}

fn state(
    facts: &RestoreFacts,
    source: &Source,
    loaders: &[Loader],
    progress: &RestoreProgress,
    of_this: bool,
) -> Blocker {
    let blocked = |message: String| Blocker { reason: Reason::RestoreBlocked, message };
    if !of_this {
        let other = progress.backup.as_deref().unwrap_or_default();
        let message = format!("giving up what has arrived of barrier {other}, which is not asked for any more");
        return Blocker { reason: Reason::Restoring, message };
    }
    if progress.state == RestoreState::Failed {
        let why = progress.error.as_deref().unwrap_or("no reason given");
        return Blocker { reason: Reason::BackupDamaged, message: format!("what was sent cannot be used: {why}") };
    }
    let receives = matches!(progress.state, RestoreState::None | RestoreState::Receiving);
    if let (true, Some(damaged)) = (receives, no_copy_left(facts, loaders)) {
        return Blocker { reason: Reason::BackupDamaged, message: damaged };
    }
    let found = loaders.iter().filter_map(|loader| Some((loader, facts.loaders.get(&loader.name)?)));
    let trouble = found.filter(|(_, f)| !f.succeeded).find_map(|(loader, f)| {
        Some(format!(
            "Job {}, which reads VolumeSnapshot {}: {}",
            loader.name,
            loader.snapshot.name,
            f.trouble.as_ref()?
        ))
    });
    if let (Some(trouble), true) = (trouble, receives) {
        return blocked(trouble);
    }
    let message = match progress.state {
        RestoreState::None => {
            format!("waiting for {} snapshots of barrier {} to be sent", loaders.len(), source.barrier)
        }
        RestoreState::Receiving => {
            format!(
                "{} of {} MiB of barrier {} have arrived",
                mib(progress.bytes_present),
                mib(progress.bytes_needed),
                source.barrier
            )
        }
        RestoreState::Complete | RestoreState::Building | RestoreState::Failed | RestoreState::Done => {
            format!("founding the cluster with what is in barrier {}", source.barrier)
        }
    };
    Blocker { reason: Reason::Restoring, message }
}

/// Everybody has sent what is whole, and it is not enough.
fn no_copy_left(facts: &RestoreFacts, loaders: &[Loader]) -> Option<String> {
    let found: Vec<_> = loaders.iter().filter_map(|loader| Some((loader, facts.loaders.get(&loader.name)?))).collect();
    if found.len() < loaders.len() || !found.iter().all(|(_, f)| f.succeeded || f.damage.is_some()) {
        return None;
    }
    let (loader, what) = found.iter().find_map(|(loader, f)| Some((loader, f.damage.as_ref()?)))?;
    Some(format!("the backup is damaged, and no other copy has it: VolumeSnapshot {}: {what}", loader.snapshot.name))
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
