//! AMQP connection and channel state machines, without I/O.
//!
//! [`Connection`] takes octets and time and gives [`Request`]s to the engine and octets to the client. It holds all
//! that is AMQP about a client: handshake, heartbeats, channels, content assembly, delivery tags, confirm numbers,
//! errors. It knows no queue: what it does not decide by itself it asks the engine, in the client's order.

mod assembly;
mod calls;
mod channel;
mod config;
mod confirms;
mod connection;
mod error;
mod handshake;
mod heartbeat;
mod intake;
mod outbox;
mod request;
mod sasl;
mod unacked;

pub use config::Config;
pub use connection::Connection;
pub use error::AmqpError;
pub use request::{
    Call, ChannelId, Credentials, Delivery, LostReason, Mechanism, Outcome, Publish, Refusal, Reply, Request, Settle,
};
