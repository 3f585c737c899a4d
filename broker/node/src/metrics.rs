//! What `/metrics` shows: counters of the engine and of this process, in Prometheus' text format. Series that RabbitMQ
//! has keep its names; ours begin with `holdfast_`.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::measured_files::DiskMeter;
use holdfast_engine::Metrics;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text::encode};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Counters and gauges of this process; cheap to touch from any thread.
pub struct NodeMetrics {
    pub connections_opened: Counter,
    pub connections_closed: Counter,
    /// One write and `fdatasync` of everything that had arrived, seconds.
    pub sync_seconds: Histogram,
    /// Batches that one sync made durable.
    pub sync_batches: Histogram,
    /// From the core's handing a batch over to the begin of its write, seconds.
    pub journal_wait_seconds: Histogram,
    /// What the journal's thread does between two writes, seconds.
    pub journal_upkeep_seconds: Histogram,
    /// From the end of a write to the round in which the core takes the report, seconds.
    pub journal_report_seconds: Histogram,
    /// What the disk is asked for, by the journal's thread and by its chores.
    pub disk: DiskMeter,
    /// Handling all waiting inputs and their outputs once, seconds.
    pub round_seconds: Histogram,
    /// Rounds in which several threads worked on Raft groups.
    pub worker_rounds: Counter,
    /// Bytes handed to the journal thread and not yet durable.
    pub journal_backlog_bytes: AtomicU64,
    /// When the core thread last finished a round, ms on its clock.
    pub last_round_ms: AtomicU64,
    /// Free bytes on the disk below which publishers wait.
    pub disk_free_limit_bytes: AtomicU64,
    /// The member has been ready.
    pub ready: AtomicBool,
    /// The engine's counters, as of the last round in which they were copied.
    pub engine: Mutex<Metrics>,
}

impl NodeMetrics {
    /// All zero.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            connections_opened: Counter::default(),
            connections_closed: Counter::default(),
            sync_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 17)),
            sync_batches: Histogram::new(exponential_buckets(1.0, 2.0, 8)),
            journal_wait_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 17)),
            journal_upkeep_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 17)),
            journal_report_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 17)),
            disk: DiskMeter::default(),
            round_seconds: Histogram::new(exponential_buckets(0.000_01, 4.0, 10)),
            worker_rounds: Counter::default(),
            journal_backlog_bytes: AtomicU64::new(0),
            last_round_ms: AtomicU64::new(0),
            disk_free_limit_bytes: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            engine: Mutex::default(),
        })
    }

    /// The engine's counters.
    pub fn engine(&self) -> Metrics {
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything in Prometheus' text format.
pub fn render(metrics: &Arc<NodeMetrics>, disk_free_bytes: u64) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    let m = metrics;
    registry.register("rabbitmq_connections_opened", "Connections opened", m.connections_opened.clone());
    registry.register("rabbitmq_connections_closed", "Connections closed", m.connections_closed.clone());
    registry.register(
        "holdfast_worker_rounds",
        "Rounds in which several threads worked on Raft groups",
        m.worker_rounds.clone(),
    );
    let times = [
        ("holdfast_journal_wait", "From handing a batch over to the begin of its write", &m.journal_wait_seconds),
        ("holdfast_journal_sync", "One write and fdatasync of everything that had arrived", &m.sync_seconds),
        ("holdfast_journal_report", "From the end of a write until the core hears of it", &m.journal_report_seconds),
        ("holdfast_journal_upkeep", "What the journal does between two writes", &m.journal_upkeep_seconds),
        ("holdfast_core_round", "Handling all waiting inputs and their outputs once", &m.round_seconds),
        ("holdfast_disk_sync", "Each fdatasync of a file, of the log and all others", &m.disk.sync_seconds),
        ("holdfast_disk_directory_sync", "Each fsync of the data directory", &m.disk.directory_sync_seconds),
    ];
    for (name, help, histogram) in times {
        registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
    }
    registry.register("holdfast_journal_sync_batches", "Batches made durable by one sync", m.sync_batches.clone());
    registry.register_with_unit(
        "holdfast_disk_written",
        "Handed to the operating system for files of the journal",
        Unit::Bytes,
        m.disk.written_bytes.clone(),
    );
    let journal_backlog_bytes = m.journal_backlog_bytes.load(Ordering::Relaxed);
    let ready = m.ready.load(Ordering::Relaxed);
    registry.register_collector(Box::new(Snapshot {
        engine: m.engine(),
        journal_backlog_bytes,
        disk_free_bytes,
        disk_free_limit_bytes: m.disk_free_limit_bytes.load(Ordering::Relaxed),
        ready,
    }));
    let mut out = String::new();
    encode(&mut out, &registry)?;
    Ok(out)
}

/// Figures taken at the moment of the request.
#[derive(Debug)]
struct Snapshot {
    engine: Metrics,
    journal_backlog_bytes: u64,
    disk_free_bytes: u64,
    disk_free_limit_bytes: u64,
    ready: bool,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let e = &self.engine;
        let gauges = [
            ("rabbitmq_connections", "Connections currently open", e.connections),
            ("rabbitmq_channels", "Channels currently open", e.channels),
            ("rabbitmq_consumers", "Consumers currently connected", e.consumers),
            ("rabbitmq_queues", "Queues available", e.queues),
            ("rabbitmq_process_resident_memory_bytes", "Memory used in bytes", resident_bytes()),
            ("rabbitmq_disk_space_available_bytes", "Disk space available in bytes", self.disk_free_bytes),
            (
                "rabbitmq_resident_memory_limit_bytes",
                "Memory high watermark in bytes, 0 for none",
                e.memory_high_watermark_bytes,
            ),
            (
                "rabbitmq_disk_space_available_limit_bytes",
                "Free disk space low watermark in bytes",
                self.disk_free_limit_bytes,
            ),
            (
                "rabbitmq_alarms_memory_used_watermark",
                "1 while this member uses more memory than the high watermark",
                u64::from(e.memory_alarm),
            ),
            (
                "rabbitmq_alarms_free_disk_space_watermark",
                "1 while less disk space is free than the limit",
                u64::from(e.disk_alarm),
            ),
            (
                "holdfast_cluster_alarm",
                "1 while some member has an alarm, so that publishers wait here too",
                u64::from(e.cluster_alarm),
            ),
            ("holdfast_connections_blocked", "Connections that an alarm has blocked", e.blocked_connections),
            (
                "holdfast_unconfirmed_bytes",
                "Messages of clients here not taken in yet by their queues",
                e.unconfirmed_bytes,
            ),
            ("holdfast_assembling_bytes", "Messages of which only a part has come", e.assembling_bytes),
            ("holdfast_delivery_backlog_bytes", "Deliveries that clients have not taken yet", e.backlog_bytes),
            ("holdfast_transient_bytes", "Messages and commands kept for transient queues here", e.transient_bytes),
            ("holdfast_groups", "Replicas of Raft groups on this member", e.groups),
            ("holdfast_groups_leading", "Raft groups led by this member", e.groups_leading),
            (
                "holdfast_journal_backlog_bytes",
                "Bytes handed to the journal and not yet durable",
                self.journal_backlog_bytes,
            ),
            ("holdfast_ready", "1 once this member has been ready", u64::from(self.ready)),
            ("process_resident_memory_bytes", "Resident memory size in bytes", resident_bytes()),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters: [(&str, &str, u64); 14] = [
            ("rabbitmq_global_messages_received", "Messages published by clients", e.published),
            ("rabbitmq_global_messages_confirmed", "Publisher confirms sent", e.confirmed),
            ("rabbitmq_global_messages_unroutable_returned", "Unroutable messages returned", e.returned),
            ("rabbitmq_global_messages_delivered", "Messages delivered to clients", e.delivered),
            ("rabbitmq_global_messages_acknowledged", "Messages acknowledged by clients", e.acknowledged),
            ("holdfast_publishes_refused", "Publishes refused for too few copies", e.refused),
            ("holdfast_commands_resent", "Commands sent again because no answer came", e.resent),
            ("holdfast_raft_proposals", "Raft entries proposed", e.proposals),
            ("holdfast_raft_commands", "Commands in proposed Raft entries", e.commands),
            (
                "holdfast_journal_damaged_replicas",
                "Replicas of which records were found to be damaged while they ran",
                e.journal_damages,
            ),
            ("holdfast_journal_mended", "Entries that the disk had lost and peers gave back", e.journal_mended),
            (
                "holdfast_replicas_mended",
                "Replicas that had lost records and have them again, from peers",
                e.replicas_mended,
            ),
            (
                "holdfast_replicas_quarantined",
                "Replicas that took no part any more and were to be copied anew as a whole",
                e.replicas_quarantined,
            ),
            ("holdfast_failovers", "Failovers that replicas here won", e.failovers),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

/// This process' resident memory; 0 where `/proc` does not tell.
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_have_the_names_that_dashboards_for_rabbitmq_use() {
        let metrics = NodeMetrics::new();
        metrics.connections_opened.inc();
        metrics.engine.lock().unwrap().confirmed = 7;
        metrics.engine.lock().unwrap().memory_alarm = true;
        metrics.engine.lock().unwrap().blocked_connections = 3;
        metrics.sync_seconds.observe(0.001);
        let text = render(&metrics, 5).unwrap();
        for line in [
            "rabbitmq_connections_opened_total 1",
            "rabbitmq_global_messages_confirmed_total 7",
            "rabbitmq_disk_space_available_bytes 5",
            "rabbitmq_alarms_memory_used_watermark 1",
            "rabbitmq_alarms_free_disk_space_watermark 0",
            "rabbitmq_resident_memory_limit_bytes 0",
            "holdfast_connections_blocked 3",
            "holdfast_journal_sync_seconds_count 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
