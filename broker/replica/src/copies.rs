//! On how many disks an entry is, for confirms that wait for more copies than a majority (`min-in-sync-replicas`).

use holdfast_journal::EntryReader;
use holdfast_queue::Machine;
use raft::{Progress, ProgressState};

use crate::context::Context;
use crate::group::Group;

/// A voter that lacks no more entries than this counts as in sync, as for the member's own health figures: under load a
/// healthy follower is always a little behind.
const IN_SYNC_LAG: u64 = 1_000;

impl<M: Machine, R: EntryReader> Group<M, R> {
    /// The voters that count as copies. Of a joint membership those that stay: what the others hold goes with them.
    fn counted_voters(&self) -> impl Iterator<Item = &Progress> {
        let raft = &self.raw.raft;
        let voters = self.voter_halves.first().map(Vec::as_slice).unwrap_or_default();
        voters.iter().filter_map(|voter| raft.prs().get(*voter))
    }

    /// On the leader: voters, itself included, that have the committed entry of this index on disk. `matched` moves only
    /// when a write is reported durable, the leader's own too.
    pub fn copies(&self, index: u64) -> usize {
        if !self.is_leader() || index > self.commit() {
            return 0;
        }
        self.counted_voters().filter(|progress| progress.matched >= index).count()
    }

    /// On the leader: the highest committed index that at least `copies` voters have on disk; 0 if there is none.
    pub fn durable_on(&self, copies: usize) -> u64 {
        if !self.is_leader() || copies == 0 {
            return 0;
        }
        let mut matched: Vec<u64> = self.counted_voters().map(|progress| progress.matched).collect();
        matched.sort_unstable_by(|a, b| b.cmp(a));
        matched.get(copies - 1).map_or(0, |index| (*index).min(self.commit()))
    }

    /// On the leader: voters, itself included, that answer and lack little, so that a new entry will soon be on their disks.
    /// A new leader does not know yet what the others have; then their answering is all that counts.
    pub fn voters_in_sync<E>(&self, cx: &Context<E>) -> usize {
        let voters = self.voter_halves.first().map(Vec::as_slice).unwrap_or_default();
        voters.iter().filter(|voter| self.is_in_sync(**voter, cx)).count()
    }

    /// The same of one replica. Of one that does not vote it is known what it has: nothing, until it has said so.
    pub fn is_in_sync<E>(&self, replica: u64, cx: &Context<E>) -> bool {
        let Some(progress) = self.raw.raft.prs().get(replica).filter(|_| self.is_leader()) else { return false };
        let votes = self.raw.raft.prs().conf().voters().contains(replica);
        let near = (progress.matched == 0 && votes) || self.last().saturating_sub(progress.matched) <= IN_SYNC_LAG;
        let answers = cx.is_up(replica) && !self.unheard.contains(&replica);
        replica == self.me.raft_id() || (answers && progress.state != ProgressState::Snapshot && near)
    }

    /// On the leader: voters, itself included, that have answered this leader and lack little.
    pub fn voters_known_in_sync<E>(&self, cx: &Context<E>) -> usize {
        let has_answered = |voter: u64| self.raw.raft.prs().get(voter).is_some_and(|progress| progress.matched > 0);
        let voters = self.voter_halves.first().map(Vec::as_slice).unwrap_or_default();
        voters.iter().filter(|voter| has_answered(**voter) && self.is_in_sync(**voter, cx)).count()
    }
}
