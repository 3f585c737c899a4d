//! Replication alone: three hosts with production journals, a machine that remembers everything, and faults. Fast enough
//! for thousands of seeds; what fails here need not be looked for in a whole cluster.

mod check;
mod machine;
mod node;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use holdfast_journal::{GroupKey, Incarnation};
use holdfast_queue::ids::{GroupId, MemberId};
use holdfast_queue::time::Instant;
use holdfast_replica::{Envelope, HostOutput, ProposalId};

use crate::mutants::Mutation;
use crate::rng::Rng;
use crate::trace::Trace;
use check::Checker;
use node::Node;

const MEMBERS: usize = 3;
const SECOND_US: u64 = 1_000_000;
/// Virtual time under faults, and the longest until all is well again.
const FAULTS_US: u64 = 40 * SECOND_US;
const SETTLES_WITHIN_US: u64 = 20 * SECOND_US;
/// Silence after which a member is suspected, as the engine does it.
const SUSPECT_AFTER_US: u64 = 600_000;

enum Event {
    Tick { member: usize, life: u64 },
    DiskDone { member: usize, life: u64 },
    Envelope { from: usize, to: usize, lives: (u64, u64), bytes: Bytes },
    Heartbeat,
    Propose,
    Restart { member: usize },
    Fault,
    Heal,
}

/// What a seed came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Commands whose effects a leader let out.
    pub confirmed: u64,
    /// Leaderships over all groups.
    pub leaderships: usize,
    /// Processes started.
    pub starts: u64,
    /// Raft snapshots installed.
    pub snapshots: u64,
    /// Events handled.
    pub steps: u64,
    /// A hash of everything that happened.
    pub digest: u64,
}

struct Replicas {
    now_us: u64,
    agenda: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    next_event: u64,
    nodes: Vec<Node>,
    groups: Vec<GroupKey>,
    cuts: BTreeSet<(usize, usize)>,
    slow_us: u64,
    last_arrival: BTreeMap<(usize, usize), u64>,
    next_number: u64,
    faults: bool,
    checker: Checker,
    outcome: Outcome,
    rng: Rng,
    trace: Trace,
}

/// Runs one seed, with a planted bug if there is one.
///
/// # Errors
/// What broke, and the last lines of what happened.
pub fn run_seed(seed: u64, mutation: Option<Mutation>, live: bool) -> Result<Outcome, (String, Vec<String>)> {
    crate::mutants::plant(mutation);
    let mut world = Replicas::new(seed);
    world.trace.live = live;
    let played = world.play();
    let lines = || world.trace.lines().map(str::to_owned).collect();
    played.map_err(|what| (what, lines()))?;
    Ok(world.outcome)
}

impl Replicas {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let count = 1 + rng.range(0, 4);
        let groups = (1..=count)
            .map(|group| GroupKey { group, incarnation: Incarnation { counter: 1, nonce: rng.draw() } })
            .collect();
        Self {
            now_us: SECOND_US,
            agenda: BinaryHeap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            nodes: (0..MEMBERS).map(Node::new).collect(),
            groups,
            cuts: BTreeSet::new(),
            slow_us: 0,
            last_arrival: BTreeMap::new(),
            next_number: 1,
            faults: true,
            checker: Checker::default(),
            outcome: Outcome::default(),
            rng,
            trace: Trace::default(),
        }
    }

    fn play(&mut self) -> Result<(), String> {
        for member in 0..MEMBERS {
            self.start(member)?;
        }
        self.schedule(10_000, Event::Heartbeat);
        self.schedule(20_000, Event::Propose);
        let first = self.rng.range(0, 3 * SECOND_US);
        self.schedule(first, Event::Fault);
        self.schedule(5 * SECOND_US, Event::Heal);
        let end = self.now_us + FAULTS_US;
        while self.step(end)? {}
        self.trace.note(self.now_us, "faults stop".into());
        self.faults = false;
        self.heal();
        let end = self.now_us + SETTLES_WITHIN_US;
        while !self.is_settled() {
            if !self.step(end)? {
                return Err(format!(
                    "not settled {} s after the faults stopped: {}",
                    SETTLES_WITHIN_US / SECOND_US,
                    self.state()
                ));
            }
        }
        self.checker.at_the_end(&self.nodes, &self.groups)?;
        self.outcome.leaderships = self.checker.leaderships();
        self.outcome.confirmed = self.checker.confirmed();
        self.outcome.starts = self.nodes.iter().map(|node| node.starts).sum();
        Ok(())
    }

    fn schedule(&mut self, after_us: u64, event: Event) {
        let number = self.next_event;
        self.next_event += 1;
        self.events.insert(number, event);
        self.agenda.push(Reverse((self.now_us + after_us, number)));
    }

    fn step(&mut self, until_us: u64) -> Result<bool, String> {
        let Some(Reverse((at, number))) = self.agenda.peek().copied().filter(|next| next.0.0 <= until_us) else {
            self.now_us = until_us;
            return Ok(false);
        };
        self.agenda.pop();
        self.now_us = at;
        self.outcome.steps += 1;
        self.outcome.digest = self.outcome.digest.rotate_left(5) ^ at ^ number;
        if let Some(event) = self.events.remove(&number) {
            self.carry_out(event)?;
        }
        Ok(true)
    }

    fn carry_out(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Tick { member, life } => self.with_node(member, life, |node, now| node.tick(now)),
            Event::DiskDone { member, life } => self.with_node(member, life, Node::finish_write),
            Event::Envelope { from, to, lives, bytes } => self.envelope(from, to, lives, bytes),
            Event::Heartbeat => self.heartbeat(),
            Event::Propose => self.propose(),
            Event::Restart { member } => self.start(member),
            Event::Fault => self.fault(),
            Event::Heal => {
                self.heal();
                self.schedule(5 * SECOND_US, Event::Heal);
                Ok(())
            }
        }
    }

    fn start(&mut self, member: usize) -> Result<(), String> {
        if self.nodes[member].is_running() {
            return Ok(());
        }
        self.trace.note(self.now_us, format!("m{member} starts"));
        let groups = self.groups.clone();
        self.nodes[member].start(Instant(self.now_us), &groups, &mut self.rng)?;
        self.drain(member)
    }

    fn with_node(
        &mut self,
        member: usize,
        life: u64,
        call: impl FnOnce(&mut Node, Instant) -> Result<(), String>,
    ) -> Result<(), String> {
        if self.nodes[member].life != life || !self.nodes[member].is_running() {
            return Ok(());
        }
        call(&mut self.nodes[member], Instant(self.now_us))?;
        self.drain(member)
    }

    fn drain(&mut self, member: usize) -> Result<(), String> {
        while let Some(output) = self.nodes[member].poll() {
            self.output(member, output)?;
        }
        if let Some(takes_us) = self.nodes[member].begin_write(&mut self.rng, self.faults) {
            let life = self.nodes[member].life;
            self.schedule(takes_us, Event::DiskDone { member, life });
        }
        let life = self.nodes[member].life;
        if let Some(at) = self.nodes[member].next_tick() {
            self.schedule(at.0.saturating_sub(self.now_us).max(1), Event::Tick { member, life });
        }
        self.checker.after_step(member, &self.nodes[member], &self.groups)
    }

    fn output(&mut self, member: usize, output: HostOutput<u64>) -> Result<(), String> {
        match output {
            HostOutput::Send { to, envelope } => self.send(member, to.0 as usize - 1, envelope.encode()),
            HostOutput::Write(batch) => self.nodes[member].queue_write(batch),
            HostOutput::Applied { group, index, term, leading, effects } => {
                self.checker.applied(member, group, index, term, leading, &effects)?;
            }
            HostOutput::LeaderChanged { group, term, me_leading: true, .. } => {
                self.trace.note(self.now_us, format!("m{member} leads group {group} in term {term}"));
            }
            HostOutput::LeaderChanged { .. } => {}
            HostOutput::SnapshotInstalled { group, index } => {
                self.outcome.snapshots += 1;
                self.trace.note(self.now_us, format!("m{member} installed a snapshot of group {group} at {index}"));
            }
            HostOutput::MembershipChanged { .. } | HostOutput::Mended { .. } => {}
            HostOutput::Mending { group, why } => {
                return Err(format!("m{member} found group {group} damaged on a sound disk: {why}"));
            }
            HostOutput::OtherIncarnation { group, .. } => {
                return Err(format!("m{member}: another incarnation of {group}"));
            }
            HostOutput::Quarantined { group, why } => {
                return Err(format!("m{member} quarantined group {group} on a sound disk: {why}"));
            }
        }
        Ok(())
    }

    fn passes(&self, from: usize, to: usize) -> bool {
        !self.cuts.contains(&(from, to)) && self.nodes[to].is_running()
    }

    /// Links are streams: what is sent is late or, with the stream, gone.
    fn send(&mut self, from: usize, to: usize, bytes: Bytes) {
        if !self.passes(from, to) || (self.faults && self.rng.chance(1)) {
            return;
        }
        let delay = self.rng.range(50, 800) + if self.rng.chance(10) { self.rng.range(0, self.slow_us + 1) } else { 0 };
        let last = self.last_arrival.entry((from, to)).or_default();
        *last = (self.now_us + delay).max(*last + 1);
        let after = *last - self.now_us;
        let lives = (self.nodes[from].life, self.nodes[to].life);
        self.schedule(after, Event::Envelope { from, to, lives, bytes });
    }

    fn envelope(&mut self, from: usize, to: usize, lives: (u64, u64), bytes: Bytes) -> Result<(), String> {
        if lives != (self.nodes[from].life, self.nodes[to].life) || !self.passes(from, to) {
            return Ok(());
        }
        let envelope = Envelope::decode(bytes).map_err(|error| format!("an envelope does not decode: {error}"))?;
        self.with_node(to, lives.1, |node, now| node.envelope(MemberId(from as u64 + 1), envelope, now))
    }

    /// What the engine's member heartbeats tell the host.
    fn heartbeat(&mut self) -> Result<(), String> {
        self.schedule(150_000, Event::Heartbeat);
        for to in 0..MEMBERS {
            let life = self.nodes[to].life;
            for from in (0..MEMBERS).filter(|from| *from != to) {
                let heard = self.nodes[from].is_running()
                    && !self.cuts.contains(&(from, to))
                    && !self.cuts.contains(&(to, from));
                let boot = self.nodes[from].boot;
                let member = MemberId(from as u64 + 1);
                self.with_node(to, life, |node, now| node.heard(member, heard.then_some(boot), now, SUSPECT_AFTER_US))?;
            }
        }
        Ok(())
    }

    fn propose(&mut self) -> Result<(), String> {
        let wait = self.rng.range(1_000, 60_000);
        if self.faults {
            self.schedule(wait, Event::Propose);
        }
        for key in self.groups.clone() {
            for member in 0..MEMBERS {
                if !self.nodes[member].is_running() || self.rng.chance(30) {
                    continue;
                }
                for _ in 0..self.rng.range(1, 8) {
                    self.propose_one(member, GroupId(key.group))?;
                }
                let life = self.nodes[member].life;
                self.with_node(member, life, |_, _| Ok(()))?;
            }
        }
        Ok(())
    }

    fn propose_one(&mut self, member: usize, group: GroupId) -> Result<(), String> {
        let number = self.next_number;
        let Some(ProposalId { index, term }) = self.nodes[member].propose(group, machine::payload(number)) else {
            return Ok(());
        };
        self.next_number += 1;
        self.checker.proposed(group, number, index, term)
    }

    fn crash(&mut self, member: usize, power_loss: bool) {
        self.trace.note(self.now_us, format!("m{member} {}", if power_loss { "loses power" } else { "is killed" }));
        self.nodes[member].crash(power_loss, &mut self.rng);
        let wait = self.rng.range(20_000, 5 * SECOND_US);
        self.schedule(wait, Event::Restart { member });
    }

    fn heal(&mut self) {
        self.cuts.clear();
        self.slow_us = 0;
        for node in &mut self.nodes {
            node.stall_us = 0;
        }
    }

    fn fault(&mut self) -> Result<(), String> {
        if !self.faults {
            return Ok(());
        }
        let wait = self.rng.range(100_000, 2 * SECOND_US);
        self.schedule(wait, Event::Fault);
        let victim = self.rng.index(MEMBERS);
        let other = (victim + 1 + self.rng.index(MEMBERS - 1)) % MEMBERS;
        match self.rng.range(0, 100) {
            0..40 if self.nodes[victim].is_running() => {
                let power_loss = self.rng.chance(50);
                self.crash(victim, power_loss);
            }
            40..48 => {
                let power_loss = self.rng.chance(50);
                for member in 0..MEMBERS {
                    if self.nodes[member].is_running() {
                        self.crash(member, power_loss);
                    }
                }
            }
            48..60 => {
                for other in (0..MEMBERS).filter(|other| *other != victim) {
                    self.cuts.insert((victim, other));
                    self.cuts.insert((other, victim));
                }
                if self.rng.chance(50) {
                    // What it writes meanwhile is reported when others may have written something else in its place.
                    self.nodes[victim].stall_us = self.rng.range(10_000, 4 * SECOND_US);
                }
            }
            60..70 => {
                self.cuts.insert((victim, other));
            }
            70..76 => self.slow_us = self.rng.range(1_000, 300_000),
            76..84 => self.nodes[victim].stall_us = self.rng.range(10_000, 2 * SECOND_US),
            84..92 => {
                for key in self.groups.clone() {
                    self.nodes[victim].transfer(GroupId(key.group), MemberId(other as u64 + 1));
                }
                let life = self.nodes[victim].life;
                self.with_node(victim, life, |_, _| Ok(()))?;
            }
            _ => {}
        }
        Ok(())
    }

    fn is_settled(&self) -> bool {
        let running = self.nodes.iter().all(Node::is_running);
        running && self.groups.iter().all(|key| self.checker.is_settled(&self.nodes, GroupId(key.group)))
    }

    fn state(&self) -> String {
        let groups = self.groups.iter().map(|key| GroupId(key.group));
        groups
            .map(|group| self.nodes.iter().map(|node| node.describe(group)).collect::<Vec<_>>().join(" | "))
            .collect::<Vec<_>>()
            .join("\n")
    }
}
