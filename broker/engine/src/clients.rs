//! Client connections: bytes in and out of the session machines, log-in, and the ends of channels and connections.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use holdfast_journal::EntryReader;
use holdfast_queue::ids::{ChannelRef, ConsumerId, GroupId, MemberId, QueueId, SessionId};
use holdfast_session::{
    Call, ChannelId, Config, Connection, Credentials, LostReason, Mechanism, Refusal, Reply, Request,
};
use holdfast_wire::{ReplyCode, ShortStr};

use crate::consuming::Consumer;
use crate::in_flight::InFlight;
use crate::member::Member;
use crate::seam::{ConnId, Output, PasswordToken, Severity};

/// One open channel.
#[derive(Debug, Default)]
pub(crate) struct Channel {
    pub(crate) publishes: InFlight,
    pub(crate) settles: InFlight,
    pub(crate) consumers: BTreeMap<u32, Consumer>,
    /// Queues that this channel took messages from, and the groups that hold something of it.
    pub(crate) queues: BTreeMap<QueueId, GroupId>,
    /// Closing waits for what was published and settled before.
    closing: bool,
}

/// What a channel that failed had under way: a close of the client's that crossed ours waits for it.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) publishes: InFlight,
    pub(crate) settles: InFlight,
    closing: bool,
}

impl Failed {
    fn is_quiet(&self) -> bool {
        self.publishes.ended_below(self.publishes.next()) && self.settles.ended_below(self.settles.next())
    }
}

/// What waits until all that the channel settled before is durable (design §3.4).
#[derive(Debug)]
pub(crate) struct Delayed {
    channel: ChannelId,
    settles_below: u64,
    what: DelayedStep,
}

#[derive(Debug)]
enum DelayedStep {
    Reply(Reply),
    /// A call whose answer must not wait, since deliveries follow it.
    Call(Call),
}

/// One client connection.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) session: Connection,
    pub(crate) id: SessionId,
    pub(crate) user: String,
    pub(crate) vhost: String,
    pub(crate) channels: BTreeMap<ChannelId, Channel>,
    /// Channels that failed with something under way.
    pub(crate) failed: BTreeMap<ChannelId, Failed>,
    pub(crate) peer: String,
    plain_port: bool,
    login: Option<PasswordToken>,
    /// Bytes handed out, and bytes of them that the kernel has.
    sent: u64,
    written: u64,
    pub(crate) unconfirmed_bytes: usize,
    /// Publishes to a queue whose end is not known, those of channels that are gone included.
    pub(crate) unfinished: u64,
    pub(crate) paused: bool,
    pub(crate) reading: bool,
    /// It has published during an alarm.
    pub(crate) blocked: bool,
    /// It has published to transient queues of this member, which hold too much.
    pub(crate) waits_for: Option<MemberId>,
    /// Deliveries for it were left in the journal, since it had not taken those before.
    pub(crate) starved: bool,
    /// `basic.get`s that are being answered, and those that wait until the client has taken what it was sent.
    pub(crate) gets_under_way: usize,
    pub(crate) gets_waiting: VecDeque<(ChannelId, Call)>,
    /// Requests that wait for a fresh metadata lease, in order.
    pub(crate) held: VecDeque<Request>,
    pub(crate) delayed: Vec<Delayed>,
    /// A consumer here used its credit up.
    pub(crate) wants_credit: bool,
    /// `connection.close` waits for the channels.
    pub(crate) closing: bool,
    pub(crate) has_exclusive_queues: bool,
    /// A call that was delayed is being served: it is not delayed again.
    resuming: bool,
    /// The session's end was dealt with.
    pub(crate) ended: bool,
    close_sent: bool,
}

impl Client {
    /// True once all that belongs to the session was let go.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// True while the client can be told how a publish of this channel ended: it has closed neither that nor all.
    pub(crate) fn hears_of_publishes(&self, channel: ChannelId) -> bool {
        self.session.is_open() && self.channels.get(&channel).is_some_and(|open| !open.closing)
    }

    /// Bytes that the client's socket has not taken yet.
    pub(crate) fn backlog(&self) -> u64 {
        self.sent.saturating_sub(self.written) + self.session.queued_bytes() as u64
    }

    pub(crate) fn channel_ref(&self, channel: ChannelId) -> ChannelRef {
        ChannelRef { session: self.id, channel: channel.number, generation: channel.generation }
    }

    pub(crate) fn consumer_id(&self, channel: ChannelId, number: u32) -> ConsumerId {
        ConsumerId { channel: self.channel_ref(channel), number }
    }
}

impl<R: EntryReader> Member<R> {
    pub(crate) fn client_connected(
        &mut self,
        conn: ConnId,
        peer: String,
        tls_subject: Option<String>,
        plain_port: bool,
    ) {
        let external_user = tls_subject.map(|subject| ShortStr::truncated(&subject));
        let mut mechanisms = vec![Mechanism::Plain, Mechanism::AmqPlain];
        if external_user.is_some() {
            mechanisms.push(Mechanism::External);
        }
        let config = Config {
            channel_max: self.config.channel_max,
            frame_max: self.config.frame_max,
            heartbeat_s: self.config.heartbeat_s,
            message_max_bytes: self.config.max_message_bytes,
            mechanisms,
            cluster_name: self.cluster_name(),
            external_user,
            tag_seed: self.rng.next_u64(),
            ..Config::default()
        };
        let client = Client {
            session: Connection::new(config, self.now.0),
            id: SessionId { boot: self.boot, conn: conn.0 },
            user: String::new(),
            vhost: String::new(),
            channels: BTreeMap::new(),
            failed: BTreeMap::new(),
            peer,
            plain_port,
            login: None,
            sent: 0,
            written: 0,
            unconfirmed_bytes: 0,
            unfinished: 0,
            paused: false,
            reading: true,
            blocked: false,
            waits_for: None,
            starved: false,
            gets_under_way: 0,
            gets_waiting: VecDeque::new(),
            held: VecDeque::new(),
            delayed: Vec::new(),
            wants_credit: false,
            closing: false,
            has_exclusive_queues: false,
            resuming: false,
            ended: false,
            close_sent: false,
        };
        self.clients.insert(conn, client);
        self.touch(conn);
        if self.stopping() {
            self.close_client(conn, "broker shutting down");
        }
    }

    pub(crate) fn client_bytes(&mut self, conn: ConnId, bytes: Bytes) {
        let now = self.now.0;
        if let Some(client) = self.clients.get_mut(&conn) {
            client.session.handle_bytes(bytes, now);
            self.touch(conn);
        }
    }

    pub(crate) fn client_written(&mut self, conn: ConnId, total: u64) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.written = client.written.max(total);
            self.raise_credits(conn);
        }
    }

    pub(crate) fn client_closed(&mut self, conn: ConnId) {
        self.end_session(conn);
        self.clients.remove(&conn);
    }

    /// The connection has something to be pumped in this round.
    pub(crate) fn touch(&mut self, conn: ConnId) {
        self.touched.insert(conn);
    }

    /// Moves requests out of and bytes through all sessions that were touched; true if there were any.
    pub(crate) fn pump_clients(&mut self) -> bool {
        let touched = std::mem::take(&mut self.touched);
        let any = !touched.is_empty();
        for conn in touched {
            self.pump(conn);
        }
        any
    }

    fn pump(&mut self, conn: ConnId) {
        loop {
            let mut idle = true;
            while let Some(request) = self.clients.get_mut(&conn).and_then(|client| client.session.poll_request()) {
                self.request(conn, request);
                idle = false;
            }
            let now = self.now.0;
            let Some(client) = self.clients.get_mut(&conn) else { return };
            while let Some(bytes) = client.session.poll_transmit(now) {
                client.sent += bytes.len() as u64;
                self.outputs.push_back(Output::ClientSend { conn, bytes });
                idle = false;
            }
            if idle {
                break;
            }
        }
        self.regulate(conn);
        self.raise_credits(conn);
        self.go_on_with_gets(conn);
        let Some(client) = self.clients.get_mut(&conn) else { return };
        if client.session.is_closed() && !client.close_sent {
            client.close_sent = true;
            self.outputs.push_back(Output::ClientClose { conn });
            self.end_session(conn);
        }
    }

    /// Deals with one request of a session; it waits while the view of the metadata may be stale.
    fn request(&mut self, conn: ConnId, request: Request) {
        let fresh = self.lease_fresh() && self.registered();
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let needs_metadata = matches!(
            request,
            Request::Publish(_) | Request::Call { .. } | Request::Authenticate(_) | Request::OpenVhost { .. }
        );
        let in_order = !client.held.is_empty() && !matches!(request, Request::ConnectionLost { .. });
        if in_order || (needs_metadata && !fresh) {
            client.held.push_back(request);
            return;
        }
        self.serve(conn, request);
    }

    /// Goes on with what waited for the lease.
    pub(crate) fn release_held(&mut self) {
        if !self.lease_fresh() || !self.registered() {
            return;
        }
        let waiting: Vec<ConnId> =
            self.clients.iter().filter(|(_, client)| !client.held.is_empty()).map(|(conn, _)| *conn).collect();
        for conn in waiting {
            // One by one, since a publish that fails takes those with it that its channel sent later.
            while let Some(request) = self.clients.get_mut(&conn).and_then(|client| client.held.pop_front()) {
                self.serve(conn, request);
            }
            self.touch(conn);
        }
    }

    fn serve(&mut self, conn: ConnId, request: Request) {
        match request {
            Request::Authenticate(credentials) => self.authenticate(conn, credentials),
            Request::OpenVhost { vhost } => self.open_vhost(conn, vhost.as_str()),
            Request::UpdateSecret { .. } => {
                if let Some(client) = self.clients.get_mut(&conn) {
                    client.session.reply_secret_updated(Ok(()));
                }
            }
            Request::CloseConnection => {
                if let Some(client) = self.clients.get_mut(&conn) {
                    client.closing = true;
                }
                self.check_barriers(conn);
            }
            Request::ConnectionLost { why } => {
                let peer = self.clients.get(&conn).map(|client| client.peer.clone()).unwrap_or_default();
                let severity = if is_misuse(&why) { Severity::Warning } else { Severity::Info };
                self.event(severity, format!("the connection of {peer} is lost: {why}"));
                self.end_session(conn);
            }
            Request::OpenChannel { channel } => {
                if let Some(client) = self.clients.get_mut(&conn) {
                    client.channels.insert(channel, Channel::default());
                    self.metrics.channels_opened += 1;
                }
            }
            Request::CloseChannel { channel } => self.close_channel(conn, channel),
            Request::ChannelLost { channel } => self.channel_lost(conn, channel),
            Request::Publish(publish) => self.publish(conn, publish),
            Request::Settle(settle) => self.settle(conn, settle),
            Request::Call { channel, call } if self.defers_get(conn, &call) => {
                if let Some(client) = self.clients.get_mut(&conn) {
                    client.gets_waiting.push_back((channel, call));
                }
            }
            Request::Call { channel, call } => self.call(conn, channel, call),
        }
    }

    fn close_channel(&mut self, conn: ConnId, channel: ChannelId) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        match (client.channels.get_mut(&channel), client.failed.get_mut(&channel)) {
            (Some(open), _) => open.closing = true,
            (None, Some(failed)) => failed.closing = true,
            (None, None) => return self.reply_now(conn, channel, Reply::Done),
        }
        self.check_barriers(conn);
    }

    /// An error ended the channel: what it holds goes back, what it published and settled before goes on.
    fn channel_lost(&mut self, conn: ConnId, channel: ChannelId) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        if let Some(open) = client.channels.get_mut(&channel) {
            let (publishes, settles) = (std::mem::take(&mut open.publishes), std::mem::take(&mut open.settles));
            let failed = Failed { publishes, settles, closing: open.closing };
            if !failed.is_quiet() {
                client.failed.insert(channel, failed);
            }
        }
        self.end_channel(conn, channel);
    }

    fn authenticate(&mut self, conn: ConnId, credentials: Credentials) {
        let name = credentials.user.as_str().to_owned();
        let hash = self.metadata().and_then(|meta| meta.user(&name)).map(|user| user.hash.clone());
        let plain_port = self.clients.get(&conn).is_some_and(|client| client.plain_port);
        let external = credentials.mechanism == Mechanism::External && !plain_port;
        if let Some(client) = self.clients.get_mut(&conn) {
            client.user = name;
        }
        let Some(hash) = hash else { return self.logged_in(conn, false) };
        if external {
            return self.logged_in(conn, true);
        }
        if credentials.mechanism == Mechanism::External || credentials.mechanism == Mechanism::Anonymous {
            return self.logged_in(conn, false);
        }
        self.next_password += 1;
        let token = PasswordToken(self.next_password);
        if let Some(client) = self.clients.get_mut(&conn) {
            client.login = Some(token);
        }
        self.logins.insert(token, conn);
        self.outputs.push_back(Output::CheckPassword { token, hash, password: credentials.password });
    }

    pub(crate) fn password_checked(&mut self, token: PasswordToken, ok: bool) {
        let Some(conn) = self.logins.remove(&token) else { return };
        if self.clients.get(&conn).is_some_and(|client| client.login == Some(token)) {
            self.logged_in(conn, ok);
        }
    }

    fn logged_in(&mut self, conn: ConnId, ok: bool) {
        let now = self.now.0;
        let Some(client) = self.clients.get_mut(&conn) else { return };
        client.login = None;
        client.session.reply_authenticated(ok, now);
        if !ok {
            let text = format!("refused the log-in of user '{}' from {}", client.user, client.peer);
            self.event(Severity::Warning, text);
        }
        self.touch(conn);
    }

    fn open_vhost(&mut self, conn: ConnId, vhost: &str) {
        let now = self.now.0;
        let user = self.clients.get(&conn).map(|client| client.user.clone()).unwrap_or_default();
        let result = match self.metadata() {
            Some(meta) if meta.vhost(vhost).is_none() => Err(format!("vhost '{vhost}' not found")),
            Some(meta) if !meta.may_enter(&user, vhost) => {
                Err(format!("access to vhost '{vhost}' refused for user '{user}'"))
            }
            Some(_) => Ok(()),
            None => Err("this member is not part of a cluster yet".to_owned()),
        };
        let Some(client) = self.clients.get_mut(&conn) else { return };
        client.vhost = vhost.to_owned();
        client.session.reply_vhost(result.map_err(|text| Refusal::new(ReplyCode::NotAllowed, text)), now);
        self.touch(conn);
    }

    /// Answers a call once what the channel settled before it is durable.
    pub(crate) fn reply(&mut self, conn: ConnId, channel: ChannelId, reply: Reply) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let Some(open) = client.channels.get(&channel) else { return };
        let settles_below = open.settles.next();
        if open.settles.ended_below(settles_below) {
            return self.reply_now(conn, channel, reply);
        }
        client.delayed.push(Delayed { channel, settles_below, what: DelayedStep::Reply(reply) });
    }

    /// Keeps a call until what the channel settled before is durable. False if it may go on at once.
    pub(crate) fn delay_call(&mut self, conn: ConnId, channel: ChannelId, call: &Call) -> bool {
        let Some(client) = self.clients.get_mut(&conn) else { return false };
        let Some(open) = client.channels.get(&channel) else { return false };
        let settles_below = open.settles.next();
        if open.settles.ended_below(settles_below) || client.resuming {
            return false;
        }
        client.delayed.push(Delayed { channel, settles_below, what: DelayedStep::Call(call.clone()) });
        true
    }

    pub(crate) fn reply_now(&mut self, conn: ConnId, channel: ChannelId, reply: Reply) {
        let now = self.now.0;
        if let Some(client) = self.clients.get_mut(&conn) {
            client.session.reply(channel, reply, now);
            self.touch(conn);
        }
    }

    /// Lets go what waited for publishes and settlements of this connection. A synchronous reply proves that settlements
    /// before it are on a majority of disks. A close-ok proves that everything published before is on as many disks as
    /// its queue asks for (`min-in-sync-replicas`, a majority at least), unless it was refused with a nack, or with the end
    /// of its channel, before the close-ok: it waits without a limit for those that no nack can be sent for.
    pub(crate) fn check_barriers(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let mut ready = Vec::new();
        let channels = &client.channels;
        client.delayed.retain_mut(|delayed| {
            let waits = channels
                .get(&delayed.channel)
                .is_some_and(|channel| !channel.settles.ended_below(delayed.settles_below));
            if !waits {
                let what = std::mem::replace(&mut delayed.what, DelayedStep::Reply(Reply::Done));
                ready.push((delayed.channel, what));
            }
            waits
        });
        let quiet = |channel: &Channel| {
            channel.publishes.ended_below(channel.publishes.next())
                && channel.settles.ended_below(channel.settles.next())
        };
        let failed: Vec<ChannelId> = client.failed.extract_if(.., |_, one| one.is_quiet()).map(|(id, _)| id).collect();
        let closed: Vec<ChannelId> = client
            .channels
            .iter()
            .filter(|(_, channel)| channel.closing && quiet(channel))
            .map(|(id, _)| *id)
            .collect();
        let settled = client.channels.values().all(quiet);
        let all_quiet = client.closing && settled && client.failed.is_empty() && client.unfinished == 0;
        for (channel, what) in ready {
            match what {
                DelayedStep::Reply(reply) => self.reply_now(conn, channel, reply),
                DelayedStep::Call(call) => self.resume_call(conn, channel, call),
            }
        }
        for channel in closed {
            self.end_channel(conn, channel);
            self.reply_now(conn, channel, Reply::Done);
        }
        for channel in failed {
            self.reply_now(conn, channel, Reply::Done);
        }
        if all_quiet {
            self.end_session(conn);
            if let Some(client) = self.clients.get_mut(&conn) {
                client.session.reply_connection_closed();
                self.touch(conn);
            }
        }
    }

    fn resume_call(&mut self, conn: ConnId, channel: ChannelId, call: Call) {
        self.set_resuming(conn, true);
        self.call(conn, channel, call);
        self.set_resuming(conn, false);
    }

    fn set_resuming(&mut self, conn: ConnId, resuming: bool) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.resuming = resuming;
        }
    }

    /// Heartbeats and deadlines of the sessions; they are looked at ten times a second.
    pub(crate) fn tick_clients(&mut self) {
        let now = self.now.0;
        for (conn, client) in &mut self.clients {
            if client.session.poll_timeout().is_some_and(|due| due <= now) {
                if matches!(client.held.front(), Some(Request::Authenticate(_) | Request::OpenVhost { .. })) {
                    let text = "this member is not in touch with a majority of the cluster and cannot check the log-in; \
                                connect to another member, or again later";
                    client.session.close(Refusal::new(ReplyCode::ConnectionForced, text), now);
                }
                client.session.handle_timeout(now);
                self.touched.insert(*conn);
            }
        }
    }
}

/// Whether a connection ended by what its client sent: another protocol, garbage, a virtual host that is not there.
fn is_misuse(why: &LostReason) -> bool {
    match why {
        LostReason::ProtocolHeader { .. } => true,
        LostReason::Error(error) => error.code != ReplyCode::ConnectionForced,
        LostReason::HandshakeTimeout | LostReason::Heartbeat | LostReason::LoginRefused => false,
    }
}
