//! One disk's part of the plan: its member's new journal, out of the old one.

use bytes::Bytes;
use holdfast_journal::{Batch, EntryReader, FileSystem, Inspection, Journal, JournalError, Op};
use holdfast_queue::ids::{GroupId, MemberId, ReplicaId};
use holdfast_queue::meta::{SEEDED_GENERATION, SOURCE_GENERATION};
use holdfast_queue::{AnyMachine, Machine};
use holdfast_replica::{GroupCopy, group_key};

use super::plan::{GroupPlan, Outcome, Plan, Position};
use super::survey::Life;
use crate::identity::{Identity, IdentityError};

/// Contents of messages are written in batches of about this size.
const BATCH_BYTES: usize = 8 << 20;

/// Why the new journal could not be made. The old one is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error("the data directory has no identity")]
    Blank,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What the plan counts on cannot be read (any more).
    #[error("the copy of group {group} cannot be used: {why}")]
    Copy { group: u64, why: String },
    #[error("group {group} has changed since the plan was made: its copy ends at {found:?}, not at {planned:?}")]
    Changed { group: u64, found: (u64, u64), planned: (u64, u64) },
}

/// Writes a member's part of the plan into `journal`, which is new: its identity in the new epoch, and each group that
/// goes on from this disk's copy under its new life. `nonce` is the same for every part.
///
/// # Errors
/// `journal` is then worth nothing.
pub fn rebuild<F: FileSystem, R: EntryReader>(
    journal: &mut Journal<F>,
    found: &Inspection,
    reader: &R,
    plan: &Plan,
    nonce: u64,
) -> Result<(), RebuildError> {
    let mut identity = Identity::decode(found.identity.as_ref().ok_or(RebuildError::Blank)?)?;
    let own = identity.membership.as_mut().ok_or(RebuildError::Blank)?;
    let me = own.member;
    let has_metadata = plan.metadata().source == me.0;
    own.cluster_epoch = plan.next_epoch();
    own.meta_incarnation = plan.metadata().next_life(nonce);
    own.joining = !has_metadata;
    own.meta_generation = if has_metadata { SOURCE_GENERATION } else { SEEDED_GENERATION };
    // Nothing of the old life is counted on, so nothing of it needs to be remembered.
    identity.forgetful = false;
    write(journal, vec![Op::Identity(identity.encode().into())])?;
    let here = plan.groups.iter().filter(|group| group.source == me.0 && group.outcome != Outcome::Deleted);
    for (group, position) in here.filter_map(|group| Some((group, group.position?))) {
        Part { plan, nonce, me }.carry_over(journal, found, reader, group, position)?;
    }
    Ok(())
}

struct Part<'a> {
    plan: &'a Plan,
    nonce: u64,
    me: MemberId,
}

impl Part<'_> {
    fn carry_over<F: FileSystem, R: EntryReader>(
        &self,
        journal: &mut Journal<F>,
        found: &Inspection,
        reader: &R,
        group: &GroupPlan,
        position: Position,
    ) -> Result<(), RebuildError> {
        let unusable = |why: String| RebuildError::Copy { group: group.group, why };
        let is_it = |key: &holdfast_journal::GroupKey| key.group == group.group && Life::from(*key) == group.life;
        let recovered = found.groups.iter().find(|recovered| is_it(&recovered.key));
        let recovered = recovered.ok_or_else(|| unusable("it is not there".into()))?.clone();
        let mut copy = GroupCopy::<AnyMachine>::read(recovered, reader).map_err(unusable)?;
        let (ends, planned) = ((copy.last_term, copy.last_index), (position.term, position.index));
        if ends != planned {
            return Err(RebuildError::Changed { group: group.group, found: ends, planned });
        }
        if let AnyMachine::Meta(machine) = &mut copy.machine {
            machine.recover(&self.plan.recovery(self.nonce));
        }
        let key = group_key(GroupId(group.group), group.next_life(self.nonce));
        let mut batch = Vec::new();
        let mut bytes = 0;
        let live = copy.live_payloads().map_err(unusable)?;
        for (index, location) in &live {
            let payload = reader.read(*location).map_err(|error| unusable(error.to_string()))?;
            bytes += payload.len();
            batch.push(Op::Body { key, index: *index, payload });
            if bytes >= BATCH_BYTES {
                write(journal, std::mem::take(&mut batch))?;
                bytes = 0;
            }
        }
        let replica = ReplicaId { member: self.me, generation: SOURCE_GENERATION };
        let machine: Bytes = copy.machine.snapshot();
        let live = live.into_iter().map(|(index, _)| index).collect();
        batch.extend(copy.reborn(key, replica, machine, live));
        write(journal, batch)
    }
}

fn write<F: FileSystem>(journal: &mut Journal<F>, ops: Vec<Op>) -> Result<(), RebuildError> {
    journal.write(&Batch { ops, ..Batch::default() })?;
    Ok(())
}
