//! The plain port: `/livez`, `/readyz`, `/metrics`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::clock::Clock;
use crate::metrics::{self, NodeMetrics};

/// A core thread that finished no round for this long hangs, and the process should be started again.
const HANGS_AFTER_MS: u64 = 30_000;

struct Probes {
    metrics: Arc<NodeMetrics>,
    clock: Clock,
    data_dir: PathBuf,
}

/// The routes.
pub fn router(metrics: Arc<NodeMetrics>, clock: Clock, data_dir: PathBuf) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .with_state(Arc::new(Probes { metrics, clock, data_dir }))
}

/// 200 while the core thread works.
async fn livez(State(probes): State<Arc<Probes>>) -> Response {
    let silent_ms = (probes.clock.now().0 / 1000).saturating_sub(probes.metrics.last_round_ms.load(Ordering::Relaxed));
    if silent_ms > HANGS_AFTER_MS {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("the core thread hangs for {silent_ms} ms\n"))
            .into_response();
    }
    "ok\n".into_response()
}

/// 200 once every replica here reached the commit index seen at start; it stays so.
async fn readyz(State(probes): State<Arc<Probes>>) -> Response {
    if probes.metrics.ready.load(Ordering::Relaxed) {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "not ready: no cluster yet, or still catching up\n").into_response()
}

async fn show_metrics(State(probes): State<Arc<Probes>>) -> Response {
    let free_bytes = rustix::fs::statvfs(&probes.data_dir).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    match metrics::render(&probes.metrics, free_bytes) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
