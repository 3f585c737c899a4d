//! Restores in place: a queue or a virtual host out of a backup, under a new name, in this cluster.
//!
//! `POST /v1/restore-in-place`: the body is a [`RestoreStep`], as `holdfast-broker restore queue` and `restore vhost` send it. Answered
//! once it is durable on a majority, with `{"messages": N, "complete": false}` where it is about a queue's messages. Any
//! step may be repeated, at any member.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::post;
use holdfast_engine::admin::{AdminAction, AdminErrorKind, AdminReply};
use holdfast_queue::in_place::RestoreStep;
use serde_json::json;

use super::routes::{Admin, Answer, Refusal, Shared, done, surprise};
use crate::inbox::Inbox;

/// The longest body of a message (RabbitMQ's `max_message_size`, 128 MiB), and what goes with it.
const STEP_LIMIT: usize = 144 << 20;

/// The route, for a server that has checked the caller's certificate.
pub fn router(inbox: Inbox, data_dir: PathBuf) -> Router {
    Router::new()
        .route("/v1/restore-in-place", post(step).layer(DefaultBodyLimit::max(STEP_LIMIT)))
        .with_state(Arc::new(Admin::new(inbox, data_dir)))
}

async fn step(State(admin): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let step = RestoreStep::from_bytes(&body).map_err(|error| {
        let error = format!("the body is no step of a restore: {error}");
        Refusal::new(AdminErrorKind::BadRequest, error, "use `holdfast-broker restore queue` of the same version")
    })?;
    match admin.ask(&headers, AdminAction::RestoreStep(Box::new(step))).await? {
        AdminReply::Done => done(),
        AdminReply::InPlace { messages, complete } => {
            Ok(axum::Json(json!({ "messages": messages, "complete": complete })).into_response())
        }
        _ => Err(surprise()),
    }
}
