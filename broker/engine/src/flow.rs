//! Byte budgets of a member, shared by all its connections (design §3.2), and what happens beyond them: publishers are not
//! read from for a while, deliveries wait in the journal until the client takes what it has.
//!
//! The sums are taken at each tick and estimated upwards in between, so a budget may be passed by what 50 ms bring, and by
//! one read of each connection.

use holdfast_journal::EntryReader;
use holdfast_queue::ids::MemberId;
use holdfast_session::{Call, Refusal};
use holdfast_wire::ReplyCode;

use crate::clients::Client;
use crate::member::Member;
use crate::seam::{ConnId, Output, Severity};

/// Bytes published on a connection and not confirmed at which reading stops, and at which it goes on.
const PAUSE_AT_BYTES: usize = 16 << 20;
const RESUME_AT_BYTES: usize = 8 << 20;
/// Contents that one round sends to the homes on one other member; of what comes beyond they are only told.
const PUSHED_BYTES: usize = 16 << 20;

/// `basic.get`s of one connection that are answered at a time, whatever the number of its channels.
const GETS_AT_ONCE: usize = 16;

/// What all connections of a member may hold together, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Messages that clients published here and that their queues have not taken in yet. Beyond it no connection that
    /// has some of them is read from, until half is gone.
    pub unconfirmed_bytes: usize,
    /// Bodies of which a part has come. Beyond it the connection that holds most is closed: to wait could be for ever.
    pub assembling_bytes: usize,
    /// Deliveries that clients here have not taken from their sockets. Beyond it a client gets more only when it has
    /// taken all.
    pub backlog_bytes: u64,
    /// The same for one client: what comes beyond stays in the journal until it has taken most of what it has.
    pub client_backlog_bytes: u64,
    /// Contents of this member's transient queues. Beyond it whoever publishes to them is not read from, until a quarter
    /// is gone.
    pub transient_bytes: usize,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            unconfirmed_bytes: 256 << 20,
            assembling_bytes: 512 << 20,
            backlog_bytes: 256 << 20,
            client_backlog_bytes: 8 << 20,
            transient_bytes: 256 << 20,
        }
    }
}

impl Budgets {
    /// Budgets for a process that may use so much memory: together about half of it, and never more than the default.
    pub fn within(memory_bytes: u64) -> Self {
        let eighth = usize::try_from(memory_bytes / 8).unwrap_or(usize::MAX).max(4 << 20);
        let most = Self::default();
        Self {
            unconfirmed_bytes: most.unconfirmed_bytes.min(eighth),
            assembling_bytes: most.assembling_bytes.min(eighth),
            backlog_bytes: most.backlog_bytes.min(eighth as u64),
            client_backlog_bytes: most.client_backlog_bytes,
            transient_bytes: most.transient_bytes.min(eighth),
        }
    }
}

/// The sums, as of the last tick and a little more.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    pub(crate) unconfirmed_bytes: usize,
    pub(crate) assembling_bytes: usize,
    pub(crate) backlog_bytes: u64,
    /// Payloads that hosts could not take yet.
    pub(crate) refused_bytes: usize,
    /// Publishers wait for the member's budget.
    over: bool,
    /// Contents sent in this round, by member.
    pushed: Vec<(MemberId, usize)>,
}

impl Flow {
    /// True when contents of `bytes` for homes on `member` may still leave in this round.
    pub(crate) fn may_push(&mut self, member: MemberId, bytes: usize) -> bool {
        match self.pushed.iter_mut().find(|(to, _)| *to == member) {
            Some((_, pushed)) => {
                *pushed = pushed.saturating_add(bytes);
                *pushed <= PUSHED_BYTES
            }
            None => {
                self.pushed.push((member, bytes));
                true
            }
        }
    }

    /// The round is over.
    pub(crate) fn end_round(&mut self) {
        self.pushed.clear();
    }
}

impl<R: EntryReader> Member<R> {
    /// Takes the sums anew, and lets go or stops whom they concern.
    pub(crate) fn tick_flow(&mut self) {
        let budgets = self.config.budgets;
        self.flow.unconfirmed_bytes = self.retained_bytes();
        self.flow.assembling_bytes = self.clients.values().map(|client| client.session.held_bytes()).sum();
        self.flow.backlog_bytes = self.clients.values().map(|client| client.backlog()).sum();
        self.flow.refused_bytes = self.leaderships.refused_bytes();
        if self.flow.over && self.flow.unconfirmed_bytes <= budgets.unconfirmed_bytes / 2 {
            self.flow.over = false;
        }
        let full: Vec<MemberId> = self.full_transient_hosts();
        for (conn, client) in &mut self.clients {
            if client.waits_for.is_some_and(|host| !full.contains(&host)) {
                client.waits_for = None;
            }
            if client.paused || client.starved || !client.gets_waiting.is_empty() {
                self.touched.insert(*conn);
            }
        }
        if self.flow.assembling_bytes > budgets.assembling_bytes {
            self.close_largest_upload();
        }
    }

    /// Members here or heard whose transient queues are over their budget.
    fn full_transient_hosts(&self) -> Vec<MemberId> {
        let peers = self.peers.iter().filter(|(_, peer)| peer.transient_full && !peer.suspected);
        let own = self.transient_full().then(|| self.me());
        peers.map(|(member, _)| member).chain(own).collect()
    }

    fn close_largest_upload(&mut self) {
        let largest = self.clients.iter().max_by_key(|(_, client)| client.session.held_bytes());
        let Some((conn, client)) = largest.map(|(conn, client)| (*conn, client)) else { return };
        let (held, peer) = (client.session.held_bytes() >> 20, client.peer.clone());
        let text = format!(
            "closing the connection of {peer}: it has sent {held} MiB of messages that are not complete, and all \
             connections together have sent more than the budget for such"
        );
        self.event(Severity::Warning, text);
        let now = self.now.0;
        if let Some(client) = self.clients.get_mut(&conn) {
            let text =
                "too much memory is taken by messages that are not complete; send smaller ones, or fewer at a time";
            client.session.close(Refusal::new(ReplyCode::ResourceError, text), now);
            self.touch(conn);
        }
    }

    /// A message of so many bytes was taken in for these queues' groups.
    pub(crate) fn count_published(&mut self, bytes: usize) {
        self.flow.unconfirmed_bytes = self.flow.unconfirmed_bytes.saturating_add(bytes);
        if self.flow.unconfirmed_bytes >= self.config.budgets.unconfirmed_bytes && !self.flow.over {
            self.flow.over = true;
            let publishers = self.clients.iter().filter(|(_, client)| client.unconfirmed_bytes > 0);
            self.touched.extend(publishers.map(|(conn, _)| *conn));
        }
    }

    /// A message went to transient queues of this member: its connection waits while they hold too much.
    pub(crate) fn published_to_transient(&mut self, conn: ConnId, host: MemberId) {
        let full = match host == self.me() {
            true => self.transient_full(),
            false => self.peers.get(host).is_some_and(|peer| peer.transient_full),
        };
        if full && let Some(client) = self.clients.get_mut(&conn) {
            client.waits_for = Some(host);
        }
    }

    /// Stops or resumes reading from the client's socket.
    pub(crate) fn regulate(&mut self, conn: ConnId) {
        let now = self.now.0;
        let over = self.flow.over;
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let waits = client.blocked || client.waits_for.is_some() || !client.held.is_empty();
        let much = waits || client.unconfirmed_bytes >= PAUSE_AT_BYTES || (over && client.unconfirmed_bytes > 0);
        let little = !waits && client.unconfirmed_bytes <= RESUME_AT_BYTES && !(over && client.unconfirmed_bytes > 0);
        if (much && !client.paused) || (little && client.paused) {
            client.paused = much;
            client.session.set_reading_paused(much, now);
            self.touched.insert(conn);
        }
        let reading = client.session.wants_input();
        if reading != client.reading {
            client.reading = reading;
            self.outputs.push_back(Output::ClientPause { conn, paused: !reading });
        }
    }

    /// True while deliveries for this client may be kept in memory. One that has taken all it was sent may always have
    /// one more message.
    pub(crate) fn wants_deliveries(&self, conn: ConnId) -> bool {
        let Some(client) = self.clients.get(&conn) else { return false };
        let backlog = client.backlog();
        let budgets = &self.config.budgets;
        backlog == 0 || (backlog < budgets.client_backlog_bytes && self.flow.backlog_bytes < budgets.backlog_bytes)
    }

    /// True when a `basic.get` must wait, since too many are under way or the client has not taken what it was sent.
    pub(crate) fn defers_get(&self, conn: ConnId, call: &Call) -> bool {
        let full = |client: &Client| client.gets_under_way >= GETS_AT_ONCE || !client.gets_waiting.is_empty();
        matches!(call, Call::Get { .. }) && (self.clients.get(&conn).is_some_and(full) || !self.wants_deliveries(conn))
    }

    /// A `basic.get` was answered.
    pub(crate) fn get_ended(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.gets_under_way = client.gets_under_way.saturating_sub(1);
            self.touched.insert(conn);
        }
    }

    /// Goes on with those that wait, as far as there is room.
    pub(crate) fn go_on_with_gets(&mut self, conn: ConnId) {
        while self.lease_fresh() && self.registered() && self.wants_deliveries(conn) {
            let Some(client) = self.clients.get_mut(&conn).filter(|one| one.gets_under_way < GETS_AT_ONCE) else {
                return;
            };
            let Some((channel, call)) = client.gets_waiting.pop_front() else { return };
            self.call(conn, channel, call);
        }
    }

    /// A delivery was not taken in: it is asked for when the client has room.
    pub(crate) fn starve(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.starved = true;
        }
    }
}
