//! A network of TCP-like links: each direction is a FIFO stream with delay; a cut holds what is on its way, and a link
//! that stays cut breaks. Lost segments show as delay, as TCP shows them; reordering happens between links only.

use std::collections::BTreeMap;

use crate::rng::Rng;

/// One established connection between two members.
#[derive(Clone, Debug)]
pub struct Link {
    /// The member that dialled and the one that accepted.
    pub ends: [usize; 2],
    /// The address that was dialled, for dialling again.
    pub address: String,
    /// When the last frame in each direction (from end 0, from end 1) arrives.
    last_arrival_us: [u64; 2],
    /// Since when a direction has been unable to deliver.
    pub stalled_since_us: Option<u64>,
    /// One end lost its power: the other does not know yet.
    pub is_silent: bool,
}

impl Link {
    /// A link that was just established.
    #[must_use]
    pub fn new(dialler: usize, acceptor: usize, address: &str) -> Self {
        Self {
            ends: [dialler, acceptor],
            address: address.to_owned(),
            last_arrival_us: [0; 2],
            stalled_since_us: None,
            is_silent: false,
        }
    }

    /// The member at the other end.
    #[must_use]
    pub fn other(&self, member: usize) -> usize {
        if self.ends[0] == member { self.ends[1] } else { self.ends[0] }
    }

    /// When a frame that leaves `from` now arrives: never before the one that left earlier.
    pub fn arrival(&mut self, from: usize, now_us: u64, delay_us: u64) -> u64 {
        let direction = usize::from(self.ends[0] != from);
        let at = (now_us + delay_us).max(self.last_arrival_us[direction] + 1);
        self.last_arrival_us[direction] = at;
        at
    }
}

/// Which directions are cut, and how slow the rest is.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    cuts: BTreeMap<(usize, usize), ()>,
    /// The largest added delay; a tenth of the frames get some of it.
    pub jitter_us: u64,
}

impl Conditions {
    /// Cuts one direction.
    pub fn cut(&mut self, from: usize, to: usize) {
        self.cuts.insert((from, to), ());
    }

    /// Heals everything.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.jitter_us = 0;
    }

    /// True when frames from one member reach the other.
    #[must_use]
    pub fn passes(&self, from: usize, to: usize) -> bool {
        !self.cuts.contains_key(&(from, to))
    }

    /// How long the next frame takes.
    pub fn delay_us(&self, rng: &mut Rng) -> u64 {
        let base = rng.range(50, 600);
        if self.jitter_us > 0 && rng.chance(10) { base + rng.range(0, self.jitter_us) } else { base }
    }
}
