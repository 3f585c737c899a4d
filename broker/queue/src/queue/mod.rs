//! The machine of a queue group: a map of queues, and the streams of the homes that use them.

mod command;
mod consumer;
mod deleted;
mod effect;
mod live;
mod machine;
mod ready;
mod rotation;
mod state;

pub use command::{Outcome, QueueCommand, QueueSettings, Span};
pub use effect::{CancelReason, Delivery, QueueEffect, QueueReply, QueueStats};
pub use machine::{Outstanding, QueueMachine};
