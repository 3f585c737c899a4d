//! The fault list, and what of it is simulated: for each of the 35 faults the strikes that make it and what is asserted
//! of it, besides what is asserted of every run (see [`crate::invariants`]).

use crate::client::Role;
use crate::disk::Damage;
use crate::nemesis::{Strike, Timed, TransferHit, Who};
use crate::network::{Slowness, UNTIL_HEALED};
use crate::plan::{Plan, PlannedClient, Promises, SECOND_US, SERVES_WITHIN_US, consumer};
use crate::rng::Rng;
use crate::world::{MEMBERS, RotIn};

/// One fault of the list.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Its number there.
    pub number: u8,
    /// What befalls the cluster.
    pub what: &'static str,
    /// How it is made, and what is asserted besides the invariants of every run; or why it is not simulated.
    pub how: How,
    /// Of a hundred such faults 95 must have a confirm of something published after it within this.
    pub next_confirm_us: Option<u64>,
}

/// How a fault is made.
#[derive(Clone, Copy, Debug)]
pub enum How {
    /// Asserted, and drawn by.
    Simulated(&'static str, fn(&mut Rng, &mut Draft)),
    /// Asserted of runs of their own kind, see [`crate::membership`].
    OfMembership(&'static str),
    /// Why not, and what shows it instead.
    Elsewhere(&'static str),
}

use How::{Elsewhere, OfMembership, Simulated};

const fn fault(number: u8, what: &'static str, how: How) -> Fault {
    Fault { number, what, how, next_confirm_us: None }
}

/// A fault whose next confirm is bounded by the fault list.
const fn bounded(number: u8, what: &'static str, next_confirm_us: u64, how: How) -> Fault {
    Fault { number, what, how, next_confirm_us: Some(next_confirm_us) }
}

/// The fault list, in its order.
pub const FAULTS: [Fault; 35] = [
    bounded(
        1,
        "the leader is killed, again and again",
        SECOND_US,
        Simulated("next confirm within 1 s (p95)", kill_leader),
    ),
    bounded(
        2,
        "a random member is killed every 5 s",
        SECOND_US,
        Simulated("next confirm within 1 s (p95)", kill_random),
    ),
    fault(3, "all three are killed and start in any order", Simulated("service 3 s after", kill_all)),
    fault(4, "power loss of one", Simulated("what was acknowledged is on its disk", power_loss_one)),
    fault(5, "power loss of all at once", Simulated("what was acknowledged is on its disk", power_loss_all)),
    fault(6, "power loss of one while the others stop in turn", Simulated("service 3 s after", power_loss_and_pause)),
    bounded(7, "the leader stops for 30 s", 2 * SECOND_US, Simulated("next confirm within 2 s (p95)", pause_leader)),
    fault(8, "a majority stops", Simulated("no confirm meanwhile; service 3 s after", pause_majority)),
    bounded(9, "leader | rest", 2 * SECOND_US, Simulated("next confirm within 2 s (p95)", isolate_leader)),
    fault(10, "one-way cuts, both ways", Simulated("service 3 s after; one at a time: no confirm takes 3 s", one_way)),
    fault(11, "A-B, B-C, not A-C", Simulated("terms grow by 2 at most; no confirm takes 3 s", non_transitive)),
    fault(12, "a link flaps every second", Simulated("terms grow by 2 at most; no confirm takes 3 s", flapping)),
    fault(
        13,
        "the publisher is cut off before its confirm",
        Simulated("unknown is not lost, nor doubled", cut_publisher),
    ),
    fault(
        14,
        "20 % loss, 100 ± 50 ms, one member at 1 Mbit/s",
        Simulated("two serve as fast as they can", slow_network),
    ),
    fault(
        15,
        "torn tail",
        Simulated("power goes in the middle of a write; every byte: the journal's tests", torn_tail),
    ),
    fault(
        16,
        "torn, later sectors there, earlier ones not",
        Simulated("the same: sectors survive in any order", torn_tail),
    ),
    fault(
        17,
        "a bit flip in the journal, then a campaign",
        Simulated("the damaged replica leads nothing it lacks", rot_then_campaign),
    ),
    fault(18, "a bit flip in segment, checkpoint, identity", Simulated("two serve without it", rot)),
    fault(
        19,
        "a truncated or missing segment; no disk under a known name",
        Simulated("two serve without it", lost_files),
    ),
    fault(20, "a stale or misdirected block", Simulated("two serve without it", misplaced)),
    fault(21, "EIO on fdatasync and on read", Simulated("the process ends; nothing is retried", eio)),
    fault(22, "the disk is full for 60 s", Simulated("service 3 s after", full)),
    fault(
        23,
        "a disk stalls for 10 s",
        Simulated("a leader hands over: no confirm takes 3 s; a follower: none takes 1 s", stall),
    ),
    fault(24, "clocks are off by an hour and jump", Simulated("service 3 s after", clocks)),
    fault(
        25,
        "members come, go and are replaced while another dies",
        OfMembership("every group has its replicas again 90 s after the last change"),
    ),
    fault(
        26,
        "a queue is deleted and made again while a member is down",
        Simulated("a new queue is empty; no replica of the old one is left", recreate),
    ),
    fault(
        27,
        "a Raft snapshot is cut off at 10, 50, 90 %",
        Simulated("it goes on or begins anew; also with a change of leader", cut_transfer),
    ),
    bounded(
        28,
        "rolling restart",
        SECOND_US,
        Simulated("next confirm within 1 s (p95); mixed builds: real processes", rolling_restart),
    ),
    fault(29, "an empty disk under an old name", Simulated("two serve without it", blank)),
    fault(
        30,
        "memory alarms; a consumer with 64k prefetch that never acks",
        Simulated("service 3 s after; a million queued: real processes", memory),
    ),
    fault(31, "connections and queues come and go through failovers", Simulated("service 3 s after", churn)),
    fault(32, "a poison message", Elsewhere("the machine has no delivery limit yet")),
    fault(33, "the dead-letter target is away", Elsewhere("the machine has no dead letters yet")),
    fault(
        34,
        "descriptors, certificates, addresses",
        Elsewhere("sockets and TLS are not simulated; real processes and pods"),
    ),
    fault(35, "two of three are gone", Simulated("no confirm meanwhile; all of it back 3 s after", lose_majority)),
];

/// The fault of a number.
#[must_use]
pub fn find(number: u8) -> Option<&'static Fault> {
    FAULTS.iter().find(|fault| fault.number == number)
}

/// A plan while it is drawn.
#[derive(Debug)]
pub struct Draft {
    strikes: Vec<Timed>,
    clients: Vec<Option<PlannedClient>>,
    faults_us: u64,
    promises: Promises,
    small_limits: bool,
}

impl Draft {
    fn at(&mut self, at_us: u64, strike: Strike) {
        self.strikes.push(Timed { at_us, strike });
    }
}

/// One whose confirms show how long a fault was felt.
fn confirmed_producer(rng: &mut Rng) -> Option<PlannedClient> {
    let role = Role::Producer { total: u64::MAX, eagerness: rng.range(10, 50), confirms: 100 };
    Some(PlannedClient { queue: "orders".into(), role })
}

/// The plan of one fault. One that is not simulated gives a run without faults.
#[must_use]
pub fn plan(number: u8, rng: &mut Rng) -> Plan {
    let mut draft = Draft {
        strikes: Vec::new(),
        clients: vec![confirmed_producer(rng), confirmed_producer(rng), consumer("orders", rng.range(1, 50) as u16)],
        faults_us: 20 * SECOND_US,
        promises: Promises::default(),
        small_limits: rng.chance(60),
    };
    if let Some(Fault { how: Simulated(_, draw), .. }) = find(number) {
        draw(rng, &mut draft);
    }
    draft.strikes.sort_by_key(|timed| timed.at_us);
    Plan {
        has_small_limits: draft.small_limits,
        min_in_sync: [0, 0, 2][rng.index(3)],
        segment_bytes: 64 << 10,
        clients: draft.clients,
        strikes: draft.strikes,
        faults_us: draft.faults_us,
        quiet_us: SECOND_US,
        least_us: 0,
        promises: draft.promises,
    }
}

/// Faults of all kinds, one after the other, up to `apart_us` apart; cuts and delays end every 6 s.
#[must_use]
pub fn mixed_strikes(rng: &mut Rng, clients: usize, faults_us: u64, apart_us: u64, has_policies: bool) -> Vec<Timed> {
    const HEAL_EVERY_US: u64 = 6 * SECOND_US;
    let mut strikes = Vec::new();
    let mut at_us = rng.range(apart_us / 3, apart_us);
    while at_us < faults_us {
        for strike in any_strike(rng, clients, has_policies) {
            strikes.push(Timed { at_us, strike });
        }
        at_us += rng.range(200_000, apart_us);
    }
    strikes.extend(
        (1..)
            .map(|n| n * HEAL_EVERY_US)
            .take_while(|at| *at < faults_us)
            .map(|at_us| Timed { at_us, strike: Strike::Heal }),
    );
    strikes.sort_by_key(|timed| timed.at_us);
    strikes
}

fn any_strike(rng: &mut Rng, clients: usize, has_policies: bool) -> Vec<Strike> {
    let fallback = rng.index(MEMBERS);
    let who = if rng.chance(60) { Who::LeaderOr(fallback) } else { Who::Member(fallback) };
    let step = 1 + rng.index(MEMBERS - 1);
    let down_us = rng.range(20_000, 4_000_000);
    let strike = match rng.range(0, 100) {
        0..22 => Strike::Kill { who, power_loss: false, down_us },
        22..34 => Strike::Kill { who, power_loss: true, down_us },
        34..38 => {
            let power_loss = rng.chance(50);
            Strike::KillAll {
                power_loss,
                down_us: [down_us, rng.range(20_000, 4_000_000), rng.range(20_000, 4_000_000)],
            }
        }
        38..43 => {
            let stop = Strike::Pause { who: Who::FollowerAfter(fallback), for_us: rng.range(300_000, 4_000_000) };
            return vec![stop, Strike::Kill { who, power_loss: true, down_us }];
        }
        43..55 => {
            let for_us = rng.range(100_000, 8_000_000);
            let stop = Strike::Pause { who, for_us };
            let second = Strike::Pause { who: Who::FollowerAfter(fallback), for_us };
            return if rng.chance(20) { vec![stop, second] } else { vec![stop] };
        }
        55..63 => Strike::Isolate { who, for_us: UNTIL_HEALED },
        63..71 => Strike::CutOneWay { who, step, inward: rng.chance(50), for_us: UNTIL_HEALED },
        71..77 => Strike::CutPair { who, step, for_us: UNTIL_HEALED },
        77..84 => {
            let slowness = Slowness { spikes_us: rng.range(5_000, 200_000), ..Slowness::default() };
            Strike::Slow { slowness, for_us: UNTIL_HEALED }
        }
        84..87 => Strike::FailSync { who },
        87..90 => Strike::Stall { who, each_us: rng.range(50_000, 2_000_000), for_us: rng.range(200_000, 4_000_000) },
        90..94 => Strike::Clock { member: fallback, offset_ms: rng.range(0, 7_200_000) as i64 - 3_600_000 },
        96..98 => rot_while_running(rng, who),
        // Policies that change while queues serve and members die.
        94..96 if has_policies => Strike::Policy { member: fallback, choice: rng.draw() },
        _ => Strike::CutClient { client: rng.index(clients) },
    };
    vec![strike]
}

/// Records rot on the disk of a member that runs, and a scrub, a delivery or a start comes across it.
pub fn rot_while_running(rng: &mut Rng, who: Who) -> Strike {
    let place = match rng.range(0, 100) {
        0..50 => RotIn::Sealed,
        50..90 => RotIn::Open,
        _ => RotIn::Checkpoint,
    };
    Strike::Rot { who, place, records: rng.range(1, 8), scrub_us: rng.range(50_000, 2 * SECOND_US) }
}

/// Times of a strike that comes again every `every_us`, give or take half of it.
fn times(rng: &mut Rng, draft: &Draft, every_us: u64) -> Vec<u64> {
    let mut times = Vec::new();
    let mut at = rng.range(every_us / 2, every_us);
    while at < draft.faults_us {
        times.push(at);
        at += rng.range(every_us / 2, every_us * 3 / 2);
    }
    times
}

fn down(rng: &mut Rng) -> u64 {
    rng.range(20_000, 3 * SECOND_US)
}

const LEADER: Who = Who::LeaderOr(0);

fn kill_leader(rng: &mut Rng, draft: &mut Draft) {
    for at in times(rng, draft, 4 * SECOND_US) {
        let strike = Strike::Kill { who: LEADER, power_loss: false, down_us: rng.range(20_000, 2 * SECOND_US) };
        draft.at(at, strike);
    }
}

fn kill_random(rng: &mut Rng, draft: &mut Draft) {
    draft.faults_us = 30 * SECOND_US;
    for at in (1..6).map(|n| n * 5 * SECOND_US) {
        let who = Who::Member(rng.index(MEMBERS));
        draft.at(at, Strike::Kill { who, power_loss: false, down_us: down(rng) });
    }
}

fn kill_all(rng: &mut Rng, draft: &mut Draft) {
    for at in times(rng, draft, 5 * SECOND_US) {
        draft.at(at, Strike::KillAll { power_loss: false, down_us: [down(rng), down(rng), down(rng)] });
    }
}

fn power_loss_one(rng: &mut Rng, draft: &mut Draft) {
    for at in times(rng, draft, 3 * SECOND_US) {
        let who = if rng.chance(50) { LEADER } else { Who::Member(rng.index(MEMBERS)) };
        draft.at(at, Strike::Kill { who, power_loss: true, down_us: down(rng) });
    }
}

fn power_loss_all(rng: &mut Rng, draft: &mut Draft) {
    for at in times(rng, draft, 5 * SECOND_US) {
        draft.at(at, Strike::KillAll { power_loss: true, down_us: [down(rng), down(rng), down(rng)] });
    }
}

fn power_loss_and_pause(rng: &mut Rng, draft: &mut Draft) {
    for at in times(rng, draft, 5 * SECOND_US) {
        let first = rng.index(MEMBERS);
        let for_us = rng.range(300_000, 2 * SECOND_US);
        draft.at(at, Strike::Pause { who: Who::Member(first), for_us });
        let second = Who::Member((first + 1) % MEMBERS);
        draft.at(at + for_us, Strike::Pause { who: second, for_us });
        let loss = Strike::Kill { who: Who::Member((first + 2) % MEMBERS), power_loss: true, down_us: down(rng) };
        draft.at(at + rng.range(0, 2 * for_us), loss);
    }
}

fn pause_leader(rng: &mut Rng, draft: &mut Draft) {
    draft.faults_us = 35 * SECOND_US;
    let at = rng.range(SECOND_US, 4 * SECOND_US);
    draft.at(at, Strike::Pause { who: LEADER, for_us: 30 * SECOND_US });
}

fn pause_majority(rng: &mut Rng, draft: &mut Draft) {
    for at in times(rng, draft, 8 * SECOND_US) {
        let first = rng.index(MEMBERS);
        let for_us = rng.range(SECOND_US, 6 * SECOND_US);
        for member in [first, (first + 1) % MEMBERS] {
            draft.at(at, Strike::Pause { who: Who::Member(member), for_us });
        }
    }
}

fn isolate_leader(rng: &mut Rng, draft: &mut Draft) {
    for at in times(rng, draft, 6 * SECOND_US) {
        draft.at(at, Strike::Isolate { who: LEADER, for_us: rng.range(SECOND_US, 4 * SECOND_US) });
    }
}

/// What a client may notice while a majority can talk all the time, if only through a third member.
const NOTICED_US: u64 = SERVES_WITHIN_US;

fn one_way(rng: &mut Rng, draft: &mut Draft) {
    if rng.chance(50) {
        // One at a time: a third member reaches both all along.
        let mut at = rng.range(SECOND_US, 3 * SECOND_US);
        while at < draft.faults_us {
            let (step, inward, for_us) =
                (1 + rng.index(MEMBERS - 1), rng.chance(50), rng.range(SECOND_US, 6 * SECOND_US));
            draft.at(at, Strike::CutOneWay { who: LEADER, step, inward, for_us });
            // What is cut off tries again for a while after the link carries again.
            at += for_us + rng.range(2 * SECOND_US, 4 * SECOND_US);
        }
        draft.promises.slowest_confirm_us = Some(NOTICED_US);
        return;
    }
    for at in times(rng, draft, 4 * SECOND_US) {
        let (step, inward) = (1 + rng.index(MEMBERS - 1), rng.chance(50));
        draft.at(at, Strike::CutOneWay { who: LEADER, step, inward, for_us: rng.range(SECOND_US, 6 * SECOND_US) });
    }
}

fn non_transitive(rng: &mut Rng, draft: &mut Draft) {
    let (who, step) = (Who::Member(rng.index(MEMBERS)), 1 + rng.index(MEMBERS - 1));
    let at = rng.range(SECOND_US, 4 * SECOND_US);
    draft.at(at, Strike::CutPair { who, step, for_us: 15 * SECOND_US });
    draft.promises.term_climb = Some(2);
    draft.promises.slowest_confirm_us = Some(NOTICED_US);
}

fn flapping(rng: &mut Rng, draft: &mut Draft) {
    let (who, step) = (Who::Member(rng.index(MEMBERS)), 1 + rng.index(MEMBERS - 1));
    let at = rng.range(SECOND_US, 3 * SECOND_US);
    draft.at(at, Strike::Flap { who, step, period_us: SECOND_US, for_us: 16 * SECOND_US });
    draft.promises.term_climb = Some(2);
    draft.promises.slowest_confirm_us = Some(NOTICED_US);
}

fn cut_publisher(rng: &mut Rng, draft: &mut Draft) {
    for at in times(rng, draft, SECOND_US) {
        draft.at(at, Strike::CutClient { client: rng.index(2) });
    }
}

fn slow_network(rng: &mut Rng, draft: &mut Draft) {
    let slowness =
        Slowness { delay_us: 100_000, jitter_us: 50_000, loss_percent: 20, spikes_us: 0, until_us: UNTIL_HEALED };
    draft.at(SECOND_US, Strike::Slow { slowness, for_us: 18 * SECOND_US });
    let who = Who::FollowerAfter(rng.index(MEMBERS));
    draft.at(SECOND_US, Strike::Thin { who, bytes_per_s: 125_000, for_us: 18 * SECOND_US });
}

fn torn_tail(rng: &mut Rng, draft: &mut Draft) {
    for at in times(rng, draft, 2 * SECOND_US) {
        let who = Who::Member(rng.index(MEMBERS));
        draft.at(at, Strike::Stall { who, each_us: rng.range(1_000, 50_000), for_us: SECOND_US });
        draft.at(at + 100_000, Strike::Kill { who, power_loss: true, down_us: rng.range(20_000, SECOND_US) });
    }
}

fn rot_then_campaign(rng: &mut Rng, draft: &mut Draft) {
    let damaged = rng.index(MEMBERS);
    let step = 1 + rng.index(MEMBERS - 1);
    let (behind, sound) = ((damaged + step) % MEMBERS, (damaged + MEMBERS - step) % MEMBERS);
    let at = rng.range(2 * SECOND_US, 6 * SECOND_US);
    // One member falls behind, so that only the two others hold what is confirmed. Then one of those is damaged, and the
    // other one goes: the damaged one and the one that is behind are a majority that must not serve.
    let lag_us = rng.range(SECOND_US, 4 * SECOND_US);
    draft.at(at, Strike::Isolate { who: Who::Member(behind), for_us: lag_us });
    let damage = Strike::Damage { who: Who::Member(damaged), damage: Damage::SegmentBit, down_us: 20_000 };
    draft.at(at + lag_us - 1_000, damage);
    let gone =
        Strike::Kill { who: Who::Member(sound), power_loss: false, down_us: rng.range(2 * SECOND_US, 5 * SECOND_US) };
    draft.at(at + lag_us - 500, gone);
}

fn damage_one(rng: &mut Rng, draft: &mut Draft, kinds: &[Damage]) {
    let who = Who::Member(rng.index(MEMBERS));
    let kind = kinds[rng.index(kinds.len())];
    let at = rng.range(4 * SECOND_US, 8 * SECOND_US);
    for at in [at, at + 5 * SECOND_US] {
        draft.at(at, Strike::Damage { who, damage: kind, down_us: rng.range(20_000, SECOND_US) });
    }
}

fn rot(rng: &mut Rng, draft: &mut Draft) {
    if rng.chance(40) {
        let who = Who::Member(rng.index(MEMBERS));
        for at in times(rng, draft, 4 * SECOND_US) {
            draft.at(at, rot_while_running(rng, who));
        }
        return;
    }
    damage_one(rng, draft, &[Damage::SegmentBit, Damage::CheckpointBit, Damage::IdentityBit, Damage::IdentityBits]);
}

fn lost_files(rng: &mut Rng, draft: &mut Draft) {
    if rng.chance(30) {
        return blank(rng, draft);
    }
    damage_one(rng, draft, &[Damage::TruncatedSegment, Damage::MissingSegment]);
}

fn misplaced(rng: &mut Rng, draft: &mut Draft) {
    damage_one(rng, draft, &[Damage::StaleSector, Damage::MisdirectedSector]);
}

fn eio(rng: &mut Rng, draft: &mut Draft) {
    if rng.chance(30) {
        return damage_one(rng, draft, &[Damage::UnreadableSector]);
    }
    for at in times(rng, draft, 4 * SECOND_US) {
        let who = if rng.chance(50) { LEADER } else { Who::Member(rng.index(MEMBERS)) };
        draft.at(at, Strike::FailSync { who });
        // Power loss soon after shows whether anything relied on what the failed sync did not write.
        if rng.chance(50) {
            draft.at(at + rng.range(1_000, 600_000), Strike::Kill { who, power_loss: true, down_us: down(rng) });
        }
    }
}

fn full(rng: &mut Rng, draft: &mut Draft) {
    draft.faults_us = 65 * SECOND_US;
    let who = if rng.chance(50) { LEADER } else { Who::Member(rng.index(MEMBERS)) };
    draft.at(SECOND_US, Strike::Full { who, for_us: 60 * SECOND_US });
}

fn memory(rng: &mut Rng, draft: &mut Draft) {
    // One that settles nothing.
    draft.clients.push(consumer("orders", u16::MAX));
    for at in times(rng, draft, 6 * SECOND_US) {
        let who = if rng.chance(50) { LEADER } else { Who::Member(rng.index(MEMBERS)) };
        let for_us = rng.range(SECOND_US, 4 * SECOND_US).min(draft.faults_us - at);
        draft.at(at, Strike::Memory { who, for_us });
        if rng.chance(50) {
            let power_loss = rng.chance(30);
            draft.at(at + rng.range(0, for_us), Strike::Kill { who: LEADER, power_loss, down_us: down(rng) });
        }
    }
}

fn stall(rng: &mut Rng, draft: &mut Draft) {
    if rng.chance(50) {
        draft.at(3 * SECOND_US, Strike::Stall { who: LEADER, each_us: 10 * SECOND_US, for_us: 10 * SECOND_US });
        draft.promises.slowest_confirm_us = Some(NOTICED_US);
    } else {
        let who = Who::FollowerAfter(rng.index(MEMBERS));
        draft.at(3 * SECOND_US, Strike::Stall { who, each_us: 10 * SECOND_US, for_us: 10 * SECOND_US });
        draft.promises.slowest_confirm_us = Some(SECOND_US);
    }
}

fn clocks(rng: &mut Rng, draft: &mut Draft) {
    for at in times(rng, draft, SECOND_US) {
        let offset_ms = rng.range(0, 7_200_000) as i64 - 3_600_000;
        draft.at(at, Strike::Clock { member: rng.index(MEMBERS), offset_ms });
        if rng.chance(10) {
            draft.at(at, Strike::Kill { who: LEADER, power_loss: false, down_us: down(rng) });
        }
    }
}

fn recreate(rng: &mut Rng, draft: &mut Draft) {
    for _ in 0..2 {
        let role = Role::Churner { same_name: true };
        draft.clients.push(Some(PlannedClient { queue: "again".into(), role }));
    }
    for at in times(rng, draft, 5 * SECOND_US) {
        let who = Who::Member(rng.index(MEMBERS));
        let (power_loss, down_us) = (rng.chance(30), rng.range(SECOND_US, 6 * SECOND_US));
        draft.at(at, Strike::Kill { who, power_loss, down_us });
        if rng.chance(30) {
            let down_us = [down(rng), down(rng), down(rng)];
            draft.at(at + rng.range(0, down_us[0]), Strike::KillAll { power_loss: false, down_us });
        }
    }
}

fn cut_transfer(rng: &mut Rng, draft: &mut Draft) {
    draft.small_limits = true;
    for at in times(rng, draft, 8 * SECOND_US) {
        let percent = [10, 50, 90][rng.index(3)];
        let for_us = rng.range(100_000, 4 * SECOND_US);
        let hits = [TransferHit::Link, TransferHit::Sender, TransferHit::Receiver][rng.index(3)];
        draft.at(at, Strike::CutTransfer { percent, hits, for_us });
        let who = Who::FollowerAfter(rng.index(MEMBERS));
        draft
            .at(at, Strike::Kill { who, power_loss: rng.chance(30), down_us: rng.range(3 * SECOND_US, 6 * SECOND_US) });
    }
}

fn rolling_restart(rng: &mut Rng, draft: &mut Draft) {
    let first = rng.index(MEMBERS);
    for turn in 0..MEMBERS {
        let at = (2 + 5 * turn as u64) * SECOND_US;
        draft.at(
            at,
            Strike::Shutdown { who: Who::Member((first + turn) % MEMBERS), down_us: rng.range(200_000, 2 * SECOND_US) },
        );
    }
}

fn blank(rng: &mut Rng, draft: &mut Draft) {
    let who = Who::Member(rng.index(MEMBERS));
    let at = rng.range(2 * SECOND_US, 8 * SECOND_US);
    draft.at(at, Strike::Wipe { who, down_us: rng.range(20_000, 3 * SECOND_US) });
}

fn churn(rng: &mut Rng, draft: &mut Draft) {
    for _ in 0..2 {
        let role = Role::Churner { same_name: false };
        draft.clients.push(Some(PlannedClient { queue: "churn".into(), role }));
    }
    for at in times(rng, draft, 50_000) {
        draft.at(at, Strike::CutClient { client: rng.index(5) });
    }
    for at in times(rng, draft, 4 * SECOND_US) {
        draft.at(at, Strike::Kill { who: LEADER, power_loss: false, down_us: down(rng) });
    }
}

fn lose_majority(rng: &mut Rng, draft: &mut Draft) {
    for at in times(rng, draft, 9 * SECOND_US) {
        let first = rng.index(MEMBERS);
        let power_loss = rng.chance(50);
        for member in [first, (first + 1) % MEMBERS] {
            let down_us = rng.range(3 * SECOND_US, 8 * SECOND_US);
            draft.at(at, Strike::Kill { who: Who::Member(member), power_loss, down_us });
        }
    }
}
