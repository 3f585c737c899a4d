//! Which queues were deleted, in bounded memory.

use crate::codec::codec_struct;
use crate::ids::QueueId;
use std::collections::BTreeSet;

/// How many deleted queues are remembered one by one.
const KEPT: usize = 4096;

/// The deleted queues of a group. The metadata numbers queues upwards and a group gets its own in that order, so of the
/// oldest it is enough to know up to which number: what is not there up to it never comes again.
#[derive(Clone, Debug, Default)]
pub(super) struct Deleted {
    /// Every queue numbered up to this is deleted, unless it is there.
    through: u64,
    /// Deleted ones above that.
    recent: BTreeSet<QueueId>,
}

impl Deleted {
    /// Remembers a queue that is not there, or no more.
    pub(super) fn insert(&mut self, queue: QueueId) {
        if queue.0 <= self.through {
            return;
        }
        self.recent.insert(queue);
        if self.recent.len() > KEPT
            && let Some(oldest) = self.recent.pop_first()
        {
            self.through = oldest.0;
        }
    }

    /// True for a queue that is deleted; asked of one that is not there.
    pub(super) fn contains(&self, queue: QueueId) -> bool {
        queue.0 <= self.through || self.recent.contains(&queue)
    }

    /// Those that are remembered one by one.
    pub(super) fn recent(&self) -> impl Iterator<Item = QueueId> {
        self.recent.iter().copied()
    }
}

codec_struct! {
    Deleted { through, recent }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forgotten_one_by_one_is_remembered_by_its_number_and_nothing_later_is_taken_for_it() {
        let mut deleted = Deleted::default();
        let last = 10 + KEPT as u64 + 3;
        for queue in 10..last {
            deleted.insert(QueueId(queue));
        }
        assert_eq!(deleted.recent().count(), KEPT);
        assert!((10..last).all(|queue| deleted.contains(QueueId(queue))));
        assert!(!deleted.contains(QueueId(last)), "it is yet to come");
        deleted.insert(QueueId(10));
        assert_eq!(deleted.recent().next(), Some(QueueId(13)));
    }
}
