//! A whole member over a real journal, whose groups are worked on by threads.

use std::collections::BTreeSet;

use bytes::{Bytes, BytesMut};
use holdfast_engine::admin::{AdminAction, AdminRequest, ExpectedMember, UserCredentials};
use holdfast_engine::identity::MemberUuid;
use holdfast_engine::{AdminRequestId, ConnId, Input, Member, MemberConfig, Output, Start};
use holdfast_journal::{Journal, JournalConfig, JournalReader, RealFileSystem};
use holdfast_queue::ids::BootId;
use holdfast_queue::time::{Duration, Instant};
use holdfast_wire::{ContentHeader, FieldTable, LongStr, Method, ShortStr};

use super::{Choice, Counter, TRY_EVERY, Threads};

const CLIENT: ConnId = ConnId(1);
/// Enough that every one of four workers has some.
const QUEUES: usize = 12;

struct Driver {
    member: Member<JournalReader<RealFileSystem>>,
    journal: Journal<RealFileSystem>,
    now: Instant,
    /// Which workers' batches were written, by the upper bits of their numbers.
    writers: BTreeSet<u64>,
}

impl Driver {
    fn open(folder: &std::path::Path, boot: u64, workers: usize, rounds: &Counter) -> Self {
        let fs = RealFileSystem::new(folder).unwrap();
        let layout = JournalConfig { nonce: boot, segment_bytes: 1 << 20, ..JournalConfig::default() };
        let (journal, recovered) = Journal::open(fs, layout).unwrap();
        let (now, reader) = (Instant(1_000_000), journal.reader());
        let config =
            MemberConfig { name: "m".into(), advertise_peer: "m:1".into(), workers, ..MemberConfig::default() };
        let (boot, seed) = (BootId(boot), boot);
        let start = Start { boot, new_uuid: MemberUuid(7), seed, recovered, reader, now, wall_ms: 0 };
        // Whatever there is to do is done by the threads.
        let threads = Threads::start_for(workers, rounds.clone(), 0, None).unwrap();
        let member = Member::new(config, start).unwrap().with_crew(Box::new(threads));
        Self { member, journal, now, writers: BTreeSet::new() }
    }

    fn input(&mut self, input: Input) {
        self.member.handle(self.now, self.now.0 / 1000, input);
    }

    /// Goes on until there is nothing more to do.
    fn settle(&mut self) {
        loop {
            self.member.flush(self.now);
            let mut batches = Vec::new();
            while let Some(output) = self.member.poll() {
                match output {
                    Output::Journal(batch) => batches.push(batch),
                    Output::CheckPassword { token, .. } => self.input(Input::PasswordChecked { token, ok: true }),
                    Output::Exit { reason, .. } => panic!("the member ended: {reason}"),
                    _ => {}
                }
            }
            if batches.is_empty() {
                return;
            }
            self.writers.extend(batches.iter().map(|batch| batch.id.0 >> 48));
            for written in self.journal.write_many(&batches).unwrap() {
                self.input(Input::Written(written));
            }
        }
    }

    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..1_000 {
            self.settle();
            if done(self) {
                return;
            }
            self.now = self.now + Duration::from_millis(50);
            self.member.tick(self.now, self.now.0 / 1000);
        }
        panic!("waited in vain: {what}");
    }

    fn bootstrap(&mut self) {
        let action = AdminAction::Bootstrap {
            cluster_id: "threads".into(),
            members: vec![ExpectedMember { name: "m".into(), address: "m:1".into(), zone: String::new() }],
            user: UserCredentials { name: "guest".into(), password_hash: "any".into() },
            default_replication_factor: 1,
            default_min_in_sync_replicas: 0,
        };
        self.settle();
        self.input(Input::Admin { request: AdminRequestId(1), body: AdminRequest { token: None, action } });
        self.wait("the member is ready", |driver| driver.member.ready());
    }

    fn send(&mut self, channel: u16, method: &Method) {
        let mut out = BytesMut::new();
        method.encode(channel, &mut out);
        self.input(Input::ClientBytes { conn: CLIENT, bytes: out.freeze() });
        self.settle();
    }

    fn log_in(&mut self) {
        self.input(Input::ClientConnected { conn: CLIENT, peer: "c".into(), tls_subject: None, plain_port: true });
        self.input(Input::ClientBytes { conn: CLIENT, bytes: Bytes::from_static(b"AMQP\x00\x00\x09\x01") });
        let start_ok = Method::ConnectionStartOk {
            client_properties: FieldTable::default(),
            mechanism: ShortStr::truncated("PLAIN"),
            response: LongStr::new(Bytes::from_static(b"\0guest\0guest")),
            locale: ShortStr::truncated("en_US"),
        };
        self.send(0, &start_ok);
        self.send(0, &Method::ConnectionTuneOk { channel_max: 2047, frame_max: 131_072, heartbeat_s: 0 });
        self.send(0, &Method::ConnectionOpen { virtual_host: ShortStr::truncated("/") });
        self.send(1, &Method::ChannelOpen {});
    }

    fn declare(&mut self, queue: &str) {
        let declare = Method::QueueDeclare {
            queue: ShortStr::truncated(queue),
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            no_wait: false,
            arguments: FieldTable::default(),
        };
        let known = self.member.metrics().groups;
        self.send(1, &declare);
        self.wait("the queue is there", |driver| driver.member.metrics().groups > known);
    }

    fn publish(&mut self, queue: &str) {
        let mut frames = BytesMut::new();
        let (exchange, routing_key) = (ShortStr::default(), ShortStr::truncated(queue));
        Method::BasicPublish { exchange, routing_key, mandatory: false, immediate: false }.encode(1, &mut frames);
        ContentHeader::encode(1, 4, &[0x10, 0, 2], &mut frames);
        holdfast_wire::write_body_frame(1, 4, &mut frames);
        frames.extend_from_slice(b"body");
        holdfast_wire::write_frame_end(&mut frames);
        self.input(Input::ClientBytes { conn: CLIENT, bytes: frames.freeze() });
    }

    fn get(&mut self, queue: &str) {
        let before = self.member.metrics().delivered;
        self.send(1, &Method::BasicGet { queue: ShortStr::truncated(queue), no_ack: true });
        self.wait("the message comes", |driver| driver.member.metrics().delivered > before);
    }
}

#[test]
fn what_several_threads_confirmed_is_there_for_another_number_of_them_after_a_restart() {
    let (folder, rounds) = (tempfile::tempdir().unwrap(), Counter::default());
    let names: Vec<String> = (0..QUEUES).map(|queue| format!("q{queue}")).collect();
    let mut driver = Driver::open(folder.path(), 1, 4, &rounds);
    driver.bootstrap();
    driver.log_in();
    driver.send(1, &Method::ConfirmSelect { no_wait: false });
    for name in &names {
        driver.declare(name);
    }
    for name in &names {
        driver.publish(name);
    }
    driver.wait("all is confirmed", |driver| driver.member.metrics().confirmed == QUEUES as u64);
    assert!(rounds.get() > 0, "the core did it all");
    // The identity of a blank disk is written before there are workers.
    let workers: Vec<u64> = driver.writers.iter().copied().filter(|worker| *worker < 4).collect();
    assert_eq!(workers, [0, 1, 2, 3], "every worker wrote");

    drop(driver);
    let mut driver = Driver::open(folder.path(), 2, 3, &rounds);
    driver.wait("the member is ready again", |driver| driver.member.ready());
    driver.log_in();
    for name in &names {
        driver.get(name);
    }
}

#[test]
fn work_is_shared_while_that_is_cheaper_and_the_other_way_is_tried_now_and_then() {
    let mut choice = Choice::default();
    let mut shared_of = |rounds: u32, side_by_side_us: u64| {
        let mut shared = 0;
        for _ in 0..rounds {
            let side_by_side = choice.next_side_by_side();
            shared += u32::from(side_by_side);
            let micros = if side_by_side { side_by_side_us } else { 100 };
            choice.took(side_by_side, 50, Duration::from_micros(micros));
        }
        shared
    };
    let rounds = 64 * TRY_EVERY;
    assert!(shared_of(rounds, 60) > rounds - 2 * 64, "two threads have two cores");
    assert!(shared_of(rounds, 300) < 2 * 64, "all cores are taken");
    assert!(shared_of(rounds, 60) > rounds / 2, "they are free again");
}
