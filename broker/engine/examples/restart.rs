//! How long a member with many queued messages takes to serve again after its process was killed: `make bench-restart`.
//!
//! `restart fill FOLDER MESSAGES BATCH` makes a member in an empty folder, alone in its cluster, that queues so many
//! messages, so many in a Raft entry, and stops in the middle. `restart start FOLDER` starts on what is there, in real
//! time, until the queue's leader stands and a client that logged in gets a message; it prints one JSON object.

mod whole_member;

use std::process::ExitCode;
use std::time::Instant as Clock;

use holdfast_queue::ids::BootId;
use holdfast_queue::time::{Duration, Instant};
use holdfast_wire::{Method, ShortStr};

use whole_member::{CONSUMER, Driver, PUBLISHER};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn fill(folder: &str, messages: u64, batch: u64) {
    let mut driver = Driver::start(folder);
    driver.log_in(PUBLISHER);
    driver.declare();
    driver.publish(messages, batch);
    driver.pass(Duration::from_secs(2));
}

fn start(folder: &str) -> ExitCode {
    let began = Clock::now();
    let boot = BootId(u64::from(std::process::id()) + 8);
    let mut driver = Driver::open(folder, boot.0);
    let opened = began.elapsed();
    let first = driver.now;
    let real_time = |driver: &mut Driver| {
        driver.now = Instant(first.0 + began.elapsed().as_micros() as u64);
        driver.member.tick(driver.now, 0);
        driver.settle();
    };
    while !driver.member.ready() {
        real_time(&mut driver);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let ready = began.elapsed();
    driver.log_in(CONSUMER);
    let queue = ShortStr::truncated("q");
    driver.send(CONSUMER, &Method::BasicGet { queue, no_ack: true });
    while driver.member.metrics().delivered == 0 {
        real_time(&mut driver);
        if began.elapsed().as_secs() > 120 {
            eprintln!("no message came within two minutes");
            return ExitCode::FAILURE;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let served = began.elapsed();
    println!(
        "{{\"opened_seconds\": {:.2}, \"ready_seconds\": {:.2}, \"first_message_seconds\": {:.2}}}",
        opened.as_secs_f64(),
        ready.as_secs_f64(),
        served.as_secs_f64(),
    );
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["fill", folder, messages, batch] => match (messages.parse(), batch.parse()) {
            (Ok(messages), Ok(batch)) => {
                fill(folder, messages, batch);
                ExitCode::SUCCESS
            }
            _ => {
                eprintln!("MESSAGES and BATCH are numbers");
                ExitCode::from(2)
            }
        },
        ["start", folder] => start(folder),
        _ => {
            eprintln!("usage: restart fill FOLDER MESSAGES BATCH | restart start FOLDER");
            ExitCode::from(2)
        }
    }
}
