//! A tiny cluster with an instant disk and network and a clock of its own, and an AMQP client that speaks real bytes.
//! Faults are the simulator's business; here a member can only be killed.

#![allow(dead_code)]

mod disk;
mod faults;
mod methods;

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use holdfast_engine::admin::{AdminAction, AdminError, AdminReply, AdminRequest, ExpectedMember, UserCredentials};
use holdfast_engine::backup::HoldOrder;
use holdfast_engine::{AdminRequestId, Budgets, ConnId, FRAME_ROOM_BYTES, Input, LinkId, LinkOrigin, Member, Output};
use holdfast_journal::Recovered;
use holdfast_queue::ids::GroupId;
use holdfast_queue::time::{Duration, Instant};
use holdfast_wire::{ContentHeader, FieldTable, Frame, FrameDecoder, FrameKind, LongStr, Method, ShortStr};

pub use disk::MemoryDisk;
pub use methods::{consume, declare, publish_frames};

struct Running {
    member: Member<MemoryDisk>,
    dialled: Vec<String>,
}

/// Members, links and clients.
pub struct Cluster {
    pub now: Instant,
    members: Vec<Option<Running>>,
    budgets: Budgets,
    /// Disks outlive their members.
    disks: Vec<MemoryDisk>,
    starts: u64,
    /// Both ends of each link: (member, link) on one side and on the other.
    links: BTreeMap<(usize, LinkId), (usize, LinkId)>,
    /// Pairs of members that cannot reach each other.
    cuts: Vec<(usize, usize)>,
    next_link: u64,
    next_conn: u64,
    inputs: VecDeque<(usize, Input)>,
    to_clients: BTreeMap<(usize, ConnId), Vec<Bytes>>,
    closed: BTreeMap<(usize, ConnId), ()>,
    written: BTreeMap<(usize, ConnId), u64>,
    replies: BTreeMap<AdminRequestId, Result<AdminReply, AdminError>>,
    next_admin: u64,
    /// Given at bootstrap.
    pub default_min_in_sync_replicas: u8,
    /// Frames from one member to another of so many bytes or more are lost.
    pub losses: Vec<(usize, usize, usize)>,
    /// Frames from one member to another wait, as in a connection that stands and carries nothing…
    pub stopped: Vec<(usize, usize)>,
    /// … here, in order.
    waiting: Vec<((usize, usize), Input)>,
    /// The largest body that clients publish: no frame may hold more than it and [`FRAME_ROOM_BYTES`].
    pub largest_body: usize,
    /// Members whose disks cannot hold files for a backup.
    pub unable_to_hold: Vec<usize>,
    /// What members have stored or released for backups.
    pub holds: Vec<(usize, HoldOrder)>,
    pub events: Vec<String>,
    pub exits: Vec<(usize, bool, String)>,
    /// Clients whose sockets take nothing.
    pub stalled: Vec<ConnId>,
    /// Clients that are not to be read from; what they send waits.
    pub paused: std::collections::BTreeSet<(usize, ConnId)>,
    /// What they sent meanwhile.
    unread: BTreeMap<(usize, ConnId), VecDeque<Bytes>>,
    /// Real time spent inside each of the first three members.
    pub spent: [std::time::Duration; 3],
}

fn address(member: usize) -> String {
    format!("m{member}:5680")
}

impl Cluster {
    /// Blank members.
    pub fn blank(count: usize) -> Cluster {
        Cluster::blank_with(count, Budgets::default())
    }

    /// Blank members with these budgets.
    pub fn blank_with(count: usize, budgets: Budgets) -> Cluster {
        let mut cluster = Cluster {
            now: Instant(1_000_000),
            members: Vec::new(),
            disks: Vec::new(),
            starts: 0,
            links: BTreeMap::new(),
            cuts: Vec::new(),
            next_link: 0,
            next_conn: 0,
            inputs: VecDeque::new(),
            to_clients: BTreeMap::new(),
            closed: BTreeMap::new(),
            written: BTreeMap::new(),
            replies: BTreeMap::new(),
            next_admin: 0,
            default_min_in_sync_replicas: 0,
            budgets,
            losses: Vec::new(),
            stopped: Vec::new(),
            waiting: Vec::new(),
            largest_body: 64 << 10,
            unable_to_hold: Vec::new(),
            holds: Vec::new(),
            events: Vec::new(),
            exits: Vec::new(),
            stalled: Vec::new(),
            paused: Default::default(),
            unread: BTreeMap::new(),
            spent: Default::default(),
        };
        for at in 0..count {
            let disk = MemoryDisk::default();
            let member =
                faults::start(at, 100 + at as u64, Recovered::default(), &disk, cluster.now, budgets).expect("blank");
            cluster.disks.push(disk);
            cluster.members.push(Some(Running { member, dialled: Vec::new() }));
        }
        cluster
    }

    /// Members of one cluster, ready, with the user `guest`, whose password is `guest`.
    pub fn ready(count: usize) -> Cluster {
        Cluster::ready_with(count, Budgets::default())
    }

    /// The same, with these budgets.
    pub fn ready_with(count: usize, budgets: Budgets) -> Cluster {
        let mut cluster = Cluster::blank_with(count, budgets);
        let reply = cluster.bootstrap("c1");
        assert_eq!(reply, Ok(AdminReply::Done));
        cluster.wait("all members are ready", |cluster| (0..count).all(|at| cluster.member(at).ready()));
        cluster
    }

    pub fn bootstrap(&mut self, cluster_id: &str) -> Result<AdminReply, AdminError> {
        let members = (0..self.members.len())
            .map(|at| ExpectedMember { name: format!("m{at}"), address: address(at), zone: format!("zone-{at}") })
            .collect();
        let user = UserCredentials { name: "guest".into(), password_hash: "hash of guest".into() };
        let action = AdminAction::Bootstrap {
            cluster_id: cluster_id.into(),
            members,
            user,
            default_replication_factor: self.members.len() as u8,
            default_min_in_sync_replicas: self.default_min_in_sync_replicas,
        };
        self.admin(0, action)
    }

    pub fn admin(&mut self, member: usize, action: AdminAction) -> Result<AdminReply, AdminError> {
        self.admin_with(member, None, action)
    }

    pub fn admin_with(
        &mut self,
        member: usize,
        token: Option<u64>,
        action: AdminAction,
    ) -> Result<AdminReply, AdminError> {
        self.next_admin += 1;
        let request = AdminRequestId(self.next_admin);
        self.inputs.push_back((member, Input::Admin { request, body: AdminRequest { token, action } }));
        self.wait("the admin request is answered", |cluster| cluster.replies.contains_key(&request));
        self.replies.remove(&request).expect("just seen")
    }

    /// Whether the request was answered.
    pub fn answered(&self, request: AdminRequestId) -> bool {
        self.replies.contains_key(&request)
    }

    /// Takes the answer, which has come.
    pub fn answer(&mut self, request: AdminRequestId) -> Result<AdminReply, AdminError> {
        self.replies.remove(&request).expect("it was answered")
    }

    pub fn member(&self, at: usize) -> &Member<MemoryDisk> {
        &self.members[at].as_ref().expect("alive").member
    }

    pub fn is_alive(&self, at: usize) -> bool {
        self.members[at].is_some()
    }

    pub fn input(&mut self, at: usize, input: Input) {
        self.inputs.push_back((at, input));
    }

    /// The member that leads a group, and is alive.
    pub fn leader_of(&self, group: GroupId) -> Option<usize> {
        (0..self.members.len()).find(|at| {
            let alive = self.members[*at].as_ref();
            alive.and_then(|running| running.member.host()).is_some_and(|host| host.is_leading(group))
        })
    }

    fn spend(&mut self, at: usize, time: std::time::Duration) {
        if let Some(spent) = self.spent.get_mut(at) {
            *spent += time;
        }
    }

    /// Lets everything happen that can happen now.
    pub fn settle(&mut self) {
        loop {
            let mut busy = false;
            while let Some((at, input)) = self.inputs.pop_front() {
                busy = true;
                let now = self.now;
                if let Some(running) = self.members[at].as_mut() {
                    let begun = std::time::Instant::now();
                    running.member.handle(now, now.0 / 1000, input);
                    self.spend(at, begun.elapsed());
                }
            }
            for at in 0..self.members.len() {
                let now = self.now;
                let Some(running) = self.members[at].as_mut() else { continue };
                let begun = std::time::Instant::now();
                running.member.flush(now);
                self.spend(at, begun.elapsed());
                while let Some(output) = self.members[at].as_mut().and_then(|running| running.member.poll()) {
                    busy = true;
                    self.carry_out(at, output);
                }
            }
            if !busy {
                return;
            }
        }
    }

    fn carry_out(&mut self, at: usize, output: Output) {
        match output {
            Output::Journal(batch) => {
                if self.disks[at].is_stalled() {
                    self.disks[at].hold(batch);
                } else {
                    self.inputs.extend(self.disks[at].write(batch).map(|input| (at, input)));
                }
            }
            Output::Dial { address } => {
                self.members[at].as_mut().expect("it spoke").dialled.push(address);
                self.dial(at);
            }
            Output::Undial { address } => {
                self.members[at].as_mut().expect("it spoke").dialled.retain(|other| *other != address);
            }
            Output::LinkSend { link, bytes } => {
                let (len, limit) = (bytes.len(), self.largest_body + FRAME_ROOM_BYTES);
                assert!(len <= limit, "m{at} sends a frame of {len} bytes: the node would drop it");
                if let Some((to, link)) = self.links.get(&(at, link))
                    && !self.losses.iter().any(|(from, other, least)| (*from, *other) == (at, *to) && len >= *least)
                {
                    let input = Input::LinkFrame { link: *link, bytes };
                    match self.stopped.contains(&(at, *to)) {
                        true => self.waiting.push(((at, *to), input)),
                        false => self.inputs.push_back((*to, input)),
                    }
                }
            }
            Output::LinkClose { link, .. } => {
                if let Some((to, far)) = self.links.remove(&(at, link)) {
                    self.links.remove(&(to, far));
                    self.inputs.push_back((to, Input::LinkDown { link: far, reason: "closed".into() }));
                }
            }
            Output::ClientSend { conn, bytes } => {
                let total = self.written.entry((at, conn)).or_default();
                *total += bytes.len() as u64;
                if !self.stalled.contains(&conn) {
                    self.inputs.push_back((at, Input::ClientWritten { conn, total: *total }));
                }
                self.to_clients.entry((at, conn)).or_default().push(bytes);
            }
            Output::ClientClose { conn } => {
                self.closed.insert((at, conn), ());
                self.inputs.push_back((at, Input::ClientClosed { conn }));
            }
            Output::ClientPause { conn, paused } => {
                if paused {
                    self.paused.insert((at, conn));
                } else {
                    self.paused.remove(&(at, conn));
                    for bytes in self.unread.remove(&(at, conn)).unwrap_or_default() {
                        self.inputs.push_back((at, Input::ClientBytes { conn, bytes }));
                    }
                }
            }
            Output::Hold(order) => self.hold(at, order),
            Output::CheckPassword { token, hash, password } => {
                let ok = hash.as_bytes() == [b"hash of ", password.as_ref()].concat();
                self.inputs.push_back((at, Input::PasswordChecked { token, ok }));
            }
            Output::AdminReply { request, reply } => {
                self.replies.insert(request, reply);
            }
            Output::Event(event) => self.events.push(format!("{} m{at}: {}", self.now.0 / 1000, event.text)),
            Output::Exit { clean, reason } => self.exits.push((at, clean, reason)),
            Output::LeftBehind { reason } => self.exits.push((at, false, reason)),
        }
    }

    fn dial(&mut self, at: usize) {
        let wanted = self.members[at].as_ref().map(|running| running.dialled.clone()).unwrap_or_default();
        for wanted in wanted {
            let Some(to) = (0..self.members.len()).find(|to| address(*to) == wanted) else { continue };
            if self.members[to].is_none()
                || self.cuts.contains(&(at, to))
                || self.links.iter().any(|((a, l), (b, _))| *a == at && *b == to && l.0 % 2 == 1)
            {
                continue;
            }
            // Odd ends dialled, even ends accepted.
            let (near, far) = (LinkId(self.next_link * 2 + 1), LinkId(self.next_link * 2 + 2));
            self.next_link += 1;
            self.links.insert((at, near), (to, far));
            self.links.insert((to, far), (at, near));
            self.inputs.push_back((at, Input::LinkUp { link: near, origin: LinkOrigin::Dialled { address: wanted } }));
            self.inputs
                .push_back((to, Input::LinkUp { link: far, origin: LinkOrigin::Accepted { from: address(at) } }));
        }
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        while self.now < end {
            self.now = self.now + Duration::from_millis(10);
            for at in 0..self.members.len() {
                let now = self.now;
                if let Some(running) = self.members[at].as_mut() {
                    running.member.tick(now, now.0 / 1000);
                }
            }
            self.settle();
        }
    }

    /// Lets time pass until something is so; panics after 30 s.
    pub fn wait(&mut self, what: &str, done: impl Fn(&Cluster) -> bool) {
        self.settle();
        for _ in 0..3_000 {
            if done(self) {
                return;
            }
            self.run(Duration::from_millis(10));
        }
        panic!("{what}: not within 30 s; events: {:#?}", self.events);
    }

    /// A client that is logged in, with channel 1 open.
    pub fn client(&mut self, at: usize) -> Client {
        let mut client = self.connect(at);
        client.log_in(self, "guest", "guest", "/");
        client.open_channel(self, 1);
        client
    }

    pub fn connect(&mut self, at: usize) -> Client {
        self.next_conn += 1;
        let conn = ConnId(self.next_conn);
        let (peer, plain_port) = (format!("client {}", conn.0), true);
        self.inputs.push_back((at, Input::ClientConnected { conn, peer, tls_subject: None, plain_port }));
        Client {
            at,
            conn,
            decoder: FrameDecoder::new(),
            frames: VecDeque::new(),
            confirmed: 0,
            heartbeat_s: 0,
            single: Default::default(),
        }
    }
}

/// A message as a client gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    pub tag: u64,
    pub redelivered: bool,
    pub body: String,
}

/// An AMQP client.
pub struct Client {
    pub at: usize,
    pub conn: ConnId,
    decoder: FrameDecoder,
    frames: VecDeque<Frame>,
    /// Asked for at log-in; 0 is none.
    pub heartbeat_s: u16,
    /// All up to this one are confirmed, and these.
    confirmed: u64,
    single: std::collections::BTreeSet<u64>,
}

pub fn short(text: &str) -> ShortStr {
    ShortStr::truncated(text)
}

impl Client {
    pub fn send_bytes(&mut self, cluster: &mut Cluster, bytes: Bytes) {
        let end = (self.at, self.conn);
        if cluster.paused.contains(&end) {
            cluster.unread.entry(end).or_default().push_back(bytes);
        } else {
            cluster.inputs.push_back((self.at, Input::ClientBytes { conn: self.conn, bytes }));
        }
    }

    pub fn send(&mut self, cluster: &mut Cluster, channel: u16, method: Method) {
        self.send_bytes(cluster, method.to_frame(channel));
    }

    /// The next frame that is here already.
    fn frame(&mut self, cluster: &mut Cluster) -> Option<Frame> {
        for bytes in cluster.to_clients.remove(&(self.at, self.conn)).unwrap_or_default() {
            self.decoder.feed(bytes);
        }
        while let Some(frame) = self.decoder.next_frame(1 << 20).expect("whole frames") {
            if frame.kind != FrameKind::Heartbeat {
                self.frames.push_back(frame);
            }
        }
        self.frames.pop_front()
    }

    /// The next method, waited for.
    pub fn method(&mut self, cluster: &mut Cluster) -> (u16, Method) {
        cluster.settle();
        for _ in 0..1_500 {
            if let Some(frame) = self.frame(cluster) {
                assert_eq!(frame.kind, FrameKind::Method, "a content frame where a method was due");
                return (frame.channel, Method::decode(frame.payload).expect("well formed"));
            }
            cluster.run(Duration::from_millis(10));
        }
        panic!("no method within 15 s; events: {:#?}", cluster.events);
    }

    /// The next method if one comes within this time.
    pub fn method_within(&mut self, cluster: &mut Cluster, time: Duration) -> Option<Method> {
        cluster.run(time);
        let frame = self.frame(cluster)?;
        Some(Method::decode(frame.payload).expect("well formed"))
    }

    pub fn call(&mut self, cluster: &mut Cluster, channel: u16, method: Method) -> Method {
        self.send(cluster, channel, method);
        self.method(cluster).1
    }

    fn content(&mut self, cluster: &mut Cluster) -> String {
        let header = self.frame(cluster).expect("a header follows");
        let header = ContentHeader::decode(header.payload).expect("a content header");
        let mut body = Vec::new();
        while (body.len() as u64) < header.body_bytes {
            body.extend_from_slice(&self.frame(cluster).expect("a body follows").payload);
        }
        String::from_utf8(body).expect("text")
    }

    pub fn log_in(&mut self, cluster: &mut Cluster, user: &str, password: &str, vhost: &str) {
        let answer = self.try_log_in(cluster, user, password, vhost);
        assert_eq!(answer, Method::ConnectionOpenOk {});
    }

    /// The last answer: open-ok or close.
    pub fn try_log_in(&mut self, cluster: &mut Cluster, user: &str, password: &str, vhost: &str) -> Method {
        self.send_bytes(cluster, Bytes::from_static(b"AMQP\x00\x00\x09\x01"));
        assert!(matches!(self.method(cluster).1, Method::ConnectionStart { .. }));
        let capabilities = FieldTable::from_entries([
            ("authentication_failure_close", holdfast_wire::FieldValue::Bool(true)),
            ("consumer_cancel_notify", holdfast_wire::FieldValue::Bool(true)),
            ("connection.blocked", holdfast_wire::FieldValue::Bool(true)),
        ]);
        let capabilities = holdfast_wire::FieldValue::Table(capabilities.expect("short names"));
        let start_ok = Method::ConnectionStartOk {
            client_properties: FieldTable::from_entries([("capabilities", capabilities)]).expect("short names"),
            mechanism: short("PLAIN"),
            response: LongStr::new(Bytes::from(format!("\0{user}\0{password}"))),
            locale: short("en_US"),
        };
        let tune = self.call(cluster, 0, start_ok);
        let Method::ConnectionTune { channel_max, frame_max, .. } = tune else { return tune };
        self.send(cluster, 0, Method::ConnectionTuneOk { channel_max, frame_max, heartbeat_s: self.heartbeat_s });

        self.call(cluster, 0, Method::ConnectionOpen { virtual_host: short(vhost) })
    }

    pub fn open_channel(&mut self, cluster: &mut Cluster, channel: u16) {
        assert_eq!(self.call(cluster, channel, Method::ChannelOpen {}), Method::ChannelOpenOk {});
    }

    pub fn declare(&mut self, cluster: &mut Cluster, queue: &str) -> (u32, u32) {
        match self.call(cluster, 1, declare(queue, true, false)) {
            Method::QueueDeclareOk { message_count, consumer_count, .. } => (message_count, consumer_count),
            other => panic!("{other:?} instead of declare-ok"),
        }
    }

    pub fn confirm_select(&mut self, cluster: &mut Cluster) {
        let answer = self.call(cluster, 1, Method::ConfirmSelect { no_wait: false });
        assert_eq!(answer, Method::ConfirmSelectOk {});
    }

    pub fn publish(&mut self, cluster: &mut Cluster, queue: &str, body: &str) {
        self.publish_to(cluster, "", queue, false, body);
    }

    pub fn publish_to(&mut self, cluster: &mut Cluster, exchange: &str, key: &str, mandatory: bool, body: &str) {
        self.send_bytes(cluster, publish_frames(exchange, key, mandatory, body));
    }

    /// A message of any size.
    pub fn publish_in_frames(&mut self, cluster: &mut Cluster, queue: &str, body: &str) {
        let mut out = BytesMut::new();
        let (exchange, routing_key) = (short(""), short(queue));
        Method::BasicPublish { exchange, routing_key, mandatory: false, immediate: false }.encode(1, &mut out);
        ContentHeader::encode(1, body.len() as u64, &[0x10, 0, 2], &mut out);
        for piece in holdfast_wire::body_frames(&Bytes::copy_from_slice(body.as_bytes()), 131_072) {
            holdfast_wire::write_body_frame(1, piece.len(), &mut out);
            out.extend_from_slice(&piece);
            holdfast_wire::write_frame_end(&mut out);
        }
        self.send_bytes(cluster, out.freeze());
    }

    /// All methods that are here already; contents are skipped.
    pub fn methods(&mut self, cluster: &mut Cluster) -> Vec<Method> {
        let frames = std::iter::from_fn(|| self.frame(cluster));
        let methods = frames.filter(|frame| frame.kind == FrameKind::Method);
        methods.map(|frame| Method::decode(frame.payload).expect("well formed")).collect()
    }

    /// Waits until everything up to `tag` is confirmed.
    pub fn wait_confirmed(&mut self, cluster: &mut Cluster, tag: u64) {
        while self.confirmed < tag {
            match self.method(cluster).1 {
                Method::BasicAck { delivery_tag, multiple: true } => self.confirmed = self.confirmed.max(delivery_tag),
                Method::BasicAck { delivery_tag, multiple: false } => {
                    self.single.insert(delivery_tag);
                }
                other => panic!("{other:?} instead of a confirm"),
            }
            while self.single.remove(&(self.confirmed + 1)) {
                self.confirmed += 1;
            }
        }
    }

    pub fn qos(&mut self, cluster: &mut Cluster, prefetch_count: u16) {
        let qos = Method::BasicQos { prefetch_size: 0, prefetch_count, global: false };
        assert_eq!(self.call(cluster, 1, qos), Method::BasicQosOk {});
    }

    pub fn consume(&mut self, cluster: &mut Cluster, queue: &str, tag: &str, no_ack: bool) {
        let answer = self.call(cluster, 1, consume(queue, tag, no_ack));
        assert_eq!(answer, Method::BasicConsumeOk { consumer_tag: short(tag) });
    }

    /// The next message, waited for.
    pub fn receive(&mut self, cluster: &mut Cluster) -> Received {
        match self.method(cluster).1 {
            Method::BasicDeliver { delivery_tag, redelivered, .. } => {
                Received { tag: delivery_tag, redelivered, body: self.content(cluster) }
            }
            other => panic!("{other:?} instead of a delivery"),
        }
    }

    pub fn get(&mut self, cluster: &mut Cluster, queue: &str) -> Option<Received> {
        match self.call(cluster, 1, Method::BasicGet { queue: short(queue), no_ack: false }) {
            Method::BasicGetOk { delivery_tag, redelivered, .. } => {
                Some(Received { tag: delivery_tag, redelivered, body: self.content(cluster) })
            }
            Method::BasicGetEmpty {} => None,
            other => panic!("{other:?} instead of a message"),
        }
    }

    /// A returned message's code and body.
    pub fn returned(&mut self, cluster: &mut Cluster) -> (u16, String) {
        match self.method(cluster).1 {
            Method::BasicReturn { reply_code, .. } => (reply_code, self.content(cluster)),
            other => panic!("{other:?} instead of a return"),
        }
    }

    pub fn ack(&mut self, cluster: &mut Cluster, tag: u64, multiple: bool) {
        self.send(cluster, 1, Method::BasicAck { delivery_tag: tag, multiple });
    }

    pub fn nack(&mut self, cluster: &mut Cluster, tag: u64, requeue: bool) {
        self.send(cluster, 1, Method::BasicNack { delivery_tag: tag, multiple: false, requeue });
    }

    /// Nothing comes within a second.
    pub fn expect_silence(&mut self, cluster: &mut Cluster) {
        let unexpected = self.method_within(cluster, Duration::from_secs(1));
        assert_eq!(unexpected, None);
    }

    /// The connection breaks.
    pub fn drop_connection(&mut self, cluster: &mut Cluster) {
        cluster.inputs.push_back((self.at, Input::ClientClosed { conn: self.conn }));
        cluster.settle();
    }

    pub fn is_closed(&self, cluster: &Cluster) -> bool {
        cluster.closed.contains_key(&(self.at, self.conn))
    }
}
