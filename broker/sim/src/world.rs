//! The world of one run: three machines, a network, clients, and an agenda of events in virtual time.

mod checks;
mod clients;
mod disks;
mod holds;
mod links;
mod operator;
mod rot;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use holdfast_engine::admin::{AdminAction, AdminRequest};
use holdfast_engine::{AdminRequestId, Input, Output};
use holdfast_queue::ids::BootId;
use holdfast_queue::time::Instant;

use crate::client::Client;
use crate::disk::SimDisk;
use crate::invariants::Invariants;
use crate::ledger::Ledger;
use crate::mutants::Mutation;
use crate::network::{Conditions, Link};
use crate::plan::Plan;
use crate::process::{Process, small_limits};
use crate::rng::Rng;

pub use rot::{Healed, RotIn};

/// Members of the simulated cluster.
pub const MEMBERS: usize = 3;
/// Virtual time between two looks of a client at what it has to do.
const CLIENT_TICK_US: u64 = 10_000;
/// A link that could not deliver for this long breaks.
const LINK_BREAKS_AFTER_US: u64 = 3_000_000;

/// Something that happens at a time.
#[derive(Debug)]
pub enum Event {
    /// A member's deadline.
    Tick { member: usize, life: u64 },
    /// The write under way is done.
    DiskDone { member: usize, life: u64 },
    /// A journal without writes looks at what its disk holds.
    IdleJournal { member: usize, life: u64 },
    /// A frame arrives.
    Frame { link: u64, from: usize, bytes: Bytes },
    /// A member dials.
    Dial { member: usize, life: u64, address: String },
    /// Bytes arrive at a member from a client, or at a client from a member.
    ClientBytes { client: usize, connection: u64, to_member: bool, bytes: Bytes },
    /// A client's connection ends on the other side.
    ClientEnd { client: usize, connection: u64 },
    /// A client looks at what it has to do.
    ClientTick { client: usize },
    /// A stopped process goes on.
    Resume { member: usize, life: u64 },
    /// A dead process is started again.
    Restart { member: usize },
    /// A member is asked for something by its operator.
    Admin { member: usize, action: Box<AdminAction> },
    /// A link whose other end lost its power has been silent for too long.
    LinkTimeout { link: u64 },
    /// A machine loses its power.
    PowerLoss { member: usize, down_us: u64 },
    /// A full disk has space again.
    DiskFreed { member: usize },
    /// The files of a hold are read.
    HoldRead { member: usize, life: u64, described: Box<holds::Described> },
    /// A process that took too much memory takes less.
    MemoryFreed { member: usize },
    /// A member reads its sealed segments again; so many times more after this one.
    Scrub { member: usize, life: u64, again: u8 },
}

/// A client's connection: which member holds it.
#[derive(Clone, Copy, Debug)]
struct Attached {
    connection: u64,
    member: usize,
    life: u64,
    /// The run that holds the session.
    boot: BootId,
}

/// Everything there is.
pub struct World {
    /// Virtual time.
    pub now_us: u64,
    agenda: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    next_event: u64,
    /// The machines.
    pub processes: Vec<Process>,
    /// The network's state.
    pub conditions: Conditions,
    links: BTreeMap<u64, Link>,
    next_link: u64,
    /// The clients.
    pub clients: Vec<Client>,
    attached: Vec<Option<Attached>>,
    next_connection: u64,
    /// Machines that clients connect to.
    pub homes: Vec<usize>,
    last_client_arrival: BTreeMap<(u64, bool), u64>,
    client_read: BTreeMap<u64, u64>,
    /// The ledger of each queue.
    pub ledgers: BTreeMap<String, Ledger>,
    /// What must hold after every step.
    pub invariants: Invariants,
    /// Clocks of machines may differ: added to virtual time for each member's wall clock, milliseconds.
    pub wall_offset_ms: Vec<i64>,
    /// Copies that clients may count on when they have read a confirm; 0 = a majority, as Raft gives it.
    pub min_in_sync: u8,
    /// Planted bug, if any.
    pub mutation: Option<Mutation>,
    /// A group whose every change goes into the trace.
    pub watched: Option<u64>,
    watched_states: BTreeMap<usize, String>,
    /// Lines of what happened, the last of them first to go.
    pub trace: crate::trace::Trace,
    rng: Rng,
    client_rng: Rng,
    network_rng: Rng,
    disk_rng: Rng,
    /// Members whose disks fail: their processes may end, and may fail to start.
    troubled: BTreeSet<usize>,
    /// The member whose disk was damaged. No second one ever is: two of three sound disks are what replication needs.
    pub damaged: Option<usize>,
    rot: rot::Rot,
    /// Cuts off the next Raft snapshot that got so far.
    transfer_cut: Option<disks::TransferCut>,
    /// No policy moves replicas in this run.
    replicas_stay: bool,
    /// Processes that did something since the last check.
    touched: Vec<bool>,
    /// Since when fewer than a majority of processes run.
    majority_lost_us: Option<u64>,
    /// Strikes after which a client, on a connection that the strike did not touch, has had no confirm yet of what it
    /// published since: the time, the client, its connection.
    unanswered_strikes: Vec<(u64, usize, u32)>,
    /// How long those confirms took.
    pub service_gaps_us: Vec<u64>,
    admin_answers: BTreeMap<u64, Result<(), String>>,
    /// Events handled.
    pub steps: u64,
}

impl World {
    /// Three blank machines that are switched on, and no clients.
    ///
    /// # Errors
    /// When a process cannot start.
    pub fn new(rng: &mut Rng, plan: &Plan, mutation: Option<Mutation>) -> Result<Self, String> {
        Self::on(rng, plan, mutation, Vec::new())
    }

    /// The same, but for the first machines, whose disks hold something already.
    ///
    /// # Errors
    /// When a process cannot start.
    pub fn on(rng: &mut Rng, plan: &Plan, mutation: Option<Mutation>, disks: Vec<SimDisk>) -> Result<Self, String> {
        let mut world = Self {
            now_us: 1_000_000,
            agenda: BinaryHeap::new(),
            events: BTreeMap::new(),
            next_event: 0,
            processes: (0..MEMBERS).map(Process::new).collect(),
            conditions: Conditions::default(),
            links: BTreeMap::new(),
            next_link: 1,
            clients: Vec::new(),
            attached: Vec::new(),
            next_connection: 1,
            homes: (0..MEMBERS).collect(),
            last_client_arrival: BTreeMap::new(),
            client_read: BTreeMap::new(),
            ledgers: BTreeMap::new(),
            invariants: Invariants::default(),
            wall_offset_ms: vec![0; MEMBERS],
            min_in_sync: plan.min_in_sync,
            mutation,
            watched: None,
            watched_states: BTreeMap::new(),
            trace: crate::trace::Trace::default(),
            rng: rng.split(1),
            client_rng: rng.split(4),
            network_rng: rng.split(2),
            disk_rng: rng.split(3),
            troubled: BTreeSet::new(),
            damaged: None,
            rot: rot::Rot::new(plan.has_rot()),
            transfer_cut: None,
            replicas_stay: plan.promises.replicas_stay,
            touched: vec![false; MEMBERS],
            majority_lost_us: None,
            unanswered_strikes: Vec::new(),
            service_gaps_us: Vec::new(),
            admin_answers: BTreeMap::new(),
            steps: 0,
        };
        for (process, disk) in world.processes.iter_mut().zip(disks) {
            process.disk = disk;
        }
        for member in 0..MEMBERS {
            if plan.has_small_limits {
                world.processes[member].limits = small_limits();
            }
            world.processes[member].segment_bytes = plan.segment_bytes;
            world.start(member)?;
        }
        Ok(world)
    }

    /// Puts an event on the agenda.
    pub fn schedule(&mut self, at_us: u64, event: Event) {
        let number = self.next_event;
        self.next_event += 1;
        self.events.insert(number, event);
        self.agenda.push(Reverse((at_us.max(self.now_us), number)));
    }

    fn wall_ms(&self, member: usize) -> u64 {
        let virtual_ms = 1_700_000_000_000 + self.now_us / 1000;
        virtual_ms.saturating_add_signed(self.wall_offset_ms[member])
    }

    /// Starts the process of a member, on whatever its disk holds.
    ///
    /// # Errors
    /// When it cannot.
    pub fn start(&mut self, member: usize) -> Result<(), String> {
        if self.processes[member].running.is_some() {
            return Ok(());
        }
        let silent = |link: &Link| link.is_silent && link.ends.contains(&member);
        let gone: Vec<u64> = self.links.iter().filter(|(_, link)| silent(link)).map(|(id, _)| *id).collect();
        for link in gone {
            self.break_link(link, "reset by the machine that came back");
        }
        let (now, wall) = (self.now_us, self.wall_ms(member));
        let tell = self.min_in_sync > 1;
        match self.processes[member].start(now, wall, &mut self.rng, self.mutation, tell) {
            Ok(found) => self.invariants.copies.written(member, &found),
            Err(why) if self.troubled.contains(&member) || self.damaged == Some(member) => {
                self.trace.note(now, format!("m{member} does not start: {why}"));
                self.schedule(now + 1_000_000, Event::Restart { member });
                return Ok(());
            }
            Err(why) => return Err(why),
        }
        self.trace.note(now, format!("m{member} starts"));
        self.look_at_holds(member, true);
        self.schedule(now + disks::IDLE_US, Event::IdleJournal { member, life: self.processes[member].life });
        self.touched[member] = true;
        if self.running() * 2 > MEMBERS {
            self.majority_lost_us = None;
        }
        if self.rot.member == Some(member) {
            self.invariants.forget(member);
        } else if self.damaged != Some(member) && self.replicas_stay {
            self.invariants.started(member, &self.processes[member])?;
        }
        self.drain(member)
    }

    /// Processes that run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.processes.iter().filter(|process| process.running.is_some()).count()
    }

    /// Adds a line to the trace.
    pub fn note(&mut self, line: String) {
        self.trace.note(self.now_us, line);
    }

    /// Ends a process at once. With `power_loss`, what was not synced goes with it.
    pub fn crash(&mut self, member: usize, power_loss: bool) {
        self.invariants.about_to_end(member, &self.processes);
        let Some(running) = self.processes[member].running.take() else { return };
        self.rot.healed.add(&running.member.metrics());
        if !self.processes[member].disk.is_limited() {
            self.troubled.remove(&member);
        }
        if self.running() * 2 <= MEMBERS {
            self.majority_lost_us.get_or_insert(self.now_us);
        }
        self.trace.note(self.now_us, format!("m{member} crashes{}", if power_loss { ", its power too" } else { "" }));
        self.half_done_write(member, running);
        let process = &mut self.processes[member];
        process.life += 1;
        process.backlog.clear();
        if power_loss {
            process.disk.power_loss(&mut self.disk_rng);
        } else {
            process.disk.process_crash();
        }
        let gone: Vec<u64> =
            self.links.iter().filter(|(_, link)| link.ends.contains(&member)).map(|(id, _)| *id).collect();
        for link in gone {
            match self.links.get_mut(&link) {
                // A machine without power sends no reset: the other end must find out by itself.
                Some(state) if power_loss => {
                    state.is_silent = true;
                    let at = self.now_us + self.network_rng.range(2_000_000, 8_000_000);
                    self.schedule(at, Event::LinkTimeout { link });
                }
                _ => self.break_link(link, "the process ended"),
            }
        }
        self.end_clients_of(member);
    }

    /// Lets every stopped process go on.
    ///
    /// # Errors
    /// When carrying out what a member wants fails.
    pub fn resume_all(&mut self) -> Result<(), String> {
        for member in 0..MEMBERS {
            if self.processes[member].is_paused(self.now_us) {
                self.processes[member].paused_until_us = self.now_us;
                // The tick that was due meanwhile waits for the end of the pause.
                if let Some(running) = &mut self.processes[member].running {
                    running.tick_at_us = 0;
                }
                let life = self.processes[member].life;
                self.resume(member, life)?;
                self.drain(member)?;
            }
        }
        Ok(())
    }

    /// Stops a process (SIGSTOP) for a while.
    pub fn pause(&mut self, member: usize, for_us: u64) {
        let until = self.now_us + for_us;
        let process = &mut self.processes[member];
        process.paused_until_us = process.paused_until_us.max(until);
        let life = process.life;
        self.trace.note(self.now_us, format!("m{member} is stopped for {} ms", for_us / 1000));
        self.schedule(until, Event::Resume { member, life });
    }

    /// Asks a process to end in an orderly way (SIGTERM); it starts again `down_us` later.
    ///
    /// # Errors
    /// When carrying out what the member wants fails.
    pub fn shut_down(&mut self, member: usize, down_us: u64) -> Result<(), String> {
        self.note(format!("m{member} is asked to end"));
        self.schedule(self.now_us + 8_000_000 + down_us, Event::Restart { member });
        self.give(member, Input::Shutdown)
    }

    /// Handles the next event; false when there is none before `until_us`.
    ///
    /// # Errors
    /// When an invariant broke or a process failed.
    pub fn step(&mut self, until_us: u64) -> Result<bool, String> {
        let Some(Reverse((at, number))) = self.agenda.peek().copied() else { return Ok(false) };
        if at > until_us {
            self.now_us = until_us;
            return Ok(false);
        }
        self.agenda.pop();
        self.now_us = at;
        self.steps += 1;
        let Some(event) = self.events.remove(&number) else { return Ok(true) };
        self.carry_out(event)?;
        self.check()?;
        Ok(true)
    }

    fn carry_out(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Tick { member, life } => self.tick(member, life),
            Event::DiskDone { member, life } => self.disk_done(member, life),
            Event::IdleJournal { member, life } => self.idle_journal(member, life),
            Event::Frame { link, from, bytes } => self.frame(link, from, bytes),
            Event::Dial { member, life, address } => self.dial(member, life, &address),
            Event::ClientBytes { client, connection, to_member, bytes } => {
                self.client_bytes(client, connection, to_member, bytes)
            }
            Event::ClientEnd { client, connection } => self.client_end(client, connection),
            Event::ClientTick { client } => self.client_tick(client),
            Event::Resume { member, life } => self.resume(member, life),
            Event::Restart { member } => self.start(member),
            Event::Admin { member, action } => {
                let body = AdminRequest { token: None, action: *action };
                self.give(member, Input::Admin { request: AdminRequestId(self.now_us), body })
            }
            Event::LinkTimeout { link } => {
                self.break_link(link, "no acknowledgement for too long");
                Ok(())
            }
            Event::PowerLoss { member, down_us } => {
                self.crash(member, true);
                self.schedule(self.now_us + down_us, Event::Restart { member });
                Ok(())
            }
            Event::DiskFreed { member } => {
                self.free_disk(member);
                Ok(())
            }
            Event::HoldRead { member, life, described } => self.hold_read(member, life, &described),
            Event::MemoryFreed { member } => self.see_memory(member, 0),
            Event::Scrub { member, life, again } => {
                self.scrub(member, life, again);
                Ok(())
            }
        }
    }

    /// Gives a member an input, now or when it goes on.
    fn give(&mut self, member: usize, input: Input) -> Result<(), String> {
        let (now, wall) = (self.now_us, self.wall_ms(member));
        let process = &mut self.processes[member];
        if process.is_paused(now) {
            process.backlog.push_back(input);
            return Ok(());
        }
        let Some(running) = &mut process.running else { return Ok(()) };
        self.touched[member] = true;
        running.member.handle(Instant(now), wall, input);
        running.member.flush(Instant(now));
        self.drain(member)
    }

    fn tick(&mut self, member: usize, life: u64) -> Result<(), String> {
        let (now, wall) = (self.now_us, self.wall_ms(member));
        let process = &mut self.processes[member];
        if process.life != life {
            return Ok(());
        }
        if process.is_paused(now) {
            let at = process.paused_until_us;
            self.schedule(at, Event::Tick { member, life });
            return Ok(());
        }
        let Some(running) = &mut process.running else { return Ok(()) };
        running.tick_at_us = 0;
        self.touched[member] = true;
        running.member.tick(Instant(now), wall);
        running.member.flush(Instant(now));
        self.drain(member)
    }

    fn resume(&mut self, member: usize, life: u64) -> Result<(), String> {
        if self.processes[member].life != life || self.processes[member].is_paused(self.now_us) {
            return Ok(());
        }
        self.trace.note(self.now_us, format!("m{member} goes on"));
        while let Some(input) = self.processes[member].backlog.pop_front() {
            self.give(member, input)?;
            if self.processes[member].life != life {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Carries out what a member wants.
    fn drain(&mut self, member: usize) -> Result<(), String> {
        loop {
            let Some(running) = &mut self.processes[member].running else { return Ok(()) };
            let Some(output) = running.member.poll() else { break };
            self.output(member, output)?;
        }
        self.start_write(member);
        self.schedule_tick(member);
        Ok(())
    }

    fn schedule_tick(&mut self, member: usize) {
        let now = self.now_us;
        let process = &mut self.processes[member];
        let life = process.life;
        let Some(running) = &mut process.running else { return };
        let deadline = running.member.next_deadline().0.max(now + 1);
        if running.tick_at_us == 0 || deadline < running.tick_at_us {
            running.tick_at_us = deadline;
            self.schedule(deadline, Event::Tick { member, life });
        }
    }

    fn output(&mut self, member: usize, output: Output) -> Result<(), String> {
        match output {
            Output::ClientSend { conn, bytes } => self.send_to_client(member, conn, Some(bytes)),
            Output::ClientClose { conn } => self.send_to_client(member, conn, None),
            Output::ClientPause { .. } => {}
            Output::Dial { address } => {
                let life = self.processes[member].life;
                if let Some(running) = &mut self.processes[member].running {
                    running.dials.insert(address.clone(), 50_000);
                }
                self.schedule(self.now_us + 1_000, Event::Dial { member, life, address });
            }
            Output::Undial { address } => {
                if let Some(running) = &mut self.processes[member].running {
                    running.dials.remove(&address);
                }
                let gone: Vec<u64> = self
                    .links
                    .iter()
                    .filter(|(_, link)| link.ends[0] == member && link.address == address)
                    .map(|(id, _)| *id)
                    .collect();
                for link in gone {
                    self.break_link(link, "undialled");
                }
            }
            Output::LinkSend { link, bytes } => return self.link_send(member, link, bytes),
            Output::LinkClose { link, reason } => {
                if let Some(id) = self.link_of(member, link) {
                    self.break_link(id, &reason);
                }
            }
            Output::Journal(batch) => {
                let batch = crate::mutants::at_journal(self.mutation, batch);
                if let Some(running) = &mut self.processes[member].running {
                    running.queued.push_back(batch);
                    running.handed += 1;
                }
            }
            Output::Hold(order) => return self.hold(member, order),
            Output::CheckPassword { token, hash, password } => {
                let ok = hash.as_bytes() == password.as_ref();
                return self.give(member, Input::PasswordChecked { token, ok });
            }
            Output::AdminReply { request, reply } => {
                self.admin_answers.insert(request.0, reply.map(|_| ()).map_err(|error| error.error));
            }
            Output::Event(event) => self.trace.note(self.now_us, format!("m{member}: {}", event.text)),
            Output::Exit { clean: true, .. } => self.crash(member, false),
            Output::Exit { reason, .. } if self.troubled.contains(&member) || self.damaged == Some(member) => {
                self.note(format!("m{member} ends: {reason}"));
                self.crash(member, false);
                self.schedule(self.now_us + 500_000, Event::Restart { member });
            }
            Output::Exit { reason, .. } | Output::LeftBehind { reason } => {
                return Err(format!("m{member} ended itself: {reason}"));
            }
        }
        Ok(())
    }

    /// Which member holds most leaderships, if any.
    #[must_use]
    pub fn busiest_leader(&self) -> Option<usize> {
        let leading = |process: &Process| {
            let running = process.running.as_ref()?;
            Some(running.views().filter(|view| view.leading).count())
        };
        let counts = self.processes.iter().enumerate().filter_map(|(index, process)| Some((leading(process)?, index)));
        counts.max().filter(|(count, _)| *count > 0).map(|(_, index)| index)
    }
}
