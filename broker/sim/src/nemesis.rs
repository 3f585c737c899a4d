//! Faults, chosen by the seed (the numbers are those of the fault list).

use holdfast_engine::admin::AdminAction;
use holdfast_queue::arguments::{Arguments, Value};
use holdfast_queue::meta::{ApplyTo, NewPolicy, PolicyKind};

use crate::rng::Rng;
use crate::world::{Event, MEMBERS, World};

/// Makes one fault and gives the time until the next.
pub fn strike(world: &mut World, rng: &mut Rng) -> u64 {
    let victim = if rng.chance(60) { world.busiest_leader() } else { None };
    let victim = victim.unwrap_or_else(|| rng.index(MEMBERS));
    let other = (victim + 1 + rng.index(MEMBERS - 1)) % MEMBERS;
    match rng.range(0, 100) {
        // 1, 2: a killed process.
        0..22 => die(world, rng, victim, false),
        // 4: power loss of one.
        22..34 => die(world, rng, victim, true),
        // 3, 5: all of them at once.
        34..38 => all_die(world, rng),
        // 6: power loss of one while another is stopped.
        38..43 => {
            let stopped_us = rng.range(300_000, 4_000_000);
            world.pause(other, stopped_us);
            die(world, rng, victim, true);
        }
        // 7, 8: stopped processes.
        43..55 => {
            let stopped_us = rng.range(100_000, 8_000_000);
            world.pause(victim, stopped_us);
            if rng.chance(20) {
                world.pause(other, stopped_us);
            }
        }
        // 9: one member | the rest.
        55..63 => isolate(world, victim),
        // 10: one direction only.
        63..71 => world.conditions.cut(victim, other),
        // 11: A-B, B-C, not A-C.
        71..77 => {
            world.conditions.cut(victim, other);
            world.conditions.cut(other, victim);
        }
        // 14: delay.
        77..84 => world.conditions.jitter_us = rng.range(5_000, 200_000),
        // 21: EIO on fdatasync.
        84..87 => world.fail_disk(victim),
        // 23: a stalled disk.
        87..90 => {
            let until = world.now_us + rng.range(200_000, 4_000_000);
            world.processes[victim].stall = (rng.range(50_000, 2_000_000), until);
        }
        // 24: a clock that jumps.
        90..94 => world.wall_offset_ms[victim] = rng.range(0, 7_200_000) as i64 - 3_600_000,
        // Policies that change while queues serve and members die.
        94..97 => change_policy(world, rng, other),
        // 13: a client that is cut off.
        _ => {
            let client = rng.index(world.clients.len());
            world.cut_client(client);
        }
    }
    rng.range(200_000, 2_500_000)
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

fn die(world: &mut World, rng: &mut Rng, member: usize, power_loss: bool) {
    world.crash(member, power_loss);
    let at = world.now_us + rng.range(20_000, 4_000_000);
    world.schedule(at, Event::Restart { member });
}

fn all_die(world: &mut World, rng: &mut Rng) {
    let power_loss = rng.chance(50);
    for member in 0..MEMBERS {
        die(world, rng, member, power_loss);
    }
}

fn isolate(world: &mut World, member: usize) {
    for other in (0..MEMBERS).filter(|other| *other != member) {
        world.conditions.cut(member, other);
        world.conditions.cut(other, member);
    }
}
