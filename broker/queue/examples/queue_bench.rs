//! What the queue machine costs: `cargo run --release -p holdfast-queue --example queue_bench`.

use bytes::Bytes;
use holdfast_queue::codec::{Batch, EntryBuilder, Message, Origin};
use holdfast_queue::ids::{BootId, ChannelRef, ConsumerId, QueueId, SessionId};
use holdfast_queue::queue::{Outcome, QueueCommand, QueueEffect, QueueMachine, Span};
use holdfast_queue::{ApplyMeta, Machine};
use std::time::{Duration, Instant};

const QUEUE: QueueId = QueueId(1);
const HOME: BootId = BootId(42);
const BATCH: u64 = 100;

struct Bench {
    machine: QueueMachine,
    index: u64,
    seq: u64,
    encoding: Duration,
    applying: Duration,
}

impl Bench {
    fn entry(&mut self, commands: Vec<QueueCommand>) -> Vec<QueueEffect> {
        let begin = Instant::now();
        let origin = Some(Origin { boot: HOME, first: self.seq + 1, answered: self.seq });
        self.seq += commands.len() as u64;
        let mut entry = EntryBuilder::new();
        entry.push(&Batch { origin, commands });
        let payload = entry.finish(0);
        self.encoding += begin.elapsed();
        self.index += 1;
        let mut effects = Vec::new();
        let begin = Instant::now();
        let meta = ApplyMeta { index: self.index, term: 1 };
        self.machine.apply(&meta, &payload, &mut effects).expect("a well-formed entry");
        self.machine.take_dead();
        self.applying += begin.elapsed();
        effects
    }

    fn report(&mut self, what: &str, messages: u64) {
        let each = |time: Duration| time.as_nanos() as u64 / messages;
        println!("{what}: {} ns apply, {} ns encode a message", each(self.applying), each(self.encoding));
        (self.encoding, self.applying) = (Duration::ZERO, Duration::ZERO);
    }
}

fn publishes(count: u64) -> Vec<QueueCommand> {
    let message = Message {
        exchange: Bytes::from_static(b""),
        routing_key: Bytes::from_static(b"queue"),
        properties: Bytes::from_static(&[0x10, 0, 2]),
        body: Bytes::from(vec![0; 1024]),
    };
    (0..count).map(|_| QueueCommand::Publish { queue: QUEUE, message: message.clone() }).collect()
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn main() {
    let mut bench =
        Bench { machine: QueueMachine::new(), index: 0, seq: 0, encoding: Duration::ZERO, applying: Duration::ZERO };
    let session = SessionId { boot: HOME, conn: 1 };
    let consumer = ConsumerId { channel: ChannelRef { session, channel: 1, generation: 1 }, number: 1 };
    bench.entry(vec![
        QueueCommand::CreateQueue { queue: QUEUE, vhost: "/".into(), name: "q".into(), settings: Default::default() },
        QueueCommand::Subscribe {
            queue: QUEUE,
            consumer,
            tag: Bytes::new(),
            no_ack: false,
            exclusive: false,
            prefetch: 2000,
            credit_to: u64::MAX,
            priority: 0,
        },
    ]);
    let rounds = 5_000;
    for _ in 0..rounds {
        let mut commands = publishes(BATCH);
        let spans = vec![Span { first: 1, last: bench.index * BATCH }];
        commands.push(QueueCommand::Settle { queue: QUEUE, consumer, spans, outcome: Outcome::Ack });
        bench.entry(commands);
    }
    bench.report("publish, deliver and ack", rounds * BATCH);

    bench.entry(vec![QueueCommand::Cancel { queue: QUEUE, consumer }]);
    let before = resident_bytes();
    let backlog = 1_000_000;
    for _ in 0..backlog {
        bench.entry(publishes(1));
    }
    bench.report("publish into a backlog, one an entry", backlog);
    println!("memory: {} bytes a ready message", resident_bytes().saturating_sub(before) / backlog);
    let begin = Instant::now();
    let snapshot = bench.machine.snapshot();
    println!("snapshot: {} bytes in {:?}", snapshot.len(), begin.elapsed());
    let begin = Instant::now();
    QueueMachine::restore(&snapshot).expect("a snapshot reads back");
    println!("restore: {:?}", begin.elapsed());
}
