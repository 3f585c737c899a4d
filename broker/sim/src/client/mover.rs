//! A client that moves messages: it publishes what it is given to another queue, and acks it once that is confirmed. At
//! every moment each message is in one of the two queues at least.

use super::Client;
use crate::ledger::Ledger;
use holdfast_wire::Method;

/// Deliveries that it accepts at a time.
pub(super) const PREFETCH: u16 = 20;

impl Client {
    /// Publishes what it holds.
    pub(super) fn move_some(&mut self, now_us: u64, to: &str) {
        for (tag, id) in std::mem::take(&mut self.held) {
            self.unconfirmed.insert(self.next_number, now_us);
            self.moving.insert(self.next_number, (tag, id));
            self.next_number += 1;
            self.publish(to, id);
            self.waiting_since.get_or_insert(now_us);
        }
        let idle = self.awaiting_sync.is_empty() && self.unconfirmed.is_empty();
        if idle && !self.acked.is_empty() {
            self.awaiting_sync = std::mem::take(&mut self.acked);
            self.waiting_since.get_or_insert(now_us);
            self.qos(PREFETCH);
        }
    }

    /// What it published is there: the original may go.
    pub(super) fn moved(&mut self, numbers: impl Iterator<Item = u64>) {
        for number in numbers {
            if let Some((tag, id)) = self.moving.remove(&number) {
                self.send(&Method::BasicAck { delivery_tag: tag, multiple: false });
                self.acked.push(id);
            }
        }
    }

    /// What was refused is tried again.
    pub(super) fn not_moved(&mut self, numbers: impl Iterator<Item = u64>, ledger: &mut Ledger) {
        let session = self.session();
        for number in numbers {
            if let Some((tag, id)) = self.moving.remove(&number) {
                self.send(&Method::BasicNack { delivery_tag: tag, multiple: false, requeue: true });
                ledger.given_back(session, id);
            }
        }
    }
}
