//! This member's streams to queue groups. It may know thousands of groups while it talks to few: what time does to
//! streams is done to those that are not at rest.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_queue::ids::GroupId;

use crate::requests::QueueStream;

/// All streams to queue groups.
#[derive(Default)]
pub(crate) struct Streams {
    all: BTreeMap<GroupId, QueueStream>,
    /// Every stream that is not at rest, and others that were touched since they were last looked at.
    busy: BTreeSet<GroupId>,
}

impl Streams {
    pub(crate) fn get(&self, group: GroupId) -> Option<&QueueStream> {
        self.all.get(&group)
    }

    pub(crate) fn get_mut(&mut self, group: GroupId) -> Option<&mut QueueStream> {
        let stream = self.all.get_mut(&group)?;
        self.busy.insert(group);
        Some(stream)
    }

    /// The stream, which begins as `new` says if there is none.
    pub(crate) fn entry(&mut self, group: GroupId, new: impl FnOnce() -> QueueStream) -> &mut QueueStream {
        self.busy.insert(group);
        self.all.entry(group).or_insert_with(new)
    }

    pub(crate) fn contains(&self, group: GroupId) -> bool {
        self.all.contains_key(&group)
    }

    pub(crate) fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.all.keys().copied()
    }

    pub(crate) fn remove(&mut self, group: GroupId) -> Option<QueueStream> {
        self.busy.remove(&group);
        self.all.remove(&group)
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// All streams, at rest or not. Those for which `visit` says so are not at rest any more.
    pub(crate) fn wake(&mut self, mut visit: impl FnMut(GroupId, &mut QueueStream) -> bool) {
        for (group, stream) in &mut self.all {
            if visit(*group, stream) {
                self.busy.insert(*group);
            }
        }
    }

    /// Those that may not be at rest.
    pub(crate) fn busy(&self) -> impl Iterator<Item = (GroupId, &QueueStream)> {
        self.busy.iter().filter_map(|group| Some((*group, self.all.get(group)?)))
    }

    /// As [`Streams::busy`]; those that turn out to be at rest are left out from now on.
    pub(crate) fn visit_busy(&mut self, mut visit: impl FnMut(GroupId, &mut QueueStream)) {
        let all = &mut self.all;
        self.busy.retain(|group| {
            let Some(stream) = all.get_mut(group) else { return false };
            visit(*group, stream);
            !stream.rest()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_queue::ids::{BootId, MemberId, QueueId};
    use holdfast_queue::queue::QueueCommand;
    use holdfast_queue::time::Instant;

    fn visited(streams: &mut Streams) -> Vec<u64> {
        let mut seen = Vec::new();
        streams.visit_busy(|group, _| seen.push(group.0));
        seen
    }

    #[test]
    fn only_streams_with_something_under_way_are_visited() {
        let mut streams = Streams::default();
        let now = Instant(1);
        for number in 1..=3 {
            let stream = streams.entry(GroupId(number), QueueStream::default);
            stream.led_by(MemberId(1), 1);
            assert!(!stream.begin_attach(false, now));
        }
        assert_eq!(visited(&mut streams), [1, 2, 3], "all are new");
        assert_eq!(visited(&mut streams), [] as [u64; 0], "all are at rest");
        let stream = streams.get_mut(GroupId(2)).expect("a stream");
        stream.push(QueueCommand::Purge { queue: QueueId(9) }, 10, None);
        stream.next_batch(BootId(1), now).expect("a batch");
        assert_eq!(visited(&mut streams), [2]);
        assert_eq!(visited(&mut streams), [2], "it waits for its confirm");
        streams.get_mut(GroupId(2)).expect("a stream").confirmed(1, 1, now);
        assert_eq!(visited(&mut streams), [2]);
        assert_eq!(visited(&mut streams), [] as [u64; 0]);
        streams.wake(|group, stream| {
            if group == GroupId(3) {
                stream.detach();
            }
            group == GroupId(3)
        });
        assert_eq!(visited(&mut streams), [3], "it is to be attached again");
        assert_eq!(visited(&mut streams), [3]);
    }
}
