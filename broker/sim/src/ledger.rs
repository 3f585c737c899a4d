//! The outside ledger: what clients were told, kept apart from anything the brokers say of themselves. The simulator,
//! the real-process tests and the end-to-end cases all judge by it.
//!
//! A publish is *unknown* from the moment it was sent until its confirm arrives; one whose connection broke stays
//! unknown unless it is sent again and confirmed. Only a confirmed message that is never delivered counts as lost. A
//! message may be delivered as often as it was sent (its producer could not know better) and again with the
//! `redelivered` flag; any delivery after as many acks became durable as it was sent is a violation. An ack is durable
//! once a later synchronous reply on its channel has been read.

use std::collections::{BTreeMap, BTreeSet};

use crate::holdings::Holdings;

/// Identifies a message: its producer and the producer's own consecutive number, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MessageId {
    /// The producer.
    pub producer: u32,
    /// Its number there.
    pub number: u64,
}

/// Bytes of the head of a body: producer (4), number (8), CRC-32C of everything else (4).
const HEAD_BYTES: usize = 16;

/// A body of `size_bytes` (at least the head) that names its message and proves itself whole.
#[must_use]
pub fn encode_body(id: MessageId, size_bytes: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(size_bytes.max(HEAD_BYTES));
    body.extend_from_slice(&id.producer.to_be_bytes());
    body.extend_from_slice(&id.number.to_be_bytes());
    body.extend_from_slice(&[0; 4]);
    let mut filler = id.number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(id.producer);
    while body.len() < size_bytes {
        filler ^= filler << 13;
        filler ^= filler >> 7;
        filler ^= filler << 17;
        body.push(filler.to_le_bytes()[0]);
    }
    let sum = checksum(&body);
    body[12..16].copy_from_slice(&sum.to_be_bytes());
    body
}

/// Reads a body back; `None` when it is torn, altered or not ours.
#[must_use]
pub fn decode_body(body: &[u8]) -> Option<MessageId> {
    let producer = u32::from_be_bytes(body.get(0..4)?.try_into().ok()?);
    let number = u64::from_be_bytes(body.get(4..12)?.try_into().ok()?);
    let sum = u32::from_be_bytes(body.get(12..16)?.try_into().ok()?);
    (sum == checksum(body)).then_some(MessageId { producer, number })
}

fn checksum(body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&body[..12]), &body[HEAD_BYTES..])
}

/// What is known of one message.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    sent: u32,
    confirmed: bool,
    refused: bool,
    delivered: u32,
    delivered_first_time: u32,
    acks_durable: u32,
}

/// The ledger of one queue.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    entries: BTreeMap<MessageId, Entry>,
    last_in_order: BTreeMap<(u32, u32), u64>,
    violations: Vec<String>,
    confirmed: u64,
    undelivered: u64,
    holdings: Holdings,
    has_no_order: bool,
}

/// The verdict over a whole run.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// Messages whose confirm was read.
    pub confirmed: u64,
    /// Distinct messages that a consumer received.
    pub consumed: u64,
    /// Confirmed messages that nobody received.
    pub lost: u64,
    /// Deliveries, not flagged redelivered, beyond the number of times the message was sent.
    pub duplicates: u64,
    /// Publishes that were never confirmed (their fate is unknown, and both fates are right).
    pub unknown: u64,
    /// Broken promises other than loss, in words.
    pub violations: Vec<String>,
}

impl Verdict {
    /// No loss, no duplicate, no broken promise.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicates == 0 && self.violations.is_empty()
    }
}

impl Ledger {
    /// The queue was filled in any order.
    pub fn order_does_not_matter(&mut self) {
        self.has_no_order = true;
    }

    /// The message is about to be written to a socket.
    pub fn sent(&mut self, id: MessageId) {
        self.entries.entry(id).or_default().sent += 1;
    }

    /// Its confirm was read.
    pub fn confirmed(&mut self, id: MessageId) {
        let entry = self.entries.entry(id).or_default();
        if !entry.confirmed {
            entry.confirmed = true;
            self.confirmed += 1;
            self.undelivered += u64::from(entry.delivered == 0);
        }
        if entry.sent == 0 {
            self.violations.push(format!("{id:?} was confirmed but never sent"));
        }
    }

    /// The broker refused it with a nack.
    pub fn refused(&mut self, id: MessageId) {
        self.entries.entry(id).or_default().refused = true;
    }

    /// A consumer received it. `consumer` tells consumers apart for the order check: a consumer that lost its channel
    /// is a new one. Gives the message when its body is whole.
    pub fn delivered(&mut self, consumer: u32, body: &[u8], redelivered: bool) -> Option<MessageId> {
        let Some(id) = decode_body(body) else {
            self.violations.push(format!("a body of {} bytes arrived damaged", body.len()));
            return None;
        };
        let entry = self.entries.entry(id).or_default();
        self.undelivered -= u64::from(entry.confirmed && entry.delivered == 0);
        entry.delivered += 1;
        entry.delivered_first_time += u32::from(!redelivered);
        let seen = *entry;
        if seen.acks_durable > 0 && seen.acks_durable >= seen.sent {
            let flag = if redelivered { "redelivered" } else { "new" };
            self.violations.push(format!(
                "{id:?} was delivered again, as {flag}, to consumer {consumer} after its ack was durable"
            ));
        }
        if seen.sent == 0 {
            self.violations.push(format!("{id:?} was delivered but never sent"));
        }
        // Order is promised per publishing channel for messages that were neither requeued nor sent twice.
        if !redelivered && seen.sent == 1 && !self.has_no_order {
            let last = self.last_in_order.entry((consumer, id.producer)).or_default();
            let previous = *last;
            *last = previous.max(id.number);
            if id.number < previous {
                self.violations.push(format!("{id:?} was overtaken by {previous} of the same producer"));
            }
        }
        Some(id)
    }

    /// A session holds what it was just delivered, until it gives it back or ends. Only for judges that see every
    /// session's end.
    pub fn held(&mut self, session: u32, id: MessageId, redelivered: bool) {
        self.violations.extend(self.holdings.given(session, id, redelivered));
    }

    /// A session gives a message back.
    pub fn given_back(&mut self, session: u32, id: MessageId) {
        self.holdings.given_back(session, id);
    }

    /// A session ends.
    pub fn session_ended(&mut self, session: u32) {
        self.holdings.ended(session);
    }

    /// The acks of these messages are durable.
    pub fn acks_durable(&mut self, ids: &[MessageId]) {
        for id in ids {
            self.entries.entry(*id).or_default().acks_durable += 1;
        }
    }

    /// True once a consumer has received the message.
    #[must_use]
    pub fn was_delivered(&self, id: MessageId) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.delivered > 0)
    }

    /// Distinct messages confirmed so far.
    #[must_use]
    pub fn confirmed_count(&self) -> u64 {
        self.confirmed
    }

    fn ids(&self, wanted: impl Fn(&Entry) -> bool) -> BTreeSet<MessageId> {
        self.entries.iter().filter(|(_, entry)| wanted(entry)).map(|(id, _)| *id).collect()
    }

    /// Messages that were written to a socket.
    #[must_use]
    pub fn sent_ids(&self) -> BTreeSet<MessageId> {
        self.ids(|entry| entry.sent > 0)
    }

    /// Messages whose confirm was read.
    #[must_use]
    pub fn confirmed_ids(&self) -> BTreeSet<MessageId> {
        self.ids(|entry| entry.confirmed)
    }

    /// Messages that a consumer received.
    #[must_use]
    pub fn delivered_ids(&self) -> BTreeSet<MessageId> {
        self.ids(|entry| entry.delivered > 0)
    }

    /// Messages that must not come back.
    #[must_use]
    pub fn durably_acked_ids(&self) -> BTreeSet<MessageId> {
        self.ids(|entry| entry.acks_durable > 0 && entry.acks_durable >= entry.sent)
    }

    /// True when every confirmed message was received at least once.
    #[must_use]
    pub fn all_confirmed_were_delivered(&self) -> bool {
        self.undelivered == 0
    }

    /// Confirmed messages that nobody has received yet.
    #[must_use]
    pub fn undelivered_count(&self) -> u64 {
        self.undelivered
    }

    /// Broken promises so far, in words.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// The verdict, to be asked when the queue has been drained.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let entries = self.entries.values();
        Verdict {
            confirmed: self.confirmed,
            consumed: entries.clone().filter(|entry| entry.delivered > 0).count() as u64,
            lost: entries.clone().filter(|entry| entry.confirmed && entry.delivered == 0).count() as u64,
            duplicates: entries
                .clone()
                .map(|entry| u64::from(entry.delivered_first_time.saturating_sub(entry.sent)))
                .sum(),
            unknown: entries.filter(|entry| !entry.confirmed && !entry.refused).count() as u64,
            violations: self.violations.clone(),
        }
    }

    /// The first few confirmed messages that nobody received, for a report.
    #[must_use]
    pub fn some_lost(&self) -> Vec<MessageId> {
        let lost = self.entries.iter().filter(|(_, entry)| entry.confirmed && entry.delivered == 0);
        lost.map(|(id, _)| *id).take(10).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MessageId = MessageId { producer: 3, number: 77 };

    #[test]
    fn a_body_names_its_message_and_any_changed_byte_is_noticed() {
        let body = encode_body(ID, 64);
        assert_eq!(body.len(), 64);
        assert_eq!(decode_body(&body), Some(ID));
        for position in 0..body.len() {
            let mut damaged = body.clone();
            damaged[position] ^= 1;
            assert_eq!(decode_body(&damaged), None, "byte {position}");
        }
    }

    #[test]
    fn a_confirmed_message_that_never_arrives_is_lost_and_an_unknown_one_is_not() {
        let mut ledger = Ledger::default();
        ledger.sent(ID);
        ledger.sent(MessageId { number: 78, ..ID });
        ledger.confirmed(ID);
        let verdict = ledger.verdict();
        assert_eq!((verdict.lost, verdict.unknown), (1, 1));
    }

    #[test]
    fn a_message_sent_twice_may_arrive_twice_but_not_three_times() {
        let mut ledger = Ledger::default();
        ledger.sent(ID);
        ledger.sent(ID);
        let body = encode_body(ID, 32);
        ledger.delivered(0, &body, false);
        ledger.delivered(0, &body, false);
        assert!(ledger.verdict().is_clean());
        ledger.delivered(0, &body, false);
        assert_eq!(ledger.verdict().duplicates, 1);
    }

    #[test]
    fn a_delivery_after_a_durable_ack_breaks_a_promise() {
        let mut ledger = Ledger::default();
        ledger.sent(ID);
        let body = encode_body(ID, 32);
        ledger.delivered(0, &body, false);
        ledger.acks_durable(&[ID]);
        ledger.delivered(0, &body, true);
        assert_eq!(ledger.verdict().violations.len(), 1);
    }

    #[test]
    fn of_a_message_sent_twice_the_second_copy_may_come_after_the_first_ones_durable_ack() {
        let mut ledger = Ledger::default();
        ledger.sent(ID);
        ledger.sent(ID);
        let body = encode_body(ID, 32);
        ledger.delivered(0, &body, false);
        ledger.acks_durable(&[ID]);
        ledger.delivered(0, &body, true);
        assert!(ledger.verdict().is_clean());
        ledger.acks_durable(&[ID]);
        ledger.delivered(0, &body, true);
        assert_eq!(ledger.verdict().violations.len(), 1);
    }

    #[test]
    fn a_message_that_is_overtaken_by_a_later_one_breaks_the_order() {
        let mut ledger = Ledger::default();
        for number in [1, 2] {
            ledger.sent(MessageId { producer: 1, number });
        }
        for number in [2, 1] {
            ledger.delivered(0, &encode_body(MessageId { producer: 1, number }, 32), false);
        }
        assert_eq!(ledger.verdict().violations.len(), 1);
    }
}
