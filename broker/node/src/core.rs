//! The core thread: the only one that touches the [`Member`].
//!
//! Each round takes what waits in the lanes (up to a bound), handles it, flushes once and carries the outputs out. What
//! goes to one socket in a round is handed over in one piece. The thread never waits for anything but its lanes: the
//! journal and the sockets take what they are given, and their backlog closes the lanes that fill them.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use holdfast_engine::admin::{AdminError, AdminReply};
use holdfast_engine::backup::HoldOrder;
use holdfast_engine::{AdminRequestId, ConnId, Input, LinkId, Member, Output, PasswordToken};
use holdfast_journal::{Batch, EntryReader};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::clients::ClientHandle;
use crate::clock::{Clock, wall_ms};
use crate::inbox::{Arrival, Held, Inbox, Lanes};
use crate::journal_thread::JournalHandle;
use crate::logging::EventLog;
use crate::metrics::NodeMetrics;
use crate::passwords::Passwords;
use crate::peers::{LinkHandle, Peers};

/// Arrivals that one round takes from one lane.
const ROUND: usize = 256;
/// While more than this is on its way to the disk, clients are not read.
const CLIENTS_BACKLOG_BYTES: u64 = 32 << 20;
/// While more than this is on its way to the disk, peers are not read either.
const PEERS_BACKLOG_BYTES: u64 = 256 << 20;
/// How often the engine's counters are copied out.
const COUNTERS_EVERY: Duration = Duration::from_millis(250);
/// A round that takes this long is told of in the log: others begin to suspect a member that is silent for longer.
const SLOW_ROUND: Duration = Duration::from_millis(300);

/// How the core's work ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended {
    pub clean: bool,
    /// The cluster was recovered without this disk.
    pub left_behind: bool,
    pub reason: String,
}

/// What the core carries outputs out with.
pub struct Doors {
    pub inbox: Inbox,
    pub journal: JournalHandle,
    pub peers: Peers,
    pub passwords: Passwords,
    pub metrics: Arc<NodeMetrics>,
    /// The runtime of sockets.
    pub sockets: Handle,
    pub clock: Clock,
}

/// The member, its lanes and its doors.
pub struct Core<R: EntryReader> {
    member: Member<R>,
    doors: Doors,
    clients: HashMap<ConnId, Client>,
    links: HashMap<LinkId, Link>,
    admin: HashMap<AdminRequestId, oneshot::Sender<Result<AdminReply, AdminError>>>,
    next_admin: u64,
    /// What this round wants written.
    batches: Vec<Batch>,
    /// What this round wants done about held files, after all of its batches.
    holds: Vec<HoldOrder>,
    /// Destinations with bytes from this round.
    touched_clients: Vec<ConnId>,
    touched_links: Vec<LinkId>,
    counters_at: std::time::Instant,
    log: EventLog,
}

struct Client {
    handle: ClientHandle,
    pending: Vec<Bytes>,
}

struct Link {
    handle: LinkHandle,
    pending: Vec<Bytes>,
}

impl<R: EntryReader> Core<R> {
    /// A core that has done nothing yet.
    pub fn new(member: Member<R>, doors: Doors) -> Self {
        Self {
            member,
            doors,
            clients: HashMap::new(),
            links: HashMap::new(),
            admin: HashMap::new(),
            next_admin: 0,
            batches: Vec::new(),
            holds: Vec::new(),
            touched_clients: Vec::new(),
            touched_links: Vec::new(),
            counters_at: std::time::Instant::now(),
            log: EventLog::default(),
        }
    }

    /// Works until the member ends.
    pub fn run(mut self, mut lanes: Lanes) -> std::io::Result<Ended> {
        let waiter = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let mut arrivals = Vec::with_capacity(ROUND);
        loop {
            // The first round has no arrivals: it carries out what the member wants at its start.
            let began = std::time::Instant::now();
            let ended = self.round(&mut arrivals);
            self.doors.metrics.round_seconds.observe(began.elapsed().as_secs_f64());
            if let Some(ended) = ended {
                return Ok(ended);
            }
            waiter.block_on(self.wait(&mut lanes, &mut arrivals));
        }
    }

    /// Takes what waits in the lanes; waits for something to come, or for the member's deadline.
    async fn wait(&self, lanes: &mut Lanes, arrivals: &mut Vec<Held>) {
        let backlog = self.doors.journal.backlog_bytes();
        let (peers_open, clients_open) = (backlog < PEERS_BACKLOG_BYTES, backlog < CLIENTS_BACKLOG_BYTES);
        let patience = self.doors.clock.until(self.member.next_deadline()).min(COUNTERS_EVERY);
        let first = tokio::select! {
            biased;
            held = lanes.control.recv() => held,
            held = lanes.peers.recv(), if peers_open => held,
            held = lanes.clients.recv(), if clients_open => held,
            () = tokio::time::sleep(patience) => None,
        };
        arrivals.extend(first);
        take_waiting(&mut lanes.control, arrivals, ROUND);
        if peers_open {
            take_waiting(&mut lanes.peers, arrivals, ROUND);
        }
        if clients_open {
            take_waiting(&mut lanes.clients, arrivals, ROUND);
        }
    }

    fn round(&mut self, arrivals: &mut Vec<Held>) -> Option<Ended> {
        let (now, wall) = (self.doors.clock.now(), wall_ms());
        let (began, arrived) = (std::time::Instant::now(), arrivals.len());
        for held in arrivals.drain(..) {
            self.take(held.arrival, now, wall);
        }
        if now >= self.member.next_deadline() {
            self.member.tick(now, wall);
        }
        self.member.flush(now);
        let mut ended = None;
        while let Some(output) = self.member.poll() {
            match output {
                Output::Exit { clean, reason } => ended = Some(Ended { clean, left_behind: false, reason }),
                // Not even what was decided before in this round leaves.
                Output::LeftBehind { reason } => return Some(Ended { clean: false, left_behind: true, reason }),
                output => self.carry_out(output),
            }
        }
        self.hand_over();
        let took = began.elapsed();
        if took >= SLOW_ROUND {
            tracing::warn!(
                "this member stood still for {} ms, over {arrived} arrivals; if nothing large was asked of it, its \
                 container lacks CPU (see its throttling)",
                took.as_millis()
            );
        }
        self.count(now.0 / 1000);
        ended
    }

    /// Keeps the way back of a new connection, and gives an arrival to the member.
    fn take(&mut self, arrival: Arrival, now: holdfast_queue::time::Instant, wall_ms: u64) {
        let input = match arrival {
            Arrival::Written { reports, at } => {
                self.doors.metrics.journal_report_seconds.observe(at.elapsed().as_secs_f64());
                for report in reports {
                    self.member.handle(now, wall_ms, Input::Written(report));
                }
                return;
            }
            Arrival::Client { conn, peer, plain_port, handle } => {
                self.clients.insert(conn, Client { handle, pending: Vec::new() });
                Input::ClientConnected { conn, peer, tls_subject: None, plain_port }
            }
            Arrival::Link { link, origin, handle } => {
                self.links.insert(link, Link { handle, pending: Vec::new() });
                Input::LinkUp { link, origin }
            }
            Arrival::Admin { body, reply } => {
                self.next_admin += 1;
                let request = AdminRequestId(self.next_admin);
                self.admin.insert(request, reply);
                Input::Admin { request, body }
            }
            Arrival::Input(input) => {
                match &input {
                    Input::ClientClosed { conn } => drop(self.clients.remove(conn)),
                    Input::LinkDown { link, .. } => drop(self.links.remove(link)),
                    _ => {}
                }
                input
            }
        };
        self.member.handle(now, wall_ms, input);
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::ClientSend { conn, bytes } => {
                if let Some(client) = self.clients.get_mut(&conn) {
                    if client.pending.is_empty() {
                        self.touched_clients.push(conn);
                    }
                    client.pending.push(bytes);
                }
            }
            Output::ClientClose { conn } => {
                if let Some(client) = self.clients.get_mut(&conn) {
                    client.handle.out.write(std::mem::take(&mut client.pending));
                    client.handle.out.close();
                }
            }
            Output::ClientPause { conn, paused } => {
                if let Some(client) = self.clients.get(&conn) {
                    client.handle.paused.send_replace(paused);
                }
            }
            Output::LinkSend { link, bytes } => {
                if let Some(entry) = self.links.get_mut(&link) {
                    if entry.pending.is_empty() {
                        self.touched_links.push(link);
                    }
                    LinkHandle::frame(&mut entry.pending, bytes);
                }
            }
            Output::LinkClose { link, reason } => {
                if let Some(entry) = self.links.get(&link) {
                    tracing::info!("closing a link: {reason}");
                    entry.handle.cut();
                }
            }
            Output::Dial { address } => {
                let _entered = self.doors.sockets.enter();
                self.doors.peers.dial(address);
            }
            Output::Undial { address } => self.doors.peers.undial(&address),
            Output::Journal(batch) => self.batches.push(batch),
            Output::Hold(order) => self.holds.push(order),
            Output::CheckPassword { token, hash, password } => self.check_password(token, hash, password),
            Output::AdminReply { request, reply } => {
                if let Some(waiting) = self.admin.remove(&request) {
                    let _ = waiting.send(reply);
                }
            }
            Output::Event(event) => self.log.write(&event, std::time::Instant::now()),
            Output::Exit { .. } | Output::LeftBehind { .. } => unreachable!("handled by the round"),
        }
    }

    fn check_password(&self, token: PasswordToken, hash: String, password: Bytes) {
        let (passwords, control) = (self.doors.passwords.clone(), self.doors.inbox.control.clone());
        self.doors.sockets.spawn(async move {
            let ok = passwords.check(hash, password.to_vec()).await;
            let _ = control.send(Arrival::Input(Input::PasswordChecked { token, ok }), 0).await;
        });
    }

    /// Gives the journal and each socket what this round made for them.
    fn hand_over(&mut self) {
        if !self.batches.is_empty() {
            self.doors.journal.submit(std::mem::take(&mut self.batches));
        }
        for order in self.holds.drain(..) {
            self.doors.journal.hold(order);
        }
        for conn in self.touched_clients.drain(..) {
            if let Some(client) = self.clients.get_mut(&conn)
                && !client.pending.is_empty()
            {
                client.handle.out.write(std::mem::take(&mut client.pending));
            }
        }
        for link in self.touched_links.drain(..) {
            if let Some(entry) = self.links.get_mut(&link)
                && !entry.handle.send(std::mem::take(&mut entry.pending))
            {
                tracing::warn!("cut a link to another member, which does not take what it is sent");
            }
        }
    }

    fn count(&mut self, now_ms: u64) {
        let metrics = &self.doors.metrics;
        metrics.last_round_ms.store(now_ms, Ordering::Relaxed);
        if self.counters_at.elapsed() >= COUNTERS_EVERY {
            self.counters_at = std::time::Instant::now();
            metrics.ready.store(self.member.ready(), Ordering::Relaxed);
            *metrics.engine.lock().unwrap_or_else(PoisonError::into_inner) = self.member.metrics();
        }
    }
}

fn take_waiting(lane: &mut mpsc::Receiver<Held>, arrivals: &mut Vec<Held>, most: usize) {
    for _ in 0..most {
        match lane.try_recv() {
            Ok(held) => arrivals.push(held),
            Err(_) => return,
        }
    }
}
