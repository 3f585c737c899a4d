//! The operator's own metrics and probes, on one plain port.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tokio::net::TcpListener;

/// What is counted, and whether the process is well.
pub struct Telemetry {
    registry: Registry,
    passes: Counter,
    failures: Counter,
    durations: Histogram,
    leading: Gauge<i64, std::sync::atomic::AtomicI64>,
    ready: AtomicBool,
}

impl Default for Telemetry {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("holdfast_operator");
        let passes = Counter::default();
        let failures = Counter::<u64, AtomicU64>::default();
        let durations = Histogram::new(exponential_buckets(0.005, 2.0, 12));
        let leading = Gauge::default();
        registry.register("reconciles", "Passes over a cluster", passes.clone());
        registry.register("reconcile_failures", "Passes that could not be finished", failures.clone());
        registry.register("reconcile_duration_seconds", "Time of a pass", durations.clone());
        registry.register("leading", "1 while this process holds the Lease", leading.clone());
        Self { registry, passes, failures, durations, leading, ready: AtomicBool::new(false) }
    }
}

impl Telemetry {
    /// A pass ended.
    pub fn reconciled(&self, took: Duration, failed: bool) {
        self.passes.inc();
        self.durations.observe(took.as_secs_f64());
        tracing::trace!(?took, failed, "pass");
    }

    /// A pass is to be repeated because of an error.
    pub fn failed(&self) {
        self.failures.inc();
    }

    /// The process can do its work, as leader or as stand-by.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// The process got or lost the Lease.
    pub fn set_leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
    }
}

/// Serves `/livez`, `/readyz` and `/metrics` for as long as the process lives.
pub async fn serve(listener: TcpListener, telemetry: Arc<Telemetry>) -> std::io::Result<()> {
    let app = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(telemetry);
    axum::serve(listener, app).await
}

async fn readyz(State(telemetry): State<Arc<Telemetry>>) -> impl IntoResponse {
    match telemetry.ready.load(Ordering::Relaxed) {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
    }
}

async fn metrics(State(telemetry): State<Arc<Telemetry>>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &telemetry.registry) {
        Ok(()) => {
            ([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
