//! What the brokers say of themselves, and what the kernel says of them.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// A broker at one moment.
pub struct Reading {
    /// User and system time of its process.
    pub cpu_seconds: f64,
    /// Samples of `/metrics`, by name with labels.
    samples: BTreeMap<String, f64>,
}

/// What is known of a broker's process.
pub struct Broker {
    pub pid: u64,
    /// Of the plain HTTP port.
    pub http: String,
}

impl Broker {
    /// Reads everything now.
    pub fn read(&self) -> Result<Reading> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).context("a broker is gone")?;
        // Behind the name in parentheses; user and system time are the 14th and 15th field.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let cpu_seconds = (ticks(14) + ticks(15)) as f64 / rustix::param::clock_ticks_per_second() as f64;
        let mut socket = TcpStream::connect(&self.http)?;
        write!(socket, "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http)?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.filter_map(|line| line.rsplit_once(' '));
        let samples = samples.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect();
        Ok(Reading { cpu_seconds, samples })
    }
}

impl Reading {
    /// A counter or gauge; 0 if there is none of that name.
    pub fn value(&self, name: &str) -> f64 {
        self.samples.get(name).copied().unwrap_or(0.0)
    }
}

/// How much a counter grew, over all brokers.
pub fn growth(before: &[Reading], after: &[Reading], name: &str) -> f64 {
    before.iter().zip(after).map(|(before, after)| after.value(name) - before.value(name)).sum()
}

/// What a histogram of seconds saw between two readings, over all brokers, in milliseconds: each figure is the upper end
/// of the bucket that holds it.
pub fn times(before: &[Reading], after: &[Reading], name: &str) -> Value {
    let prefix = format!("{name}_bucket{{le=\"");
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for series in after.first().into_iter().flat_map(|first| first.samples.keys()) {
        let Some(end) = series.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix("\"}")) else { continue };
        let end = if end == "+Inf" { f64::INFINITY } else { end.parse().unwrap_or(f64::INFINITY) };
        buckets.push((end, growth(before, after, series)));
    }
    buckets.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
    let count = growth(before, after, &format!("{name}_count"));
    let sum = growth(before, after, &format!("{name}_sum"));
    let at = |share: f64| {
        let found = buckets.iter().find(|(_, below)| *below >= share * count).map_or(0.0, |(end, _)| *end);
        (found * 1e5).round() / 100.0
    };
    json!({
        "count": count,
        "mean_ms": (sum / count.max(1.0) * 1e5).round() / 100.0,
        "p50_ms": at(0.5), "p99_ms": at(0.99), "p99.9_ms": at(0.999), "max_ms": at(1.0),
    })
}
