//! What a run will be, drawn from its seed before it begins: its clients, its faults, and what is promised of it. A plan
//! can be cut down, so a failing run can be replayed with less in it.

use crate::client::Role;
use crate::faults;
use crate::nemesis::{Strike, Timed, Who};
use crate::rng::Rng;
use crate::world::MEMBERS;

/// Virtual microseconds in a second.
pub const SECOND_US: u64 = 1_000_000;

/// Which runs are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// One queue and a few seconds of faults: many seeds a minute.
    Small,
    /// Everything together, for a virtual minute each at least.
    Mixed,
    /// The disk of one member rots while it runs, again and again, and other faults come between.
    Rot,
    /// One fault of the fault list, by its number.
    Fault(u8),
}

/// A client of a plan.
#[derive(Clone, Debug)]
pub struct PlannedClient {
    /// Its queue, or for a churner the beginning of its queues' names.
    pub queue: String,
    /// What it is for.
    pub role: Role,
}

impl PlannedClient {
    fn ask_for_confirms(&mut self) {
        if let Role::Producer { confirms, .. } = &mut self.role {
            *confirms = 100;
        }
    }

    /// True when it publishes with a ledger.
    #[must_use]
    pub fn is_producer(&self) -> bool {
        matches!(self.role, Role::Producer { .. })
    }
}

/// What must hold of a run besides the invariants of every run.
#[derive(Clone, Copy, Debug)]
pub struct Promises {
    /// Every client has got on this long after the faults stopped and all members were running.
    pub serves_within_us: u64,
    /// No term grows by more than this under the faults.
    pub term_climb: Option<u64>,
    /// No confirm takes longer than this on a connection that lasts.
    pub slowest_confirm_us: Option<u64>,
    /// No policy moves a replica: what a member acknowledged stays on its disk, and a majority of members is one of
    /// every queue's replicas.
    pub replicas_stay: bool,
}

impl Default for Promises {
    fn default() -> Self {
        Self { serves_within_us: SERVES_WITHIN_US, term_climb: None, slowest_confirm_us: None, replicas_stay: true }
    }
}

/// The fault list gives 3 s from the moment at which a majority can talk again.
pub const SERVES_WITHIN_US: u64 = 3 * SECOND_US;

/// Where policies move replicas about, service also waits for the replica that it moves to.
pub const MOVES_WITHIN_US: u64 = 15 * SECOND_US;

/// A whole run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Checkpoints, compaction and Raft snapshots happen many times within the run.
    pub has_small_limits: bool,
    /// Preallocated size of a journal's segment.
    pub segment_bytes: u64,
    /// Copies that clients may count on when they have read a confirm; 0 = a majority, as Raft gives it.
    pub min_in_sync: u8,
    /// The clients; one that was cut away is none.
    pub clients: Vec<Option<PlannedClient>>,
    /// The faults, in their order.
    pub strikes: Vec<Timed>,
    /// Virtual time under faults.
    pub faults_us: u64,
    /// Virtual time without a delivery at the end.
    pub quiet_us: u64,
    /// Virtual time of the whole run at least: clients go on without faults for as long.
    pub least_us: u64,
    /// What is promised.
    pub promises: Promises,
}

/// What of a plan is kept. Nothing given keeps everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Strikes by their place in the plan.
    pub strikes: Option<Vec<usize>>,
    /// Clients by their place in the plan.
    pub clients: Option<Vec<usize>>,
    /// Virtual time under faults.
    pub faults_us: Option<u64>,
}

impl Profile {
    /// The plan of a seed.
    #[must_use]
    pub fn plan(self, seed: u64) -> Plan {
        // Apart from the stream that the world is made from.
        let mut rng = Rng::new(seed).split(7);
        let mut plan = match self {
            Self::Small => small(&mut rng),
            Self::Mixed => mixed(&mut rng),
            Self::Rot => rot(&mut rng),
            Self::Fault(number) => faults::plan(number, &mut rng),
        };
        if plan.min_in_sync > 1 {
            // What is refused for want of copies is nacked, and a publisher without confirms hears of no nack.
            plan.clients.iter_mut().flatten().for_each(PlannedClient::ask_for_confirms);
        }
        plan
    }

    /// How it is named on the command line.
    #[must_use]
    pub fn arguments(self) -> String {
        match self {
            Self::Small => "--profile small".to_owned(),
            Self::Mixed => "--profile mixed".to_owned(),
            Self::Rot => "--profile rot".to_owned(),
            Self::Fault(number) => format!("--fault {number}"),
        }
    }
}

impl Plan {
    /// True if a disk rots while its process runs.
    #[must_use]
    pub fn has_rot(&self) -> bool {
        self.strikes.iter().any(|timed| matches!(timed.strike, Strike::Rot { .. }))
    }

    /// Takes away what is not kept.
    pub fn cut(&mut self, cut: &Cut) {
        if let Some(kept) = &cut.strikes {
            let mut place = 0..;
            self.strikes.retain(|_| place.next().is_some_and(|place| kept.contains(&place)));
        }
        if let Some(kept) = &cut.clients {
            for (place, client) in self.clients.iter_mut().enumerate() {
                if !kept.contains(&place) {
                    *client = None;
                }
            }
        }
        if let Some(faults_us) = cut.faults_us {
            self.faults_us = faults_us;
            self.strikes.retain(|timed| timed.at_us < faults_us);
        }
    }
}

/// A producer that publishes in about so many of a hundred looks, until the faults stop.
#[must_use]
pub fn producer(queue: &str, eagerness: u64) -> Option<PlannedClient> {
    let role = Role::Producer { total: u64::MAX, eagerness, confirms: 75 };
    Some(PlannedClient { queue: queue.to_owned(), role })
}

/// A consumer with a prefetch.
#[must_use]
pub fn consumer(queue: &str, prefetch: u16) -> Option<PlannedClient> {
    Some(PlannedClient { queue: queue.to_owned(), role: Role::Consumer { prefetch } })
}

fn small(rng: &mut Rng) -> Plan {
    let mut clients = vec![producer("orders", rng.range(10, 60)), consumer("orders", rng.range(1, 30) as u16)];
    if rng.chance(30) {
        clients.push(Some(PlannedClient { queue: "orders".into(), role: Role::Getter }));
    }
    if rng.chance(15) {
        clients.push(Some(PlannedClient { queue: "churn".into(), role: Role::Churner { same_name: rng.chance(50) } }));
    }
    let faults_us = 6 * SECOND_US;
    Plan {
        has_small_limits: rng.chance(60),
        min_in_sync: [0, 0, 0, 2, 3][rng.index(5)],
        segment_bytes: 64 << 10,
        strikes: faults::mixed_strikes(rng, clients.len(), faults_us, 1_000_000, false),
        clients,
        faults_us,
        quiet_us: SECOND_US,
        least_us: 0,
        promises: Promises::default(),
    }
}

fn mixed(rng: &mut Rng) -> Plan {
    let mut clients = Vec::new();
    if rng.chance(40) {
        clients.push(Some(PlannedClient { queue: "churn".into(), role: Role::Churner { same_name: rng.chance(50) } }));
    }
    let queues = ["orders", "events"];
    for queue in &queues[..1 + rng.index(queues.len())] {
        for _ in 0..2 {
            clients.push(producer(queue, rng.range(2, 25)));
        }
        for _ in 0..1 + rng.index(2) {
            clients.push(consumer(queue, rng.range(1, 50) as u16));
        }
        if rng.chance(50) {
            clients.push(Some(PlannedClient { queue: (*queue).to_owned(), role: Role::Getter }));
        }
    }
    let faults_us = 40 * SECOND_US;
    let has_policies = rng.chance(30);
    Plan {
        has_small_limits: rng.chance(60),
        min_in_sync: [0, 0, 0, 2, 3][rng.index(5)],
        segment_bytes: if rng.chance(50) { 64 << 10 } else { 256 << 10 },
        strikes: faults::mixed_strikes(rng, clients.len(), faults_us, 2_500_000, has_policies),
        clients,
        faults_us,
        quiet_us: 3 * SECOND_US,
        least_us: 60 * SECOND_US,
        promises: Promises {
            replicas_stay: !has_policies,
            serves_within_us: if has_policies { MOVES_WITHIN_US } else { SERVES_WITHIN_US },
            ..Promises::default()
        },
    }
}

/// One disk rots all the time, under few other faults: most of it is to be mended in place.
fn rot(rng: &mut Rng) -> Plan {
    let faults_us = 20 * SECOND_US;
    let mut clients = vec![producer("orders", rng.range(10, 40)), producer("orders", rng.range(10, 40))];
    // A queue that is long has most to lose below its log.
    clients.push(consumer("orders", [1, 1, 20][rng.index(3)]));
    clients.push(producer("events", rng.range(5, 20)));
    clients.push(consumer("events", rng.range(1, 50) as u16));
    let who = Who::Member(rng.index(MEMBERS));
    let mut strikes = faults::mixed_strikes(rng, clients.len(), faults_us, 8 * SECOND_US, false);
    strikes.retain(|timed| !matches!(timed.strike, Strike::Rot { .. }));
    let mut at_us = rng.range(SECOND_US, 3 * SECOND_US);
    while at_us < faults_us {
        strikes.push(Timed { at_us, strike: faults::rot_while_running(rng, who) });
        at_us += rng.range(SECOND_US, 4 * SECOND_US);
    }
    strikes.sort_by_key(|timed| timed.at_us);
    Plan {
        has_small_limits: rng.chance(60),
        min_in_sync: [0, 0, 2][rng.index(3)],
        segment_bytes: 64 << 10,
        clients,
        strikes,
        faults_us,
        quiet_us: SECOND_US,
        least_us: 0,
        promises: Promises::default(),
    }
}
