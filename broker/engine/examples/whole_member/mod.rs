//! One whole member (sessions, queue machine, Raft log, journal on a real disk), driven by hand, for measurements.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use holdfast_engine::admin::{AdminAction, AdminRequest, ExpectedMember, UserCredentials};
use holdfast_engine::identity::MemberUuid;
use holdfast_engine::{AdminRequestId, ConnId, Input, Member, MemberConfig, Output, Start};
use holdfast_journal::{Batch, Journal, JournalConfig, JournalReader, RealFileSystem};
use holdfast_queue::ids::BootId;
use holdfast_queue::time::{Duration, Instant};
use holdfast_wire::{ContentHeader, FieldTable, LongStr, Method, ShortStr};

pub const BODY_BYTES: usize = 100;
/// Rounds of the member that share one sync.
const ROUNDS: usize = 1024;
pub const PUBLISHER: ConnId = ConnId(1);
pub const CONSUMER: ConnId = ConnId(2);

/// A member, its journal, and what comes and goes between them.
pub struct Driver {
    pub member: Member<JournalReader<RealFileSystem>>,
    journal: Journal<RealFileSystem>,
    batches: Vec<Batch>,
    pub now: Instant,
    written: VecDeque<(ConnId, u64)>,
    totals: [u64; 3],
    paused: bool,
}

impl Driver {
    /// The member of this folder, blank or as it was left.
    pub fn open(folder: &str, boot: u64) -> Driver {
        let fs = RealFileSystem::new(folder.as_ref()).expect("a folder that can be written");
        let layout = JournalConfig { nonce: boot, ..JournalConfig::default() };
        let (journal, recovered) = Journal::open(fs, layout).expect("a journal");
        let now = Instant(1_000_000);
        let config = MemberConfig { name: "m".into(), advertise_peer: "m:1".into(), ..MemberConfig::default() };
        let start = Start {
            boot: BootId(boot),
            new_uuid: MemberUuid(7),
            seed: boot,
            recovered,
            reader: journal.reader(),
            now,
            wall_ms: 0,
        };
        let member = Member::new(config, start).expect("an identity");
        Driver { member, journal, batches: Vec::new(), now, written: VecDeque::new(), totals: [0; 3], paused: false }
    }

    /// A new member in an empty folder, alone in its cluster.
    pub fn start(folder: &str) -> Driver {
        let mut driver = Self::open(folder, 7);
        let action = AdminAction::Bootstrap {
            cluster_id: "measured".into(),
            members: vec![ExpectedMember { name: "m".into(), address: "m:1".into(), zone: String::new() }],
            user: UserCredentials { name: "guest".into(), password_hash: "any".into() },
            default_replication_factor: 1,
            default_min_in_sync_replicas: 0,
        };
        driver.settle();
        driver.input(Input::Admin { request: AdminRequestId(1), body: AdminRequest { token: None, action } });
        driver.wait(|driver| driver.member.ready());
        driver
    }

    pub fn input(&mut self, input: Input) {
        self.member.handle(self.now, self.now.0 / 1000, input);
    }

    /// Ends a round; what it wants written waits for company.
    fn round(&mut self) {
        self.member.flush(self.now);
        while let Some(output) = self.member.poll() {
            match output {
                Output::Journal(batch) => self.batches.push(batch),
                Output::ClientSend { conn, bytes } => {
                    let total = &mut self.totals[conn.0 as usize];
                    *total += bytes.len() as u64;
                    self.written.push_back((conn, *total));
                }
                Output::ClientPause { conn, paused } if conn == PUBLISHER => self.paused = paused,
                Output::CheckPassword { token, .. } => self.input(Input::PasswordChecked { token, ok: true }),
                Output::Exit { reason, .. } => panic!("the member ended: {reason}"),
                _ => {}
            }
        }
        while let Some((conn, total)) = self.written.pop_front() {
            self.input(Input::ClientWritten { conn, total });
        }
    }

    /// Writes what waits, and goes on until nothing does.
    pub fn settle(&mut self) {
        loop {
            self.round();
            if self.batches.is_empty() {
                return;
            }
            let batches = std::mem::take(&mut self.batches);
            for written in self.journal.write_many(&batches).expect("a disk with room") {
                self.input(Input::Written(written));
            }
            while let Some(chore) = self.journal.next_chore() {
                self.journal.chore_done(chore.run()).expect("a disk with room");
            }
            if let Some(upkeep) = self.journal.upkeep().expect("a disk with room") {
                self.input(Input::Upkeep(upkeep));
            }
        }
    }

    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + Duration::from_millis(50);
            self.member.tick(self.now, self.now.0 / 1000);
            self.settle();
        }
    }

    pub fn wait(&mut self, done: impl Fn(&Driver) -> bool) {
        for _ in 0..1_000_000 {
            self.settle();
            if done(self) {
                return;
            }
            self.pass(Duration::from_millis(50));
        }
        panic!("what was waited for did not come");
    }

    pub fn send(&mut self, conn: ConnId, method: &Method) {
        let mut out = BytesMut::new();
        method.encode(if matches!(method, Method::ConnectionOpen { .. }) { 0 } else { 1 }, &mut out);
        self.input(Input::ClientBytes { conn, bytes: out.freeze() });
        self.settle();
        self.pass(Duration::from_millis(100));
    }

    pub fn log_in(&mut self, conn: ConnId) {
        let peer = format!("client {}", conn.0);
        self.input(Input::ClientConnected { conn, peer, tls_subject: None, plain_port: true });
        self.input(Input::ClientBytes { conn, bytes: Bytes::from_static(b"AMQP\x00\x00\x09\x01") });
        let mut out = BytesMut::new();
        let start_ok = Method::ConnectionStartOk {
            client_properties: FieldTable::default(),
            mechanism: ShortStr::truncated("PLAIN"),
            response: LongStr::new(Bytes::from_static(b"\0guest\0guest")),
            locale: ShortStr::truncated("en_US"),
        };
        start_ok.encode(0, &mut out);
        self.input(Input::ClientBytes { conn, bytes: out.split().freeze() });
        self.settle();
        Method::ConnectionTuneOk { channel_max: 2047, frame_max: 131_072, heartbeat_s: 0 }.encode(0, &mut out);
        self.input(Input::ClientBytes { conn, bytes: out.freeze() });
        self.send(conn, &Method::ConnectionOpen { virtual_host: ShortStr::truncated("/") });
        self.send(conn, &Method::ChannelOpen {});
    }

    pub fn publish(&mut self, messages: u64, batch: u64) {
        let mut frames = BytesMut::new();
        for _ in 0..batch {
            let (exchange, routing_key) = (ShortStr::default(), ShortStr::truncated("q"));
            Method::BasicPublish { exchange, routing_key, mandatory: false, immediate: false }.encode(1, &mut frames);
            ContentHeader::encode(1, BODY_BYTES as u64, &[0x10, 0, 2], &mut frames);
            holdfast_wire::write_body_frame(1, BODY_BYTES, &mut frames);
            frames.extend_from_slice(&[b'x'; BODY_BYTES]);
            holdfast_wire::write_frame_end(&mut frames);
        }
        let goal = self.member.metrics().published + messages;
        for round in 1.. {
            if self.member.metrics().published >= goal {
                break;
            }
            // A socket's bytes: not a slice of what all rounds share.
            self.input(Input::ClientBytes { conn: PUBLISHER, bytes: Bytes::copy_from_slice(&frames) });
            self.round();
            if round % ROUNDS == 0 || self.paused {
                self.pass(Duration::from_millis(50));
            }
        }
        self.wait(|driver| driver.member.metrics().unconfirmed_bytes == 0);
    }

    /// A durable queue, `q`.
    pub fn declare(&mut self) {
        let declare = Method::QueueDeclare {
            queue: ShortStr::truncated("q"),
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            no_wait: false,
            arguments: FieldTable::default(),
        };
        self.send(PUBLISHER, &declare);
    }
}
