//! Work on a member's replicas, cut into parts that several threads can do at once.
//!
//! A [`Worker`] is one [`Host`] with what has arrived for it and what came of that. Workers share nothing, so the driver
//! may let them work side by side, one thread each: a [`Crew`]. What they made is taken in by the member when all are
//! back, so everything else in a member sees replicas that stand still.

use bytes::{BufMut, Bytes, BytesMut};
use holdfast_journal::{EntryReader, Written};
use holdfast_queue::ids::{GroupId, MemberId};
use holdfast_queue::time::{Duration, Instant};
use holdfast_queue::{AnyEffect, AnyMachine};
use holdfast_replica::{Envelope, EnvelopeError, Host, HostOutput};

use crate::peer_message::ENVELOPE_FRAME;

/// An envelope with so many bytes of entries travels in a frame of its own.
const LARGE_BYTES: usize = 4096;
/// So many bytes of an envelope are as much work as one more group.
const BYTES_FOR_LOAD: usize = 16 << 10;

/// Does the work of a member's hosts.
pub trait Crew<R: EntryReader> {
    /// Has every worker [`Worker::work`] once, side by side or in turn, and gives all of them back, in any order: what they
    /// made is taken in in that order.
    fn work(&mut self, workers: Vec<Box<Worker<R>>>) -> Vec<Box<Worker<R>>>;
}

/// One after the other, on the thread that asks.
#[derive(Clone, Copy, Debug)]
pub struct InTurn;

impl<R: EntryReader> Crew<R> for InTurn {
    fn work(&mut self, mut workers: Vec<Box<Worker<R>>>) -> Vec<Box<Worker<R>>> {
        for worker in &mut workers {
            worker.work();
        }
        workers
    }
}

/// Something that a host is to take in, in the order in which it came.
pub(crate) enum Arrival {
    /// An encoded envelope.
    Envelope {
        from: MemberId,
        bytes: Bytes,
    },
    Written(Written),
    /// Time passes. Other hosts of the member have waited so long for the disk; so many bytes may be kept in memory.
    Tick {
        disk_age: Duration,
        cache_bytes: usize,
    },
}

/// What came of it.
pub(crate) enum Made {
    /// An envelope for a member, encoded. A large one is a frame of its own already, with its first byte.
    Envelope {
        to: MemberId,
        bytes: Bytes,
        is_frame: bool,
    },
    /// Another member sent what is no envelope.
    Malformed {
        from: MemberId,
        error: EnvelopeError,
    },
    Output(HostOutput<AnyEffect>),
}

/// One host, what has arrived for it, and what it made.
pub struct Worker<R: EntryReader> {
    index: usize,
    host: Host<AnyMachine, R>,
    arrivals: Vec<(Instant, Arrival)>,
    arrived_bytes: usize,
    malformed: Vec<Made>,
    made: Vec<Made>,
}

impl<R: EntryReader> Worker<R> {
    pub(crate) fn new(index: usize, host: Host<AnyMachine, R>) -> Self {
        Self { index, host, arrivals: Vec::new(), arrived_bytes: 0, malformed: Vec::new(), made: Vec::new() }
    }

    /// Its number in the member, from 0; group 0 is with the first. A crew gives a worker to the same thread each time.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Roughly how much there is to do, in groups that something happened to: a few microseconds each.
    pub fn load(&self) -> usize {
        let ticks = matches!(self.arrivals.last(), Some((_, Arrival::Tick { .. })));
        let awake = if ticks { self.host.awake_count() / 4 } else { 0 };
        self.arrivals.len() + self.arrived_bytes / BYTES_FOR_LOAD + self.host.groups_to_poll() + awake
    }

    /// Takes in all that has arrived, and makes what follows ready.
    pub fn work(&mut self) {
        self.take_in();
        self.made.append(&mut self.malformed);
        while let Some(output) = self.host.poll() {
            self.made.push(made_of(output));
        }
    }

    /// Takes in all that has arrived.
    pub(crate) fn take_in(&mut self) {
        self.arrived_bytes = 0;
        for (now, arrival) in std::mem::take(&mut self.arrivals) {
            let host = &mut self.host;
            match arrival {
                Arrival::Envelope { from, bytes } => match Envelope::decode(bytes) {
                    Ok(envelope) => host.handle_envelope(from, envelope, now),
                    Err(error) => self.malformed.push(Made::Malformed { from, error }),
                },
                Arrival::Written(written) => host.handle_written(&written, now),
                Arrival::Tick { disk_age, cache_bytes } => {
                    host.set_disk_age(disk_age);
                    host.set_cache_budget(cache_bytes);
                    host.tick(now);
                }
            }
        }
    }

    pub(crate) fn arrive(&mut self, now: Instant, arrival: Arrival) {
        self.arrived_bytes += match &arrival {
            Arrival::Envelope { bytes, .. } => bytes.len(),
            _ => 0,
        };
        self.arrivals.push((now, arrival));
    }

    /// How long its oldest batch has been at the journal; zero if one has just been written.
    pub(crate) fn write_age(&self, now: Instant) -> Duration {
        let has_news = self.arrivals.iter().any(|(_, arrival)| matches!(arrival, Arrival::Written(_)));
        if has_news { Duration::ZERO } else { self.host.oldest_write_age(now) }
    }

    pub(crate) fn host(&self) -> &Host<AnyMachine, R> {
        &self.host
    }

    /// The host, when it has taken in all that arrived before.
    pub(crate) fn host_mut(&mut self) -> &mut Host<AnyMachine, R> {
        if !self.arrivals.is_empty() {
            self.take_in();
        }
        &mut self.host
    }

    pub(crate) fn take_made(&mut self) -> std::vec::Drain<'_, Made> {
        self.made.drain(..)
    }
}

fn made_of(output: HostOutput<AnyEffect>) -> Made {
    match output {
        HostOutput::Send { to, envelope } => {
            let is_frame = envelope.body_bytes() >= LARGE_BYTES;
            let mut bytes = BytesMut::with_capacity(128 + envelope.body_bytes());
            if is_frame {
                bytes.put_u8(ENVELOPE_FRAME);
            }
            envelope.encode_to(&mut bytes);
            Made::Envelope { to, bytes: bytes.freeze(), is_frame }
        }
        output => Made::Output(output),
    }
}

/// The worker that has a group. Group 0 is with the first. The numbers of groups are mixed, since those that one member
/// leads may be every third.
pub(crate) fn worker_of(group: GroupId, workers: usize) -> usize {
    // Fibonacci hashing (Knuth, The Art of Computer Programming, volume 3, 6.4): the upper bits are well mixed.
    let mixed = group.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (mixed as usize) % workers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_spread_evenly_also_those_that_one_member_leads_and_group_0_is_with_the_first_worker() {
        for workers in 1..=8 {
            assert_eq!(worker_of(GroupId::META, workers), 0);
            for (members, led) in [(1, 0), (3, 0), (3, 2), (4, 1), (5, 3)] {
                let mut counts = vec![0; workers];
                for group in (1..=3000).filter(|group| group % members == led) {
                    counts[worker_of(GroupId(group), workers)] += 1;
                }
                let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                assert!(most * 4 <= least * 5, "{counts:?} of every {members}th");
            }
        }
    }
}
