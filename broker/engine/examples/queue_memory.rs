//! What a member holds in memory for each queued message: `make bench-memory`.
//!
//! One whole member (sessions, queue machine, Raft log, journal on a real disk, the broker's allocator) takes messages in
//! until so many are ready, then hands all of them to a consumer that acknowledges none. Figures are growth of resident
//! memory over a member that did the same with a few messages before, once it was idle for longer than payloads are
//! cached; so they hold everything, the allocator's losses included.
//!
//! `queue_memory MESSAGES BATCH FOLDER` runs one shape in an empty folder and prints one JSON object.

mod whole_member;

use std::process::ExitCode;

use holdfast_queue::time::Duration;
use holdfast_wire::{FieldTable, Method, ShortStr};

use whole_member::{BODY_BYTES, CONSUMER, Driver, PUBLISHER};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Messages that come and go before the count begins.
const WARM_UP: u64 = 50_000;

/// Idle for longer than anything is cached, in the member's time and in the allocator's.
fn resident_when_idle(driver: &mut Driver) -> u64 {
    driver.pass(Duration::from_secs(15));
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

fn consume(driver: &mut Driver, no_ack: bool) {
    let consume = Method::BasicConsume {
        queue: ShortStr::truncated("q"),
        consumer_tag: ShortStr::truncated("c"),
        no_local: false,
        no_ack,
        exclusive: false,
        no_wait: false,
        arguments: FieldTable::default(),
    };
    driver.send(CONSUMER, &consume);
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
    driver.declare();
    driver.publish(WARM_UP, batch);
    consume(&mut driver, true);
    driver.wait(|driver| driver.member.metrics().delivered >= WARM_UP);
    driver.send(CONSUMER, &Method::BasicCancel { consumer_tag: ShortStr::truncated("c"), no_wait: false });
    let delivered = driver.member.metrics().delivered;
    let before = resident_when_idle(&mut driver);

    driver.publish(messages, batch);
    let ready = resident_when_idle(&mut driver);
    consume(&mut driver, false);
    driver.wait(|driver| driver.member.metrics().delivered >= delivered + messages);
    let unacked = resident_when_idle(&mut driver);
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
