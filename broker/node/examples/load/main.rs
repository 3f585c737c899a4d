//! Publishes to a running cluster as fast as its confirms allow while everything is consumed, to one queue and to 100, and
//! says what that took: messages a second, confirm latency of each message, and per message `fdatasync`s, bytes
//! written and CPU of the brokers.
//!
//! usage: load DEV.JSON REPORT      `BENCH_SECONDS` (30), `BENCH_QUEUES` ("1 100") and `BENCH_RATE` (messages a second; 0: as
//! fast as it goes) change the runs

mod amqp;
mod meters;

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use holdfast_wire::{FieldTable, Method, ShortStr};
use serde_json::{Value, json};

use crate::amqp::{Reader, Writer};
use crate::meters::{Broker, growth, times};

/// The load that README's target names: 1 KiB, 1,000 on the way, prefetch 2,000, an ack for each 500.
const BODY_BYTES: usize = 1024;
const WINDOW: usize = 1000;
const PREFETCH: u16 = 2000;
const ACK_EVERY: u64 = 500;
/// Messages that one write to a socket brings at most.
const TOGETHER: usize = 32;
/// Connections that publish, and that consume, when there are many queues.
const CONNECTIONS: usize = 4;
const WARM_UP: Duration = Duration::from_secs(3);

/// What all connections of a run count.
#[derive(Default)]
struct Counts {
    published: AtomicU64,
    confirmed: AtomicU64,
    consumed: AtomicU64,
    measures: AtomicBool,
    ends: AtomicBool,
    /// Microseconds from each publish to its confirm.
    latencies: Mutex<Vec<u32>>,
}

/// Publishes without a confirm, of one connection.
#[derive(Default)]
struct Window {
    waiting: Mutex<(u64, VecDeque<Option<Instant>>)>,
    moved: Condvar,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(description), Some(report)) = (args.next(), args.next()) else {
        anyhow::bail!("usage: load DEV.JSON REPORT");
    };
    let setting = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let seconds: u64 = setting("BENCH_SECONDS", "30").parse().context("BENCH_SECONDS")?;
    let rate: u64 = setting("BENCH_RATE", "0").parse().context("BENCH_RATE")?;
    let text = std::fs::read_to_string(&description).with_context(|| format!("cannot read {description}"))?;
    let description: Value = serde_json::from_str(&text)?;
    let members = description["members"].as_array().context("no members")?;
    let text = |member: &Value, key: &str| member[key].as_str().unwrap_or_default().to_owned();
    let brokers: Vec<Broker> = members
        .iter()
        .map(|member| Broker { pid: member["pid"].as_u64().unwrap_or(0), http: text(member, "http") })
        .collect();
    let addresses: Vec<String> = members.iter().map(|member| text(member, "amqp")).collect();
    let mut runs = Vec::new();
    for queues in setting("BENCH_QUEUES", "1 100").split_whitespace() {
        let queues = queues.parse().context("BENCH_QUEUES")?;
        runs.push(one_run(&addresses, &brokers, queues, Duration::from_secs(seconds), rate)?);
    }
    let load_average = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let whole = json!({ "body_bytes": BODY_BYTES, "load_average": load_average.trim(), "runs": runs });
    std::fs::write(&report, format!("{whole:#}\n")).with_context(|| format!("cannot write {report}"))?;
    println!("report: {report}");
    Ok(())
}

fn one_run(addresses: &[String], brokers: &[Broker], queues: usize, time: Duration, rate: u64) -> Result<Value> {
    let names: Vec<ShortStr> = (0..queues).map(|n| ShortStr::truncated(&format!("load-{queues}-{n}"))).collect();
    let counts = Arc::new(Counts::default());
    let connections = if queues == 1 { 1 } else { CONNECTIONS };
    let mut sockets = Vec::new();
    let mut threads = Vec::new();
    for part in 0..connections {
        let mine: Vec<ShortStr> = names.iter().skip(part).step_by(connections).cloned().collect();
        let (reader, mut writer) = amqp::connect(&addresses[part % addresses.len()])?;
        let reader = declare_and_consume(reader, &mut writer, &mine)?;
        sockets.push(writer.socket()?);
        threads.push(spawn(consume(reader, writer, counts.clone())));
        let (reader, writer) = amqp::connect(&addresses[part % addresses.len()])?;
        sockets.push(writer.socket()?);
        let window = Arc::new(Window::default());
        let (size, share) = (WINDOW / connections, rate / connections as u64);
        let (sent, confirmed) = publish(reader, writer, mine, size, share, &window, &counts)?;
        threads.push(spawn(sent));
        threads.push(spawn(confirmed));
    }
    std::thread::sleep(WARM_UP);
    let result = measure(brokers, &counts, queues, time)?;
    counts.ends.store(true, Ordering::Relaxed);
    for socket in sockets {
        let _ = socket.shutdown(std::net::Shutdown::Both);
    }
    for thread in threads {
        // What their sockets' end made of it is not of interest.
        let _ = thread.join();
    }
    Ok(result)
}

type Work = Box<dyn FnOnce() -> Result<()> + Send>;

fn spawn(work: Work) -> std::thread::JoinHandle<Result<()>> {
    std::thread::spawn(work)
}

fn declare_and_consume(mut reader: Reader, writer: &mut Writer, queues: &[ShortStr]) -> Result<Reader> {
    writer.send(&Method::BasicQos { prefetch_size: 0, prefetch_count: PREFETCH, global: false })?;
    amqp::expect(reader.method()?, |method| matches!(method, Method::BasicQosOk { .. }))?;
    for queue in queues {
        writer.send(&Method::QueueDeclare {
            queue: queue.clone(),
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            no_wait: false,
            arguments: FieldTable::default(),
        })?;
        amqp::expect(reader.method()?, |method| matches!(method, Method::QueueDeclareOk { .. }))?;
        writer.send(&Method::BasicConsume {
            queue: queue.clone(),
            consumer_tag: ShortStr::default(),
            no_local: false,
            no_ack: false,
            exclusive: false,
            no_wait: false,
            arguments: FieldTable::default(),
        })?;
        amqp::expect(reader.method()?, |method| matches!(method, Method::BasicConsumeOk { .. }))?;
    }
    Ok(reader)
}

fn consume(mut reader: Reader, mut writer: Writer, counts: Arc<Counts>) -> Work {
    Box::new(move || {
        let mut seen = 0;
        while !counts.ends.load(Ordering::Relaxed) {
            if let Method::BasicDeliver { delivery_tag, .. } = reader.method()? {
                seen += 1;
                counts.consumed.fetch_add(1, Ordering::Relaxed);
                if seen % ACK_EVERY == 0 {
                    writer.send(&Method::BasicAck { delivery_tag, multiple: true })?;
                }
            }
        }
        Ok(())
    })
}

/// The work of sending and that of reading confirms, on one connection.
fn publish(
    mut reader: Reader,
    mut writer: Writer,
    queues: Vec<ShortStr>,
    size: usize,
    rate: u64,
    window: &Arc<Window>,
    counts: &Arc<Counts>,
) -> Result<(Work, Work)> {
    writer.send(&Method::ConfirmSelect { no_wait: false })?;
    amqp::expect(reader.method()?, |method| matches!(method, Method::ConfirmSelectOk { .. }))?;
    let (own, counted) = (window.clone(), counts.clone());
    let send = move || {
        let body = [b'x'; BODY_BYTES];
        let (mut queues, began, mut sent) = (queues.iter().cycle(), Instant::now(), 0u64);
        while !counted.ends.load(Ordering::Relaxed) {
            let due = if rate == 0 { u64::MAX } else { (began.elapsed().as_secs_f64() * rate as f64) as u64 };
            if due <= sent {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let count = own.reserve(size, TOGETHER.min((due - sent).min(TOGETHER as u64) as usize));
            for queue in queues.by_ref().take(count) {
                writer.publish(queue, &body);
            }
            writer.flush()?;
            sent += count as u64;
            counted.published.fetch_add(count as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    let (own, counted) = (window.clone(), counts.clone());
    let confirm = move || {
        while !counted.ends.load(Ordering::Relaxed) {
            if let Method::BasicAck { delivery_tag, multiple } = reader.method()? {
                own.confirmed(delivery_tag, multiple, &counted);
            }
        }
        Ok(())
    };
    Ok((Box::new(send), Box::new(confirm)))
}

impl Window {
    /// Waits for room in the window, and takes some: at least one place, except when no confirm comes for a while.
    fn reserve(&self, size: usize, most: usize) -> usize {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |state: &mut (u64, VecDeque<Option<Instant>>)| state.1.len() >= size;
        let waited = self.moved.wait_timeout_while(waiting, Duration::from_millis(200), full);
        let (mut waiting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let count = most.min(size.saturating_sub(waiting.1.len()));
        let now = Instant::now();
        waiting.1.extend(std::iter::repeat_n(Some(now), count));
        count
    }

    fn confirmed(&self, tag: u64, multiple: bool, counts: &Counts) {
        let now = Instant::now();
        let mut done = Vec::new();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, publishes) = &mut *waiting;
        // Tags count from 1; `before` of them are gone from the front.
        let position = (tag - *before - 1) as usize;
        let from = if multiple { 0 } else { position };
        done.extend(publishes.range_mut(from..=position).filter_map(Option::take));
        while publishes.front().is_some_and(Option::is_none) {
            publishes.pop_front();
            *before += 1;
        }
        drop(waiting);
        self.moved.notify_one();
        counts.confirmed.fetch_add(done.len() as u64, Ordering::Relaxed);
        if counts.measures.load(Ordering::Relaxed) {
            let mut latencies = counts.latencies.lock().unwrap_or_else(PoisonError::into_inner);
            latencies.extend(done.iter().map(|at| now.duration_since(*at).as_micros() as u32));
        }
    }
}

fn measure(brokers: &[Broker], counts: &Counts, queues: usize, time: Duration) -> Result<Value> {
    let read = || brokers.iter().map(Broker::read).collect::<Result<Vec<_>>>();
    let numbers = || [&counts.published, &counts.confirmed, &counts.consumed].map(|it| it.load(Ordering::Relaxed));
    let (before, from, began) = (read()?, numbers(), Instant::now());
    counts.measures.store(true, Ordering::Relaxed);
    std::thread::sleep(time);
    counts.measures.store(false, Ordering::Relaxed);
    let (after, to, seconds) = (read()?, numbers(), began.elapsed().as_secs_f64());
    let rates: Vec<f64> = from.iter().zip(to).map(|(from, to)| ((to - from) as f64 / seconds).round()).collect();
    let messages = (to[1] - from[1]).max(1) as f64;
    let mut latencies = std::mem::take(&mut *counts.latencies.lock().unwrap_or_else(PoisonError::into_inner));
    latencies.sort_unstable();
    let at = |share: f64| match latencies.len() {
        0 => 0.0,
        count => f64::from(latencies[((count - 1) as f64 * share) as usize]) / 1000.0,
    };
    let cpu: f64 = before.iter().zip(&after).map(|(before, after)| after.cpu_seconds - before.cpu_seconds).sum();
    let per_message = |total: f64| total / messages;
    let syncs = per_message(growth(&before, &after, "holdfast_disk_sync_seconds_count"));
    let bytes = per_message(growth(&before, &after, "holdfast_disk_written_bytes_total"));
    let cpu_us = per_message(cpu * 1e6);
    let (p50, p95, p99, p999, most) = (at(0.5), at(0.95), at(0.99), at(0.999), at(1.0));
    println!("{queues} queues: published {}, confirmed {}, consumed {} msg/s", rates[0], rates[1], rates[2]);
    println!("  confirm ms: median {p50:.1}, 95th {p95:.1}, 99th {p99:.1}, 99.9th {p999:.1}, longest {most:.1}");
    println!("  per message, all members: {syncs:.4} fdatasyncs, {bytes:.0} bytes written, {cpu_us:.1} us of CPU");
    let mut stages = serde_json::Map::new();
    for stage in [
        "journal_wait",
        "journal_sync",
        "journal_report",
        "journal_upkeep",
        "core_round",
        "disk_sync",
        "disk_directory_sync",
    ] {
        let seen = times(&before, &after, &format!("holdfast_{stage}_seconds"));
        println!("  {stage:20} {seen}");
        stages.insert(stage.to_owned(), seen);
    }
    Ok(json!({
        "queues": queues,
        "published_per_s": rates[0], "confirmed_per_s": rates[1], "consumed_per_s": rates[2],
        "confirm_latency_ms": { "p50": p50, "p95": p95, "p99": p99, "p99.9": p999, "max": most },
        "fdatasyncs_per_message": syncs, "written_bytes_per_message": bytes, "cpu_us_per_message": cpu_us,
        "stages": stages,
    }))
}
