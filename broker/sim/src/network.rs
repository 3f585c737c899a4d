//! A network of TCP-like links: each direction is a FIFO stream with delay; a cut holds what is on its way, and a link
//! that stays cut breaks. Lost segments show as delay, as TCP shows them; reordering happens between links only.

use crate::rng::Rng;

/// A lost segment is sent again after this, and after twice as long when it is lost again (RFC 6298's least timeout is
/// 1 s; Linux uses 200 ms).
const RESEND_AFTER_US: u64 = 200_000;
/// Ends of a cut that lasts until everything is healed.
pub const UNTIL_HEALED: u64 = u64::MAX;

/// One established connection between two members.
#[derive(Clone, Debug)]
pub struct Link {
    /// The member that dialled and the one that accepted.
    pub ends: [usize; 2],
    /// The address that was dialled, for dialling again.
    pub address: String,
    /// When the last frame in each direction (from end 0, from end 1) arrives.
    last_arrival_us: [u64; 2],
    /// When each direction has put its last byte on the wire.
    wire_free_us: [u64; 2],
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
            wire_free_us: [0; 2],
            stalled_since_us: None,
            is_silent: false,
        }
    }

    /// The member at the other end.
    #[must_use]
    pub fn other(&self, member: usize) -> usize {
        if self.ends[0] == member { self.ends[1] } else { self.ends[0] }
    }

    /// When a frame that leaves `from` now arrives: never before the one that left earlier. `wire_us` is what the frame
    /// takes on the wire, where only one can be.
    pub fn arrival(&mut self, from: usize, now_us: u64, wire_us: u64, delay_us: u64) -> u64 {
        let direction = usize::from(self.ends[0] != from);
        let sent = now_us.max(self.wire_free_us[direction]) + wire_us;
        self.wire_free_us[direction] = sent;
        let at = (sent + delay_us).max(self.last_arrival_us[direction] + 1);
        self.last_arrival_us[direction] = at;
        at
    }
}

/// One direction that lets nothing through for a while, or now and then.
#[derive(Clone, Copy, Debug)]
struct Cut {
    from: usize,
    to: usize,
    since_us: u64,
    until_us: u64,
    /// A flapping link is down for one period and up for the next; 0 for a cut that lasts.
    period_us: u64,
}

/// How slow the network is, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slowness {
    /// Every frame takes so much longer…
    pub delay_us: u64,
    /// …give or take this.
    pub jitter_us: u64,
    /// Of a hundred frames so many are lost and sent again.
    pub loss_percent: u64,
    /// A tenth of the frames takes up to so much longer.
    pub spikes_us: u64,
    /// It ends then.
    pub until_us: u64,
}

/// Which directions are cut, and how slow the rest is.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    cuts: Vec<Cut>,
    slowness: Slowness,
    /// A member behind a thin line: bytes per second, until when.
    thin: Option<(usize, u64, u64)>,
}

impl Conditions {
    /// Cuts one direction until then.
    pub fn cut(&mut self, from: usize, to: usize, now_us: u64, until_us: u64) {
        self.cuts.push(Cut { from, to, since_us: now_us, until_us, period_us: 0 });
    }

    /// Cuts both directions for every other period, beginning now.
    pub fn flap(&mut self, one: usize, other: usize, period_us: u64, now_us: u64, until_us: u64) {
        for (from, to) in [(one, other), (other, one)] {
            self.cuts.push(Cut { from, to, since_us: now_us, until_us, period_us });
        }
    }

    /// Makes the whole network slow and lossy.
    pub fn slow_down(&mut self, slowness: Slowness) {
        self.slowness = slowness;
    }

    /// Puts a member behind a thin line.
    pub fn make_thin(&mut self, member: usize, bytes_per_s: u64, until_us: u64) {
        self.thin = Some((member, bytes_per_s, until_us));
    }

    /// Heals everything.
    pub fn heal(&mut self) {
        *self = Self::default();
    }

    /// True when frames from one member reach the other.
    #[must_use]
    pub fn passes(&self, from: usize, to: usize, now_us: u64) -> bool {
        let is_down = |cut: &Cut| {
            let in_down_phase = cut.period_us == 0 || ((now_us - cut.since_us) / cut.period_us).is_multiple_of(2);
            cut.from == from && cut.to == to && now_us < cut.until_us && in_down_phase
        };
        !self.cuts.iter().any(is_down)
    }

    /// How long the next frame takes.
    pub fn delay_us(&self, now_us: u64, rng: &mut Rng) -> u64 {
        let mut delay = rng.range(50, 600);
        let Slowness { delay_us, jitter_us, loss_percent, spikes_us, until_us } = self.slowness;
        if now_us >= until_us {
            return delay;
        }
        delay += (delay_us + rng.range(0, 2 * jitter_us + 1)).saturating_sub(jitter_us);
        if spikes_us > 0 && rng.chance(10) {
            delay += rng.range(0, spikes_us);
        }
        let mut resend = RESEND_AFTER_US;
        while loss_percent > 0 && rng.chance(loss_percent) && resend < 16 * RESEND_AFTER_US {
            delay += resend;
            resend *= 2;
        }
        delay
    }

    /// What a frame takes on the wire between these two.
    #[must_use]
    pub fn wire_us(&self, ends: [usize; 2], bytes: usize, now_us: u64) -> u64 {
        match self.thin {
            Some((member, bytes_per_s, until_us)) if now_us < until_us && ends.contains(&member) => {
                bytes as u64 * 1_000_000 / bytes_per_s.max(1)
            }
            _ => 0,
        }
    }
}
