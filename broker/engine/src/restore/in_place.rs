//! A member's copy, read for a restore into a cluster that runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_journal::{
    EntryReader, FileSystem, GroupKey, HeldView, JournalReader, Location, RecoveredGroup, Scrutiny, inspect_with_reader,
};
use holdfast_queue::AnyMachine;
use holdfast_queue::codec::message_at;
use holdfast_queue::ids::{MessageRef, QueueId};
use holdfast_queue::in_place::RestoredMessage;
use holdfast_queue::meta::MetaMachine;
use holdfast_replica::{GroupCopy, group_key};

use super::build::is_as_listed;
use super::{HoldCopy, NAMED, RestoreError, listed, queues_of};
use crate::backup::files::damage_in;
use crate::backup::{FileEntry, GroupEntry, Manifest};

/// What a message takes of a step beside its content, about.
const MESSAGE_BYTES: usize = 64;

type Reader<F> = JournalReader<HeldView<F>>;

/// A copy whose files are all as the manifest says.
pub struct OpenCopy<F: FileSystem> {
    /// The member's name.
    pub member: String,
    groups: BTreeMap<GroupKey, RecoveredGroup>,
    reader: Arc<Reader<F>>,
}

/// The messages of a queue at the cut, in their order.
pub struct OpenQueue<F: FileSystem> {
    /// Where each is, and how often it came back.
    messages: Vec<(MessageRef, u32)>,
    places: BTreeMap<u64, Location>,
    reader: Arc<Reader<F>>,
    /// The entry that was read last: messages that came together are in one.
    last: Option<(u64, Bytes)>,
}

fn backup(why: impl Into<String>) -> RestoreError {
    RestoreError::Backup(why.into())
}

impl<F: FileSystem> OpenCopy<F> {
    /// Verifies every file and looks into the log. No file is used that the manifest does not name.
    ///
    /// # Errors
    /// What is wrong with it, by file.
    pub fn open(manifest: &Manifest, copy: HoldCopy<F>) -> Result<Self, RestoreError> {
        let HoldCopy { member: name, files } = copy;
        let Some(member) = manifest.members.iter().find(|member| member.name == name) else {
            return Err(backup(format!("the manifest has no files of member {name}")));
        };
        let problems: Vec<String> = damage_in(member, &files).iter().map(ToString::to_string).collect();
        if !problems.is_empty() {
            return Err(backup(format!("the copy of member {name} is damaged: {}", listed(&problems))));
        }
        let view = HeldView::new(files, member.files.iter().map(FileEntry::held));
        let (found, reader) = inspect_with_reader(&view, Scrutiny::AsAtStart)
            .map_err(|error| backup(format!("{name}: the log cannot be read: {error}")))?;
        let groups = found.groups.into_iter().map(|group| (group.key, group)).collect();
        Ok(Self { member: name, groups, reader: Arc::new(reader) })
    }

    /// Takes a group out of it, as it was at the cut and as the manifest says.
    fn take(&mut self, group: &GroupEntry) -> Result<GroupCopy<AnyMachine>, RestoreError> {
        let place = group.place.place().map_err(RestoreError::Backup)?;
        let recovered = self.groups.remove(&group_key(place.group, place.incarnation));
        let copy = recovered
            .ok_or_else(|| "it is not there".to_owned())
            .and_then(|recovered| GroupCopy::<AnyMachine>::read_cut(recovered, &*self.reader, place.index))
            .and_then(|copy| is_as_listed(&copy, &*self.reader, &group.state).map(|()| copy));
        copy.map_err(|why| backup(format!("{} in the copy of member {}: {why}", queues_of(&[group]), self.member)))
    }

    /// The metadata at the cut. Can be had once.
    ///
    /// # Errors
    /// They are not what the manifest says.
    pub fn metadata(&mut self, group: &GroupEntry) -> Result<MetaMachine, RestoreError> {
        match self.take(group)?.machine {
            AnyMachine::Meta(machine) => Ok(machine),
            AnyMachine::Queue(_) => Err(backup("the metadata (group 0) are none")),
        }
    }

    /// The queues of a group, as the manifest lists them; what was out at a consumer is back in its place, redelivered. Can
    /// be had once.
    ///
    /// # Errors
    /// They are not what the manifest says.
    pub fn queues(&mut self, group: &GroupEntry) -> Result<Vec<OpenQueue<F>>, RestoreError> {
        let mut copy = self.take(group)?;
        let places: BTreeMap<u64, Location> = copy.live_payloads().map_err(backup)?.into_iter().collect();
        let AnyMachine::Queue(machine) = &mut copy.machine else { return Err(backup("it is no group of queues")) };
        machine.forget_homes();
        let open = |queue: &crate::backup::QueueEntry| OpenQueue {
            messages: machine.waiting(QueueId(queue.id)),
            places: places.clone(),
            reader: Arc::clone(&self.reader),
            last: None,
        };
        Ok(group.state.queues.iter().map(open).collect())
    }
}

impl<F: FileSystem> OpenQueue<F> {
    /// How many they are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.messages.len() as u64
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Messages from the `from`th on: as many as have about `bytes`, at least one if there is one.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn read(&mut self, from: u64, bytes: usize) -> Result<Vec<RestoredMessage>, RestoreError> {
        let (mut found, mut size) = (Vec::new(), 0);
        let mut next = usize::try_from(from).unwrap_or(usize::MAX);
        while let Some((at, returns)) = self.messages.get(next).copied().filter(|_| size < bytes) {
            next += 1;
            let message = self.message(at)?;
            size += message.body.len() + message.properties.len() + MESSAGE_BYTES;
            found.push(RestoredMessage { returns, message });
        }
        Ok(found)
    }

    fn message(&mut self, at: MessageRef) -> Result<holdfast_queue::codec::Message, RestoreError> {
        let unreadable = |why: String| backup(format!("message {}: {why}", at.index));
        if self.last.as_ref().is_none_or(|(index, _)| *index != at.index) {
            let place = self.places.get(&at.index).ok_or_else(|| unreadable("it is not there".into()))?;
            let payload = self.reader.read(*place).map_err(|error| unreadable(error.to_string()))?;
            self.last = Some((at.index, payload));
        }
        let payload = self.last.as_ref().map(|(_, payload)| payload.clone()).unwrap_or_default();
        message_at(&payload, at.sub).map_err(|error| unreadable(error.to_string()))
    }
}

/// Names of queues in a manifest, for whoever asked for another.
#[must_use]
pub fn some_queues(manifest: &Manifest) -> String {
    let queues = manifest.groups.iter().flat_map(|group| &group.state.queues);
    let names: Vec<String> = queues.map(|queue| format!("{}/{}", queue.vhost, queue.name)).take(NAMED + 1).collect();
    listed(&names)
}
