use std::collections::BTreeSet;

use holdfast_wire::Method;

use crate::outbox::Outbox;

/// The publisher confirms of one channel. The engine resolves publishes in any order; what is resolved without a gap
/// goes out as one `multiple` acknowledgement, the rest one by one (as RabbitMQ coalesces them).
#[derive(Debug)]
pub(crate) struct Confirms {
    /// Publishes before `confirm.select`: they have no confirm number.
    before: u64,
    outstanding: BTreeSet<u64>,
    resolved: Vec<Resolved>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Resolved {
    seq: u64,
    accepted: bool,
}

impl Confirms {
    pub fn new(published_before: u64) -> Confirms {
        Confirms { before: published_before, outstanding: BTreeSet::new(), resolved: Vec::new() }
    }

    pub fn published(&mut self, seq: u64) {
        self.outstanding.insert(seq);
    }

    /// Notes the end of a publish. True if this is the first since the last flush.
    pub fn resolve(&mut self, seq: u64, accepted: bool) -> bool {
        if !self.outstanding.remove(&seq) {
            return false;
        }
        self.resolved.push(Resolved { seq, accepted });
        self.resolved.len() == 1
    }

    pub fn flush(&mut self, channel: u16, out: &mut Outbox) {
        self.resolved.sort_unstable();
        let gap = self.outstanding.first().copied().unwrap_or(u64::MAX);
        let mut run_start = 0;
        for at in 0..self.resolved.len() {
            let this = self.resolved[at];
            let joins_next =
                self.resolved.get(at + 1).is_some_and(|next| next.seq < gap && next.accepted == this.accepted);
            if this.seq < gap && joins_next {
                continue;
            }
            let (delivery_tag, multiple) = (this.seq - self.before, at > run_start);
            out.method(
                channel,
                &if this.accepted {
                    Method::BasicAck { delivery_tag, multiple }
                } else {
                    Method::BasicNack { delivery_tag, multiple, requeue: false }
                },
            );
            run_start = at + 1;
        }
        self.resolved.clear();
    }
}

#[cfg(test)]
#[path = "confirms_tests.rs"]
mod tests;
