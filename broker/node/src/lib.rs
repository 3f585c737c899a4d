//! The broker process: sockets, TLS, timers, files, admin HTTP and metrics around [`holdfast_engine::Member`].
//!
//! ```text
//!   AMQP sockets ──┐                        ┌── bytes ──► sockets, links
//!   peer links ────┼─► lanes ─► core thread ┼── batches ► journal thread ─► fdatasync ─► Written ─┐
//!   admin HTTP ────┘   (bounded)  (Member)  └── checks ─► password threads                        │
//!                          ▲──────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Sockets live on a small tokio runtime; the member on one thread of its own ([`core`]), which lends its Raft groups to
//! worker threads ([`crew`]); the journal on another ([`journal_thread`]). What a client or a peer can fill is bounded: the lanes ([`inbox`]), what waits for a client's
//! socket ([`clients`]), what waits for a link ([`peers`]), what waits for the disk ([`core`]).

pub mod admin;
mod backup_command;
pub mod clients;
pub mod clock;
pub mod config;
pub mod core;
pub mod crew;
pub mod data_dir;
pub mod descriptors;
pub mod dev;
pub mod failure;
pub mod framing;
pub mod hold_dirs;
pub mod holds;
pub mod http_server;
mod in_place_command;
pub mod inbox;
pub mod journal_command;
pub mod journal_pause;
pub mod journal_thread;
pub mod listen;
pub mod logging;
pub mod measured_files;
pub mod memory;
pub mod metrics;
pub mod outgoing;
pub mod passwords;
pub mod peers;
pub mod pre_stop;
pub mod probes;
pub mod push_command;
pub mod received;
pub mod recover_command;
pub mod recovery_dirs;
pub mod recovery_plan;
pub mod restore_command;
pub mod restored_journal;
pub mod run;
pub mod tls;
