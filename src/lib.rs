//! Holdfast's operator: turns a `MessageQueueCluster` into brokers, watches them, and protects their leaders.
//!
//! ```text
//!  watch events ─► one reconcile a cluster:
//!                  observe ─► validate ─► plan ─► build ─► apply ─► status
//!                  reads      pure        pure    pure     writes   one patch
//!                  API and                                 API and
//!                  brokers                                 brokers
//! ```
//!
//! The brokers elect leaders and keep messages safe without the operator. It creates them once, asks for leaders to be
//! moved before it takes a pod away, keeps connections off brokers that do not answer, and reports.
//!
//! Invariants: only `observe`, `apply` and the status patch touch the API; `now` is an argument; one function removes
//! pods; a cluster is founded once in its life; the user's spec is never written.

pub mod api;
pub mod broker_admin;
pub mod certificates;
pub mod controllers;
pub mod lease;
pub mod telemetry;
