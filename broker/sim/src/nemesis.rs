//! What befalls a cluster. A run's strikes are drawn from its seed before it begins, so that a failing run can be
//! replayed with fewer of them.

use holdfast_engine::admin::AdminAction;
use holdfast_queue::arguments::{Arguments, Value};
use holdfast_queue::meta::{ApplyTo, NewPolicy, PolicyKind};

use crate::disk::Damage;
use crate::network::{Slowness, UNTIL_HEALED};
use crate::rng::Rng;
use crate::world::{Event, MEMBERS, RotIn, World};

/// Whom a strike hits; roles are looked up when it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A member by its number.
    Member(usize),
    /// The member that leads most groups, or this one when none leads.
    LeaderOr(usize),
    /// The first member after this one that is not the busiest leader.
    FollowerAfter(usize),
}

/// What of a transfer is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransferHit {
    /// The link between the two.
    Link,
    /// The process that sends.
    Sender,
    /// The machine that receives, a moment after it was sent everything.
    Receiver,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strike {
    /// SIGKILL; with `power_loss` the machine goes too, and what was not synced with it. It starts again.
    Kill { who: Who, power_loss: bool, down_us: u64 },
    /// All of them at once; each starts again at its own time.
    KillAll { power_loss: bool, down_us: [u64; MEMBERS] },
    /// SIGTERM: the member hands its leaderships over and ends; it starts again.
    Shutdown { who: Who, down_us: u64 },
    /// SIGSTOP and SIGCONT.
    Pause { who: Who, for_us: u64 },
    /// The member loses its link to all others.
    Isolate { who: Who, for_us: u64 },
    /// One direction between the member and the one `step` places after it.
    CutOneWay { who: Who, step: usize, inward: bool, for_us: u64 },
    /// Both directions between two members, while the third reaches both.
    CutPair { who: Who, step: usize, for_us: u64 },
    /// A link that goes down and up.
    Flap { who: Who, step: usize, period_us: u64, for_us: u64 },
    /// A slow and lossy network.
    Slow { slowness: Slowness, for_us: u64 },
    /// A member behind a thin line.
    Thin { who: Who, bytes_per_s: u64, for_us: u64 },
    /// The next sync fails (EIO).
    FailSync { who: Who },
    /// The next reads fail (EIO).
    FailReads { who: Who, count: u64 },
    /// No space is left.
    Full { who: Who, for_us: u64 },
    /// The process takes more memory than it may, and says so.
    Memory { who: Who, for_us: u64 },
    /// Every write takes so much longer.
    Stall { who: Who, each_us: u64, for_us: u64 },
    /// A wall clock jumps.
    Clock { member: usize, offset_ms: i64 },
    /// The machine loses its power, its disk is damaged, and it starts again.
    Damage { who: Who, damage: Damage, down_us: u64 },
    /// Records rot on the disk of a member that runs; it scrubs after so long.
    Rot { who: Who, place: RotIn, records: u64, scrub_us: u64 },
    /// The machine comes back with an empty disk.
    Wipe { who: Who, down_us: u64 },
    /// A client loses its connection.
    CutClient { client: usize },
    /// The next Raft snapshot that got so far is cut off for a while.
    CutTransfer { percent: u8, hits: TransferHit, for_us: u64 },
    /// Another policy of all queues, or none; the number decides which.
    Policy { member: usize, choice: u64 },
    /// Everything that has no end of its own ends.
    Heal,
}

/// A strike and when it comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed {
    /// Virtual time after the founding, microseconds.
    pub at_us: u64,
    /// What happens.
    pub strike: Strike,
}

impl Who {
    fn find(self, world: &World) -> usize {
        match self {
            Self::Member(member) => member,
            Self::LeaderOr(member) => world.busiest_leader().unwrap_or(member),
            Self::FollowerAfter(member) => {
                let leader = world.busiest_leader();
                let after = (1..=MEMBERS).map(|step| (member + step) % MEMBERS);
                after.clone().find(|found| Some(*found) != leader).unwrap_or(member)
            }
        }
    }
}

fn until(world: &World, for_us: u64) -> u64 {
    if for_us == UNTIL_HEALED { UNTIL_HEALED } else { world.now_us + for_us }
}

/// Makes a fault.
///
/// # Errors
/// What a member did that it may not.
pub fn strike(world: &mut World, strike: &Strike) -> Result<(), String> {
    match strike {
        Strike::Kill { .. } | Strike::KillAll { .. } | Strike::Shutdown { .. } | Strike::Pause { .. } => {
            return strike_process(world, strike);
        }
        Strike::Isolate { .. }
        | Strike::CutOneWay { .. }
        | Strike::CutPair { .. }
        | Strike::Flap { .. }
        | Strike::Slow { .. }
        | Strike::Thin { .. } => strike_network(world, strike),
        Strike::Clock { member, offset_ms } => {
            world.note(format!("m{member}'s clock jumps to {offset_ms} ms beside the others'"));
            world.wall_offset_ms[*member] = *offset_ms;
        }
        Strike::CutClient { client } => world.cut_client(*client),
        Strike::Memory { who, for_us } => return world.press_memory(who.find(world), *for_us),
        Strike::CutTransfer { percent, hits, for_us } => {
            world.cut_next_transfer(*percent, *hits, *for_us);
        }
        Strike::Policy { member, choice } => change_policy(world, &mut Rng::new(*choice), *member),
        Strike::Heal => heal(world),
        _ => strike_disk(world, strike),
    }
    Ok(())
}

fn strike_process(world: &mut World, strike: &Strike) -> Result<(), String> {
    match strike {
        Strike::Kill { who, power_loss, down_us } => die(world, who.find(world), *power_loss, *down_us),
        Strike::KillAll { power_loss, down_us } => {
            for (member, down_us) in down_us.iter().enumerate() {
                die(world, member, *power_loss, *down_us);
            }
        }
        Strike::Shutdown { who, down_us } => world.shut_down(who.find(world), *down_us)?,
        Strike::Pause { who, for_us } => world.pause(who.find(world), *for_us),
        _ => {}
    }
    Ok(())
}

fn strike_network(world: &mut World, strike: &Strike) {
    let now = world.now_us;
    match strike {
        Strike::Isolate { who, for_us } => {
            let (member, until) = (who.find(world), until(world, *for_us));
            for other in (0..MEMBERS).filter(|other| *other != member) {
                world.conditions.cut(member, other, now, until);
                world.conditions.cut(other, member, now, until);
            }
            world.note(format!("m{member} is cut off"));
        }
        Strike::CutOneWay { who, step, inward, for_us } => {
            let (member, until) = (who.find(world), until(world, *for_us));
            let other = (member + step) % MEMBERS;
            let (from, to) = if *inward { (other, member) } else { (member, other) };
            world.conditions.cut(from, to, now, until);
            world.note(format!("nothing gets from m{from} to m{to}"));
        }
        Strike::CutPair { who, step, for_us } => {
            let (member, until) = (who.find(world), until(world, *for_us));
            let other = (member + step) % MEMBERS;
            world.conditions.cut(member, other, now, until);
            world.conditions.cut(other, member, now, until);
            world.note(format!("m{member} and m{other} are cut from each other"));
        }
        Strike::Flap { who, step, period_us, for_us } => {
            let (member, until) = (who.find(world), until(world, *for_us));
            let other = (member + step) % MEMBERS;
            world.conditions.flap(member, other, *period_us, now, until);
            world.note(format!("the link between m{member} and m{other} flaps"));
        }
        Strike::Slow { slowness, for_us } => {
            let until_us = until(world, *for_us);
            world.note(format!("the network is slow: {slowness:?}"));
            world.conditions.slow_down(Slowness { until_us, ..*slowness });
        }
        Strike::Thin { who, bytes_per_s, for_us } => {
            let (member, until) = (who.find(world), until(world, *for_us));
            world.note(format!("m{member} is behind a line of {bytes_per_s} bytes a second"));
            world.conditions.make_thin(member, *bytes_per_s, until);
        }
        _ => {}
    }
}

fn strike_disk(world: &mut World, strike: &Strike) {
    match strike {
        Strike::FailSync { who } => world.fail_disk(who.find(world)),
        Strike::FailReads { who, count } => world.fail_reads(who.find(world), *count),
        Strike::Rot { who, place, records, scrub_us } => world.rot(who.find(world), *place, *records, *scrub_us),
        Strike::Full { who, for_us } => world.fill_disk(who.find(world), *for_us),
        Strike::Stall { who, each_us, for_us } => {
            let (member, until) = (who.find(world), until(world, *for_us));
            world.note(format!("each write of m{member} takes {} ms longer", each_us / 1000));
            world.processes[member].stall = (*each_us, until);
        }
        Strike::Damage { who, damage, down_us } => {
            let member = who.find(world);
            if world.may_damage(member) {
                die(world, member, true, *down_us);
                world.damage_disk(member, *damage);
            }
        }
        Strike::Wipe { who, down_us } => {
            let member = who.find(world);
            if world.may_damage(member) {
                die(world, member, true, *down_us);
                world.wipe_disk(member);
            }
        }
        _ => {}
    }
}

/// Ends every fault that has no end of its own.
pub fn heal(world: &mut World) {
    world.conditions.heal();
    for process in &mut world.processes {
        process.stall = (0, 0);
    }
}

/// Asks a member for another policy of all queues, or for none. Where clients count on a number of copies, no policy asks
/// for fewer.
fn change_policy(world: &mut World, rng: &mut Rng, member: usize) {
    let (kind, vhost, name) = (PolicyKind::User, "/".to_owned(), "p".to_owned());
    let least = i64::from(world.min_in_sync);
    let replicas = if least > 1 { MEMBERS as i64 } else { rng.range(1, MEMBERS as u64 + 1) as i64 };
    let mut definition = match rng.range(0, 4) {
        0 => Arguments::default(),
        1 if replicas == MEMBERS as i64 => Arguments::from([("ha-mode", Value::string("all"))]),
        2 => {
            let first = rng.index(MEMBERS);
            let names = (0..replicas as usize).map(|at| Value::string(format!("m{}", (first + at) % MEMBERS)));
            Arguments::from([("ha-mode", Value::string("nodes")), ("ha-params", Value::Array(names.collect()))])
        }
        _ => Arguments::from([("ha-mode", Value::string("exactly")), ("ha-params", Value::I64(replicas))]),
    };
    if rng.chance(50) && !definition.is_empty() {
        let copies = rng.range(least.max(1) as u64, replicas as u64 + 1) as i64;
        definition.0.push(("min-in-sync-replicas".into(), Value::I64(copies)));
    }
    let action = if definition.is_empty() {
        AdminAction::DeletePolicy { kind, vhost, name }
    } else {
        let policy = NewPolicy { pattern: ".*".into(), apply_to: ApplyTo::Queues, priority: 0, definition };
        AdminAction::PutPolicy { kind, vhost, name, policy }
    };
    world.trace.note(world.now_us, format!("m{member} is asked for {action:?}"));
    world.schedule(world.now_us, Event::Admin { member, action: Box::new(action) });
}

fn die(world: &mut World, member: usize, power_loss: bool, down_us: u64) {
    world.crash(member, power_loss);
    let at = world.now_us + down_us;
    world.schedule(at, Event::Restart { member });
}
