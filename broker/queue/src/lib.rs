//! The deterministic machines: queues, and the cluster's metadata.
//!
//! Nothing here does I/O, reads a clock or draws a random number. A machine takes the payloads of committed log entries
//! and gives effects; message contents stay in the journal, the state holds only where they are.

pub mod arguments;
pub mod codec;
pub mod ids;
pub mod in_place;
pub mod machine;
pub mod meta;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod packed;
pub mod queue;
mod router;
mod snapshot;
pub mod streams;
pub mod time;

pub use machine::{AnyEffect, AnyMachine, ApplyMeta, Machine};
pub use router::{Publication, RouteError, Router};
