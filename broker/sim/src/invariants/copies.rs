//! A message that was confirmed is, at that moment, on as many disks as were asked for (`min-in-sync-replicas`).
//!
//! Disks are looked at from outside: what a member's journal called durable is taken apart here, entry by entry. A message
//! that a consumer has received already may be gone from disks by right.

use std::collections::BTreeMap;

use holdfast_journal::{GroupKey, Op};
use holdfast_queue::codec::Entry;
use holdfast_queue::queue::QueueCommand;

use crate::ledger::{MessageId, decode_body};

/// The first byte of payloads that the replica host writes for itself.
const HOST_PAYLOAD: u8 = 0xff;

/// A log's entries above its compacted part: their messages, by index, and nothing of their terms, since a later write at
/// an index replaces what was there.
type Log = BTreeMap<u64, Vec<MessageId>>;

/// Which messages each member's disk holds.
#[derive(Default)]
pub struct OnDisks {
    logs: BTreeMap<(usize, GroupKey), Log>,
    /// How often each disk holds each message.
    copies: BTreeMap<MessageId, BTreeMap<usize, u32>>,
}

impl OnDisks {
    /// These are durable on a member's disk: its journal reported them as written, or found them at a start.
    pub fn written(&mut self, member: usize, ops: &[Op]) {
        for op in ops {
            match op {
                Op::Entry { key, index, payload, .. } => {
                    let log = self.logs.entry((member, *key)).or_default();
                    let messages = messages_in(key.group, payload);
                    for dropped in log.split_off(index).into_values().flatten() {
                        let here = self.copies.entry(dropped).or_default().entry(member).or_default();
                        *here = here.saturating_sub(1);
                    }
                    for message in &messages {
                        *self.copies.entry(*message).or_default().entry(member).or_default() += 1;
                    }
                    log.insert(*index, messages);
                }
                Op::Body { key, payload, .. } => {
                    for message in messages_in(key.group, payload) {
                        *self.copies.entry(message).or_default().entry(member).or_default() += 1;
                    }
                }
                // What is below the prefix can be replaced no more.
                Op::Compact { key, up_to, .. } | Op::Reset { key, index: up_to, .. } => {
                    if let Some(log) = self.logs.get_mut(&(member, *key)) {
                        *log = log.split_off(&(up_to + 1));
                    }
                }
                Op::HardState { .. }
                | Op::Checkpoint { .. }
                | Op::CheckpointAside { .. }
                | Op::Dead { .. }
                | Op::Repaired { .. }
                | Op::Destroy { .. }
                | Op::Identity(_)
                | Op::MovesTaken { .. } => {}
            }
        }
    }

    /// A client has read the confirm of a message that nobody has received.
    ///
    /// # Errors
    /// When fewer than `wanted` disks hold it.
    pub fn confirmed(&self, message: MessageId, wanted: usize) -> Result<(), String> {
        let disks: Vec<usize> =
            self.copies.get(&message).into_iter().flatten().filter(|(_, n)| **n > 0).map(|(m, _)| *m).collect();
        if disks.len() >= wanted {
            return Ok(());
        }
        Err(format!("{message:?} was confirmed on the disks of {disks:?}, and {wanted} were asked for"))
    }
}

fn messages_in(group: u64, payload: &bytes::Bytes) -> Vec<MessageId> {
    if group == 0 || payload.first().is_none_or(|first| *first == HOST_PAYLOAD) {
        return Vec::new();
    }
    let Ok(entry) = Entry::<QueueCommand>::from_bytes(payload) else { return Vec::new() };
    let commands = entry.batches.into_iter().flat_map(|batch| batch.commands);
    commands
        .filter_map(|one| match one.command {
            QueueCommand::Publish { message, .. } => decode_body(&message.body),
            _ => None,
        })
        .collect()
}
