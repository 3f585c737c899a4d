//! The founder's journal, out of the copies.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_journal::{
    Batch, EntryReader, FileSystem, HeldView, Journal, Op, RecoveredGroup, Scrutiny, inspect_with_reader,
};
use holdfast_queue::ids::{GroupId, MemberId, ReplicaId};
use holdfast_queue::meta::{NewMember, Restoration, SOURCE_GENERATION, restored_life};
use holdfast_queue::{AnyMachine, Machine};
use holdfast_replica::{GroupCopy, group_key};

use super::cover::damages;
use super::{Coverage, HoldCopy, NewCluster, RestoreError, listed, queues_of, usable};
use crate::backup::files::{differs, state_of};
use crate::backup::{FileEntry, GroupEntry, Manifest, MemberEntry, StateEntry};
use crate::identity::{Identity, Membership};

/// Contents of messages are written in batches of about this size; small groups share one, since each is synced.
const BATCH_BYTES: usize = 8 << 20;
/// What a record takes beside its payload, about.
const OP_BYTES: usize = 128;

/// What was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    pub groups: u64,
    pub queues: u64,
    pub messages: u64,
    pub message_bytes: u64,
    /// Members whose copies were read.
    pub read: Vec<String>,
    /// What is wrong with copies that were not used, by file.
    pub damaged: Vec<String>,
    /// Queues of the old cluster that are not there, as `vhost/name`: those of sessions and runs.
    pub dropped: Vec<String>,
    /// Queues that are empty because the backup was made without their messages, as `vhost/name`.
    pub missing: Vec<String>,
}

/// Writes the founder of a new cluster into `journal`, which is new. Of the copies only files that the manifest names are
/// used, and only copies whose files are all as it says. [`super::check`] must follow before anybody counts on it.
///
/// # Errors
/// `journal` is then worth nothing.
pub fn build<T: FileSystem, F: FileSystem>(
    journal: &mut Journal<T>,
    manifest: &Manifest,
    copies: &[HoldCopy<F>],
    new: &NewCluster,
) -> Result<Restored, RestoreError> {
    usable(manifest)?;
    let damages = damages(manifest, copies);
    let words = |(member, problems): &(String, Vec<crate::backup::files::Problem>)| {
        problems.iter().map(|problem| format!("{member}: {problem}")).collect::<Vec<_>>()
    };
    let damaged: Vec<String> = damages.iter().flat_map(words).collect();
    let whole: BTreeSet<String> =
        damages.iter().filter(|(_, problems)| problems.is_empty()).map(|(member, _)| member.clone()).collect();
    let mut builder = Builder {
        journal,
        manifest,
        new,
        batch: Vec::new(),
        bytes: 0,
        founder: MemberId(0),
        done: BTreeSet::new(),
        failed: BTreeMap::new(),
        restored: Restored { damaged, ..Restored::default() },
    };
    builder.refuse_gaps(&whole)?;
    // Group 0 says which number the founder has, so its copy comes first, and then those that have most of the rest.
    let mut order = Coverage::of(manifest).chosen(&whole);
    order.sort_by_key(|member| !manifest.groups[0].holders.contains(&member.name));
    // What is in nobody's way: a copy that is not needed unless another one disappoints.
    let spare = manifest.members.iter().filter(|member| whole.contains(&member.name));
    let spare: Vec<&MemberEntry> = spare.filter(|member| !order.iter().any(|it| it.name == member.name)).collect();
    for member in order.into_iter().chain(spare) {
        let copy = copies.iter().find(|copy| copy.member == member.name);
        if let Some(copy) = copy {
            builder.take_from(member, copy)?;
        }
    }
    builder.finish()
}

struct Builder<'a, T: FileSystem> {
    journal: &'a mut Journal<T>,
    manifest: &'a Manifest,
    new: &'a NewCluster,
    /// What is to be written next.
    batch: Vec<Op>,
    bytes: usize,
    /// Known once group 0 is done.
    founder: MemberId,
    done: BTreeSet<u64>,
    /// What was wrong with groups in copies whose files are as they should be.
    failed: BTreeMap<u64, Vec<String>>,
    restored: Restored,
}

impl<T: FileSystem> Builder<'_, T> {
    /// Fails before anything is written if some group cannot be had.
    fn refuse_gaps(&self, whole: &BTreeSet<String>) -> Result<(), RestoreError> {
        let lacking = Coverage::of(self.manifest).lacking(whole);
        if lacking.is_empty() {
            return Ok(());
        }
        let holders: BTreeSet<&str> =
            lacking.iter().flat_map(|group| group.holders.iter().map(String::as_str)).collect();
        let holders: Vec<String> = holders.into_iter().map(str::to_owned).collect();
        let mut text =
            format!("no whole copy is there of {}: it takes that of {}", queues_of(&lacking), listed(&holders));
        if !self.restored.damaged.is_empty() {
            text.push_str(&format!("; damaged are {}", listed(&self.restored.damaged)));
        }
        Err(RestoreError::Backup(text))
    }

    fn open(&self) -> impl Iterator<Item = &GroupEntry> {
        self.manifest.groups.iter().filter(|group| !self.done.contains(&group.place.group))
    }

    /// Takes what is still needed from one member's copy.
    fn take_from<F: FileSystem>(&mut self, member: &MemberEntry, copy: &HoldCopy<F>) -> Result<(), RestoreError> {
        let wanted: Vec<GroupEntry> = self.open().filter(|it| it.holders.contains(&member.name)).cloned().collect();
        // Without group 0 nothing else counts.
        if wanted.is_empty() || (self.founder == MemberId(0) && wanted[0].place.group != 0) {
            return Ok(());
        }
        let view = HeldView::new(copy.files.clone(), member.files.iter().map(FileEntry::held));
        let (found, reader) = match inspect_with_reader(&view, Scrutiny::AsAtStart) {
            Ok(found) => found,
            Err(error) => {
                for group in &wanted {
                    self.failed_in(group, member, format!("the log cannot be read: {error}"));
                }
                return Ok(());
            }
        };
        let mut groups: BTreeMap<_, RecoveredGroup> =
            found.groups.into_iter().map(|group| (group.key, group)).collect();
        let mut any = false;
        for group in &wanted {
            let place = group.place.place().map_err(RestoreError::Backup)?;
            let recovered = groups.remove(&group_key(place.group, place.incarnation));
            let copy = recovered
                .ok_or_else(|| "it is not there".to_owned())
                .and_then(|recovered| GroupCopy::<AnyMachine>::read_cut(recovered, &reader, place.index))
                .and_then(|copy| is_as_listed(&copy, &reader, &group.state).map(|()| copy));
            match copy {
                Ok(copy) => {
                    self.carry_over(group, copy, &reader)?;
                    any = true;
                }
                Err(why) => self.failed_in(group, member, why),
            }
        }
        if any {
            self.restored.read.push(member.name.clone());
        }
        Ok(())
    }

    fn failed_in(&mut self, group: &GroupEntry, member: &MemberEntry, why: String) {
        self.failed.entry(group.place.group).or_default().push(format!("{}: {why}", member.name));
    }

    fn carry_over<R: EntryReader>(
        &mut self,
        group: &GroupEntry,
        mut copy: GroupCopy<AnyMachine>,
        reader: &R,
    ) -> Result<(), RestoreError> {
        let unreadable = |why: String| RestoreError::Backup(format!("{} cannot be read: {why}", queues_of(&[group])));
        let place = group.place.place().map_err(RestoreError::Backup)?;
        match &mut copy.machine {
            AnyMachine::Meta(_) => self.refound(&mut copy)?,
            AnyMachine::Queue(machine) => machine.forget_homes(),
        }
        let key = group_key(place.group, restored_life(place.incarnation, self.new.nonce));
        let live = copy.live_payloads().map_err(unreadable)?;
        for (index, location) in &live {
            let payload = reader.read(*location).map_err(|error| unreadable(error.to_string()))?;
            self.put(payload.len(), Op::Body { key, index: *index, payload })?;
        }
        let replica = ReplicaId { member: self.founder, generation: SOURCE_GENERATION };
        let machine: Bytes = copy.machine.snapshot();
        let bytes = machine.len();
        let live = live.into_iter().map(|(index, _)| index).collect();
        // They belong together, but a batch may end between them: nothing of this journal counts before all of it does.
        for op in copy.reborn(key, replica, machine, live) {
            self.put(if matches!(op, Op::Checkpoint { .. }) { bytes } else { 0 }, op)?;
        }
        self.done.insert(group.place.group);
        self.restored.groups += 1;
        for queue in &group.state.queues {
            self.restored.queues += 1;
            self.restored.messages += queue.messages;
            self.restored.message_bytes += queue.bytes;
        }
        Ok(())
    }

    /// The metadata become those of the new cluster, and the journal that of its founder.
    fn refound(&mut self, copy: &mut GroupCopy<AnyMachine>) -> Result<(), RestoreError> {
        let AnyMachine::Meta(machine) = &mut copy.machine else { return Ok(()) };
        let new = self.new;
        let mut groups: BTreeMap<GroupId, u64> =
            self.manifest.groups.iter().map(|group| (GroupId(group.place.group), group.place.index)).collect();
        for missing in &self.manifest.missing {
            groups.insert(GroupId(missing.group), 0);
            self.restored.missing.extend(missing.queues.iter().cloned());
        }
        let founder = NewMember {
            uuid: new.uuid.to_string(),
            name: new.name.clone(),
            zone: new.zone.clone(),
            address: new.address.clone(),
            boot: None,
        };
        let wanted = Restoration {
            cluster_id: new.cluster_id.clone(),
            founder,
            expected: new.expected(),
            defaults: new.defaults,
            user: new.user.clone(),
            nonce: new.nonce,
            groups,
        };
        let refused = |refusal: holdfast_queue::meta::Refusal| RestoreError::Backup(refusal.text);
        let refounded = machine.refound(&wanted).map_err(refused)?;
        self.founder = refounded.founder;
        let dropped = refounded.dropped.into_iter().map(|(vhost, name)| format!("{vhost}/{name}"));
        self.restored.dropped = dropped.collect();
        let place = self.manifest.groups[0].place.place().map_err(RestoreError::Backup)?;
        let addresses = new.expected().into_iter().map(|member| member.address);
        let identity = Identity {
            uuid: new.uuid,
            membership: Some(Membership {
                cluster_id: new.cluster_id.clone(),
                cluster_epoch: 1,
                meta_incarnation: restored_life(place.incarnation, new.nonce),
                member: self.founder,
                joining: false,
                meta_generation: SOURCE_GENERATION,
                peers: addresses.filter(|address| !address.is_empty() && *address != new.address).collect(),
            }),
            admin_token: new.admin_token,
            forgetful: false,
        };
        self.put(0, Op::Identity(identity.encode().into()))
    }

    fn put(&mut self, bytes: usize, op: Op) -> Result<(), RestoreError> {
        self.batch.push(op);
        self.bytes += bytes + OP_BYTES;
        if self.bytes >= BATCH_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), RestoreError> {
        self.bytes = 0;
        let ops = std::mem::take(&mut self.batch);
        if !ops.is_empty() {
            self.journal.write(&Batch { ops, ..Batch::default() })?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Restored, RestoreError> {
        let open: Vec<&GroupEntry> = self.open().collect();
        if !open.is_empty() {
            let why: Vec<String> = self.failed.values().flatten().cloned().collect();
            let text = format!("no copy of {} is what the manifest says: {}", queues_of(&open), listed(&why));
            return Err(RestoreError::Backup(text));
        }
        self.write()?;
        Ok(self.restored)
    }
}

impl NewCluster {
    /// Who should be in it, the founder included.
    pub(super) fn expected(&self) -> Vec<holdfast_queue::meta::ExpectedMember> {
        let mut expected = self.expected.clone();
        if !expected.iter().any(|member| member.name == self.name) {
            let (name, address, zone) = (self.name.clone(), self.address.clone(), self.zone.clone());
            expected.insert(0, holdfast_queue::meta::ExpectedMember { name, address, zone });
        }
        expected
    }
}

/// Whether a copy of a group is what the manifest says of it.
pub(super) fn is_as_listed<R: EntryReader>(
    copy: &GroupCopy<AnyMachine>,
    reader: &R,
    expected: &StateEntry,
) -> Result<(), String> {
    let found = state_of(copy, reader, &mut |_, _| {})?;
    if let Some((expected, found)) = expected.queues.iter().zip(&found.queues).find(|(a, b)| a != b) {
        return Err(format!("queue '{}' in vhost '{}': {}", expected.name, expected.vhost, differs(expected, found)));
    }
    match found == *expected {
        true => Ok(()),
        false => Err("its state is another than the manifest says".into()),
    }
}
