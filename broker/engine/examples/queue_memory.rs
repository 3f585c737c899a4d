//! What a member holds in memory for each queued message: `make bench-memory`.
//!
//! One whole member (sessions, queue machine, Raft log, journal on a real disk, the broker's allocator) takes messages in
//! until so many are ready, then hands all of them to a consumer that acknowledges none. Figures are growth of resident
//! memory over a member that did the same with a few messages before, once it was idle for longer than payloads are
//! cached; so they hold everything, the allocator's losses included.
//!
//! `queue_memory MESSAGES BATCH FOLDER` runs one shape in an empty folder and prints one JSON object.

use std::collections::VecDeque;
use std::process::ExitCode;

use bytes::{Bytes, BytesMut};
use holdfast_engine::admin::{AdminAction, AdminRequest, ExpectedMember, UserCredentials};
use holdfast_engine::identity::MemberUuid;
use holdfast_engine::{AdminRequestId, ConnId, Input, Member, MemberConfig, Output, Start};
use holdfast_journal::{Batch, Journal, JournalConfig, JournalReader, RealFileSystem};
use holdfast_queue::ids::BootId;
use holdfast_queue::time::{Duration, Instant};
use holdfast_wire::{ContentHeader, FieldTable, LongStr, Method, ShortStr};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const BODY_BYTES: usize = 100;
/// Messages that come and go before the count begins.
const WARM_UP: u64 = 50_000;
/// Rounds of the member that share one sync.
const ROUNDS: usize = 1024;
const PUBLISHER: ConnId = ConnId(1);
const CONSUMER: ConnId = ConnId(2);

struct Driver {
    member: Member<JournalReader<RealFileSystem>>,
    journal: Journal<RealFileSystem>,
    batches: Vec<Batch>,
    now: Instant,
    written: VecDeque<(ConnId, u64)>,
    totals: [u64; 3],
    paused: bool,
}

impl Driver {
    fn start(folder: &str) -> Driver {
        let fs = RealFileSystem::new(folder.as_ref()).expect("an empty folder that can be written");
        let (journal, recovered) = Journal::open(fs, JournalConfig::default()).expect("a blank journal");
        let now = Instant(1_000_000);
        let config = MemberConfig { name: "m".into(), advertise_peer: "m:1".into(), ..MemberConfig::default() };
        let start = Start {
            boot: BootId(7),
            new_uuid: MemberUuid(7),
            seed: 7,
            recovered,
            reader: journal.reader(),
            now,
            wall_ms: 0,
        };
        let member = Member::new(config, start).expect("a blank identity");
        let mut driver = Driver {
            member,
            journal,
            batches: Vec::new(),
            now,
            written: VecDeque::new(),
            totals: [0; 3],
            paused: false,
        };
        let action = AdminAction::Bootstrap {
            cluster_id: "memory".into(),
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

    fn input(&mut self, input: Input) {
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
    fn settle(&mut self) {
        loop {
            self.round();
            if self.batches.is_empty() {
                return;
            }
            let batches = std::mem::take(&mut self.batches);
            for written in self.journal.write_many(&batches).expect("a disk with room") {
                self.input(Input::Written(written));
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = self.now + Duration::from_millis(50);
            self.member.tick(self.now, self.now.0 / 1000);
            self.settle();
        }
    }

    fn wait(&mut self, done: impl Fn(&Driver) -> bool) {
        for _ in 0..1_000_000 {
            self.settle();
            if done(self) {
                return;
            }
            self.pass(Duration::from_millis(50));
        }
        panic!("what was waited for did not come");
    }

    fn send(&mut self, conn: ConnId, method: &Method) {
        let mut out = BytesMut::new();
        method.encode(if matches!(method, Method::ConnectionOpen { .. }) { 0 } else { 1 }, &mut out);
        self.input(Input::ClientBytes { conn, bytes: out.freeze() });
        self.settle();
        self.pass(Duration::from_millis(100));
    }

    fn log_in(&mut self, conn: ConnId) {
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

    fn publish(&mut self, messages: u64, batch: u64) {
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

    fn consume(&mut self, no_ack: bool) {
        let consume = Method::BasicConsume {
            queue: ShortStr::truncated("q"),
            consumer_tag: ShortStr::truncated("c"),
            no_local: false,
            no_ack,
            exclusive: false,
            no_wait: false,
            arguments: FieldTable::default(),
        };
        self.send(CONSUMER, &consume);
    }

    /// Idle for longer than anything is cached, in the member's time and in the allocator's.
    fn resident_when_idle(&mut self) -> u64 {
        self.pass(Duration::from_secs(15));
        let mut least = resident_bytes();
        let mut same = 0;
        while same < 8 {
            std::thread::sleep(std::time::Duration::from_millis(500));
            let now = resident_bytes();
            same = if now + (1 << 20) < least { 0 } else { same + 1 };
            least = least.min(now);
        }
        least
    }
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = pages.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("statm has a second number") * 4096
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [messages, batch, folder] = &arguments[..] else {
        eprintln!("usage: queue_memory MESSAGES BATCH FOLDER");
        return ExitCode::from(2);
    };
    let (Ok(messages), Ok(batch)) = (messages.parse::<u64>(), batch.parse::<u64>()) else {
        eprintln!("MESSAGES and BATCH are numbers");
        return ExitCode::from(2);
    };
    let mut driver = Driver::start(folder);
    driver.log_in(PUBLISHER);
    driver.log_in(CONSUMER);
    let declare = Method::QueueDeclare {
        queue: ShortStr::truncated("q"),
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        no_wait: false,
        arguments: FieldTable::default(),
    };
    driver.send(PUBLISHER, &declare);
    driver.publish(WARM_UP, batch);
    driver.consume(true);
    driver.wait(|driver| driver.member.metrics().delivered >= WARM_UP);
    driver.send(CONSUMER, &Method::BasicCancel { consumer_tag: ShortStr::truncated("c"), no_wait: false });
    let delivered = driver.member.metrics().delivered;
    let before = driver.resident_when_idle();

    driver.publish(messages, batch);
    let ready = driver.resident_when_idle();
    driver.consume(false);
    driver.wait(|driver| driver.member.metrics().delivered >= delivered + messages);
    let unacked = driver.resident_when_idle();
    let each = |now: u64| now.saturating_sub(before) as f64 / messages as f64;
    println!(
        "{{\"messages\": {messages}, \"messages_per_entry\": {batch}, \"body_bytes\": {BODY_BYTES}, \
         \"resident_before_bytes\": {before}, \"resident_ready_bytes\": {ready}, \"resident_unacked_bytes\": {unacked}, \
         \"ready_bytes_per_message\": {:.1}, \"unacked_bytes_per_message\": {:.1}}}",
        each(ready),
        each(unacked),
    );
    ExitCode::SUCCESS
}
