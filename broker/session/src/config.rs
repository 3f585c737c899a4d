use holdfast_wire::{FieldTable, FieldValue, ShortStr};

use crate::Mechanism;

/// Limits and names of a connection, the same for all connections of a listener but for the last three.
#[derive(Debug, Clone)]
pub struct Config {
    /// Channels offered in `connection.tune`.
    pub channel_max: u16,
    /// Largest frame offered, octets with overhead.
    pub frame_max: u32,
    /// Heartbeat interval offered, seconds.
    pub heartbeat_s: u16,
    /// From the first octet to `connection.open-ok`, microseconds.
    pub handshake_timeout_us: u64,
    /// How long a `connection.close` of ours waits for its close-ok, microseconds.
    pub close_timeout_us: u64,
    /// Largest body, octets.
    pub message_max_bytes: u64,
    /// Bodies under way and methods held back on all channels together, octets; beyond it the connection is closed
    /// (bodies) or not read (methods).
    pub assembly_max_bytes: usize,
    /// Mechanisms offered, in the order of preference.
    pub mechanisms: Vec<Mechanism>,
    /// Product and version in the server properties.
    pub product: &'static str,
    /// Version in the server properties.
    pub version: &'static str,
    /// The cluster's name in the server properties.
    pub cluster_name: String,
    /// The user that the client certificate names, for EXTERNAL.
    pub external_user: Option<ShortStr>,
    /// Makes server-made consumer tags differ between connections.
    pub tag_seed: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat_s: 60,
            handshake_timeout_us: 10_000_000,
            close_timeout_us: 10_000_000,
            message_max_bytes: 128 << 20,
            assembly_max_bytes: 256 << 20,
            mechanisms: vec![Mechanism::Plain, Mechanism::AmqPlain],
            product: "Holdfast",
            version: env!("CARGO_PKG_VERSION"),
            cluster_name: String::from("holdfast"),
            external_user: None,
            tag_seed: 0,
        }
    }
}

/// What clients may rely on, as RabbitMQ names it.
const CAPABILITIES: [&str; 8] = [
    "publisher_confirms",
    "exchange_exchange_bindings",
    "basic.nack",
    "consumer_cancel_notify",
    "connection.blocked",
    "consumer_priorities",
    "authentication_failure_close",
    "per_consumer_qos",
];

impl Config {
    /// The `server-properties` of `connection.start`.
    pub(crate) fn server_properties(&self) -> FieldTable {
        let capabilities = FieldTable::from_entries(CAPABILITIES.map(|name| (name, FieldValue::Bool(true))));
        FieldTable::from_entries([
            ("capabilities", FieldValue::Table(capabilities.unwrap_or_default())),
            ("cluster_name", FieldValue::text(&self.cluster_name)),
            ("copyright", FieldValue::text("The Holdfast authors")),
            ("information", FieldValue::text("Licensed under the Apache License 2.0")),
            ("platform", FieldValue::text("Rust")),
            ("product", FieldValue::text(self.product)),
            ("version", FieldValue::text(self.version)),
        ])
        .unwrap_or_default()
    }

    /// The `mechanisms` of `connection.start`: names with spaces between.
    pub(crate) fn mechanism_names(&self) -> String {
        let names: Vec<&str> = self.mechanisms.iter().map(|mechanism| mechanism.name()).collect();
        names.join(" ")
    }
}
