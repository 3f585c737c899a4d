//! One seed, from three blank disks to the verdict.

use crate::invariants::{apart, converged, differences};
use crate::ledger::Verdict;
use crate::mutants::Mutation;
use crate::nemesis;
use crate::plan::{Cut, Plan, Profile, SECOND_US};
use crate::rng::Rng;
use crate::world::{Healed, MEMBERS, World};

/// A cluster is founded, and after the faults everything has come right, within this.
const SETTLES_WITHIN_US: u64 = 60 * SECOND_US;

/// Between two requests of a client there is a moment at which all replicas have applied the same.
const CONVERGES_WITHIN_US: u64 = 5 * SECOND_US;

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
    /// For each strike and client that it left alone, how long the next confirm of what was published after it took.
    pub service_gaps_us: Vec<u64>,
    /// How replicas with damage fared.
    pub healed: Healed,
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

/// One run: what it is drawn from, what is left out of it, and the bug in it.
#[derive(Clone, Debug)]
pub struct Run {
    /// Which runs are drawn.
    pub profile: Profile,
    /// Decides everything.
    pub seed: u64,
    /// What of its plan is kept.
    pub cut: Cut,
    /// A planted bug.
    pub mutation: Option<Mutation>,
}

impl Run {
    /// A whole run without a planted bug.
    #[must_use]
    pub fn new(profile: Profile, seed: u64) -> Self {
        Self { profile, seed, cut: Cut::default(), mutation: None }
    }

    /// What will happen.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let mut plan = self.profile.plan(self.seed);
        plan.cut(&self.cut);
        plan
    }

    /// Runs it; with `live`, before the eyes of a person.
    ///
    /// # Errors
    /// The broken invariant with the trace that led to it.
    pub fn play(&self, live: Option<Watch>) -> Result<Summary, Box<Failure>> {
        crate::mutants::plant(self.mutation);
        let fail = |what: String, world: Option<&World>| {
            let trace = world.map(|world| world.trace.lines().map(str::to_owned).collect()).unwrap_or_default();
            Box::new(Failure { seed: self.seed, what, trace })
        };
        let plan = self.plan();
        let mut rng = Rng::new(self.seed);
        let mut world = World::new(&mut rng, &plan, self.mutation).map_err(|what| fail(what, None))?;
        world.trace.live = live.is_some();
        world.watched = live.and_then(|watch| watch.group);
        let outcome = play(&mut world, &plan);
        outcome.map_err(|what| fail(what, Some(&world)))
    }
}

fn play(world: &mut World, plan: &Plan) -> Result<Summary, String> {
    found(world)?;
    for (place, client) in plan.clients.iter().enumerate() {
        if let Some(client) = client {
            world.add_client_as(place as u32 + 1, &client.queue, client.role.clone());
        }
    }
    let start_us = world.now_us;
    let terms_before = world.highest_terms();
    for timed in &plan.strikes {
        while world.step(start_us + timed.at_us)? {}
        nemesis::strike(world, &timed.strike)?;
        world.struck();
    }
    while world.step(start_us + plan.faults_us)? {}
    if let Some(most) = plan.promises.term_climb {
        terms_climbed(world, &terms_before, most)?;
    }
    recover(world, plan)?;
    let served_until = world.now_us.max(plan.least_us.saturating_sub(TAIL_US));
    while world.step(served_until)? {}
    settle(world)?;
    // What comes after the last delivery must not be a delivery.
    let end = (world.now_us + plan.quiet_us).max(plan.least_us);
    while world.step(end)? {}
    compare(world)?;
    judge(world, plan)
}

/// Waits for a moment at which all replicas have applied the same, and compares them.
fn compare(world: &mut World) -> Result<(), String> {
    let end = world.now_us + CONVERGES_WITHIN_US;
    while !converged(&world.processes) {
        if !world.step(end)? {
            return Err("replicas do not converge although nothing is published any more".to_owned());
        }
    }
    differences(&world.processes, world.damaged)
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

/// A member whose disk was damaged may stay out.
fn must_serve(world: &World, member: usize) -> bool {
    world.damaged != Some(member)
}

fn all_ready(world: &World) -> bool {
    (0..MEMBERS)
        .filter(|member| must_serve(world, *member))
        .all(|member| world.processes[member].running.as_ref().is_some_and(|running| running.member.ready()))
}

fn terms_climbed(world: &World, before: &std::collections::BTreeMap<u64, u64>, most: u64) -> Result<(), String> {
    for (group, term) in world.highest_terms() {
        let first = before.get(&group).copied().unwrap_or(1);
        if term > first + most {
            return Err(format!("the term of group {group} went from {first} to {term} under the faults"));
        }
    }
    Ok(())
}

/// What settling and quiet take at the end of most runs.
const TAIL_US: u64 = 5 * SECOND_US;

/// Faults have stopped: once all members run again, every client gets on within the promised time.
fn recover(world: &mut World, plan: &Plan) -> Result<(), String> {
    nemesis::heal(world);
    world.resume_all()?;
    let end = world.now_us + SETTLES_WITHIN_US;
    let all_run = |world: &World| {
        (0..MEMBERS).filter(|member| must_serve(world, *member)).all(|member| world.processes[member].running.is_some())
    };
    while !all_run(world) {
        if !world.step(end)? {
            return Err("a member did not start after the faults stopped".to_owned());
        }
    }
    let healed_us = world.now_us;
    world.note("the faults have stopped".to_owned());
    while world.step(healed_us + plan.promises.serves_within_us)? {}
    for (place, client) in world.clients.iter().enumerate() {
        if world.damaged.is_some() && world.damaged == world.member_of(place) {
            continue;
        }
        if client.stuck_since().is_some_and(|since| since <= healed_us) {
            return Err(format!(
                "client {} of queue {} at m{} has waited ({}) since before the faults stopped, {} ms ago",
                client.id,
                client.queue,
                world.member_of(place).unwrap_or(MEMBERS),
                client.waits_for(),
                plan.promises.serves_within_us / 1000
            ));
        }
        if let Some(most) = plan.promises.slowest_confirm_us.filter(|most| client.slowest_confirm_us > *most) {
            return Err(format!(
                "client {} waited {} ms for a confirm; {} ms are promised",
                client.id,
                client.slowest_confirm_us / 1000,
                most / 1000
            ));
        }
    }
    Ok(())
}

/// A disk that rots is looked at as a whole this often once the faults have stopped.
const LOOKS_AGAIN_US: u64 = SECOND_US;

/// Everything must come right by itself.
fn settle(world: &mut World) -> Result<(), String> {
    for client in &mut world.clients {
        client.drain();
    }
    let end = world.now_us + SETTLES_WITHIN_US;
    let mut next_look = world.now_us;
    while !is_settled(world) {
        if world.now_us >= next_look {
            world.look_at_everything()?;
            next_look += LOOKS_AGAIN_US;
        }
        if !world.step(end)? {
            return Err(format!(
                "not settled {} s after the faults stopped: {}",
                SETTLES_WITHIN_US / SECOND_US,
                what_is_missing(world)
            ));
        }
    }
    Ok(())
}

fn is_settled(world: &World) -> bool {
    world.clients.iter().all(crate::client::Client::is_done)
        && world.ledgers.values().all(crate::ledger::Ledger::all_confirmed_were_delivered)
        && all_ready(world)
        && converged(&world.processes)
        && world.is_whole_again()
}

fn what_is_missing(world: &World) -> String {
    let unready = world.processes.iter().filter(|p| !p.running.as_ref().is_some_and(|r| r.member.ready()));
    let unready: Vec<&str> = unready.map(|process| process.name.as_str()).collect();
    let busy: Vec<u32> = world.clients.iter().filter(|client| !client.is_done()).map(|client| client.id).collect();
    let lost: Vec<String> =
        world.ledgers.iter().map(|(queue, ledger)| format!("{queue}: {:?}", ledger.some_lost())).collect();
    let apart = match converged(&world.processes) {
        true => String::new(),
        false => format!(", replicas have not converged: {}", apart(&world.processes)),
    };
    format!(
        "members not ready {unready:?}, clients not done {busy:?}, confirmed and not delivered {}{apart}",
        lost.join(", ")
    ) + if world.is_whole_again() { "" } else { ", a replica with damage is neither mended nor replaced" }
}

fn judge(world: &World, plan: &Plan) -> Result<Summary, String> {
    let mut summary = Summary {
        leaderships: world.invariants.leaderships(),
        starts: world.processes.iter().map(|process| process.life).sum(),
        steps: world.steps,
        virtual_us: world.now_us,
        service_gaps_us: world.service_gaps_us.clone(),
        healed: world.healed()?,
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
    if world.now_us < plan.least_us {
        return Err(format!("the run took {} virtual us instead of {}", world.now_us, plan.least_us));
    }
    if summary.confirmed == 0 && plan.clients.iter().flatten().any(|client| client.is_producer()) {
        return Err("nothing was confirmed in the whole run".to_owned());
    }
    Ok(summary)
}
