//! One seed, from three blank disks to the verdict.

use crate::client::Role;
use crate::ledger::Verdict;
use crate::mutants::Mutation;
use crate::nemesis;
use crate::rng::Rng;
use crate::world::World;

const SECOND_US: u64 = 1_000_000;
/// Virtual time under faults.
const FAULTS_US: u64 = 60 * SECOND_US;
/// A cluster is founded, and after the faults everything has come right, within this.
const SETTLES_WITHIN_US: u64 = 60 * SECOND_US;
/// The longest that a cut or a delay lasts.
const HEAL_EVERY_US: u64 = 6 * SECOND_US;

/// What a seed came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Messages whose confirm was read.
    pub confirmed: u64,
    /// Distinct messages received.
    pub consumed: u64,
    /// Publishes whose fate stayed unknown.
    pub unknown: u64,
    /// Leaderships over all groups.
    pub leaderships: usize,
    /// Processes started.
    pub starts: u64,
    /// Events handled.
    pub steps: u64,
    /// Virtual time, microseconds.
    pub virtual_us: u64,
}

/// A seed that broke something.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What broke.
    pub what: String,
    /// The last lines of what happened.
    pub trace: Vec<String>,
}

/// A run that prints everything as it happens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// A group whose every change is printed too.
    pub group: Option<u64>,
}

/// Runs one seed; with `live`, before the eyes of a person.
///
/// # Errors
/// The broken invariant with the trace that led to it.
pub fn run_seed(seed: u64, mutation: Option<Mutation>, live: Option<Watch>) -> Result<Summary, Box<Failure>> {
    crate::mutants::plant(mutation);
    let mut rng = Rng::new(seed);
    let fail = |what: String, world: Option<&World>| {
        let trace = world.map(|world| world.trace.lines().map(str::to_owned).collect()).unwrap_or_default();
        Box::new(Failure { seed, what, trace })
    };
    let mut world = World::new(&mut rng, mutation).map_err(|what| fail(what, None))?;
    world.trace.live = live.is_some();
    world.watched = live.and_then(|watch| watch.group);
    let outcome = play(&mut world, &mut rng);
    outcome.map_err(|what| fail(what, Some(&world)))
}

fn play(world: &mut World, rng: &mut Rng) -> Result<Summary, String> {
    found(world)?;
    add_workload(world, rng);
    let faults_end = world.now_us + FAULTS_US;
    let mut next_fault = world.now_us + rng.range(SECOND_US, 3 * SECOND_US);
    let mut next_heal = world.now_us + HEAL_EVERY_US;
    while world.now_us < faults_end {
        let until = next_fault.min(next_heal).min(faults_end);
        while world.step(until)? {}
        if world.now_us >= next_heal {
            nemesis::heal(world);
            next_heal = world.now_us + HEAL_EVERY_US;
        } else if world.now_us >= next_fault {
            next_fault = world.now_us + nemesis::strike(world, rng);
        }
    }
    nemesis::heal(world);
    settle(world)?;
    judge(world)
}

/// Founds the cluster.
///
/// # Errors
/// When it does not come up in time.
pub fn found(world: &mut World) -> Result<(), String> {
    world.bootstrap(0)?;
    let end = world.now_us + SETTLES_WITHIN_US;
    while !(world.founded() && all_ready(world)) {
        if !world.step(end)? {
            return Err("the cluster was not founded in time".to_owned());
        }
    }
    Ok(())
}

fn all_ready(world: &World) -> bool {
    world.processes.iter().all(|process| process.running.as_ref().is_some_and(|running| running.member.ready()))
}

fn add_workload(world: &mut World, rng: &mut Rng) {
    if rng.chance(40) {
        world.add_client("churn", Role::Churner);
    }
    let queues = ["orders", "events"];
    for queue in &queues[..1 + rng.index(queues.len())] {
        for _ in 0..2 {
            world.add_client(queue, Role::Producer { total: rng.range(300, 1500) });
        }
        for _ in 0..1 + rng.index(2) {
            world.add_client(queue, Role::Consumer { prefetch: rng.range(1, 50) as u16 });
        }
        if rng.chance(50) {
            world.add_client(queue, Role::Getter);
        }
    }
}

/// Faults have stopped: everything must come right by itself.
fn settle(world: &mut World) -> Result<(), String> {
    for client in &mut world.clients {
        client.drain();
    }
    let end = world.now_us + SETTLES_WITHIN_US;
    while !is_settled(world) {
        if !world.step(end)? {
            return Err(format!(
                "not settled {} s after the faults stopped: {}",
                SETTLES_WITHIN_US / SECOND_US,
                what_is_missing(world)
            ));
        }
    }
    // What comes after the last delivery must not be a delivery.
    let end = world.now_us + 3 * SECOND_US;
    while world.step(end)? {}
    Ok(())
}

fn is_settled(world: &World) -> bool {
    all_ready(world)
        && world.clients.iter().all(crate::client::Client::is_done)
        && world.ledgers.values().all(crate::ledger::Ledger::all_confirmed_were_delivered)
}

fn what_is_missing(world: &World) -> String {
    let unready = world.processes.iter().filter(|p| !p.running.as_ref().is_some_and(|r| r.member.ready()));
    let unready: Vec<&str> = unready.map(|process| process.name.as_str()).collect();
    let busy: Vec<u32> = world.clients.iter().filter(|client| !client.is_done()).map(|client| client.id).collect();
    let lost: Vec<String> =
        world.ledgers.iter().map(|(queue, ledger)| format!("{queue}: {:?}", ledger.some_lost())).collect();
    format!("members not ready {unready:?}, clients not done {busy:?}, confirmed and not delivered {}", lost.join(", "))
}

fn judge(world: &World) -> Result<Summary, String> {
    let mut summary = Summary {
        leaderships: world.invariants.leaderships(),
        starts: world.processes.iter().map(|process| process.life).sum(),
        steps: world.steps,
        virtual_us: world.now_us,
        ..Summary::default()
    };
    for (queue, ledger) in &world.ledgers {
        let verdict: Verdict = ledger.verdict();
        if !verdict.is_clean() {
            return Err(format!("queue {queue}: {verdict:?}; some of the lost: {:?}", ledger.some_lost()));
        }
        summary.confirmed += verdict.confirmed;
        summary.consumed += verdict.consumed;
        summary.unknown += verdict.unknown;
    }
    Ok(summary)
}
