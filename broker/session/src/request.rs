use bytes::Bytes;
use holdfast_wire::{FieldTable, Properties, ReplyCode, ShortStr};

use crate::AmqpError;

/// One opening of a channel number. A number that was closed and opened again has a new generation, so that a late
/// reply for the old one is told apart and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId {
    /// The channel number on the wire, from 1.
    pub number: u16,
    /// Counts the openings of channels on this connection, from 1.
    pub generation: u32,
}

/// What a session asks of the engine, in the order in which the client asked.
///
/// "Answered" requests stop their channel (or the connection) until the engine has answered: later methods wait
/// inside the session, so nothing overtakes them. The others are notices.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Check a log-in. Answered with [`crate::Connection::reply_authenticated`].
    Authenticate(Credentials),
    /// Open a virtual host for the user. Answered with [`crate::Connection::reply_vhost`].
    OpenVhost { vhost: ShortStr },
    /// `connection.update-secret`. Answered with [`crate::Connection::reply_secret_updated`].
    UpdateSecret { secret: Bytes, reason: ShortStr },
    /// The client closes the connection: answered with [`crate::Connection::reply_connection_closed`] once every
    /// publish of every channel is durable. Only settlements may come after it; what is left unsettled then returns.
    CloseConnection,
    /// The connection is lost (hard error, heartbeat, failed handshake, or an error of the client's own telling).
    /// Everything that belongs to the session may go; nothing is answered, nothing else comes after it.
    ConnectionLost { why: LostReason },

    /// A channel is open. A notice.
    OpenChannel { channel: ChannelId },
    /// The client closes a channel: answered with [`Reply::Done`] once every publish of it is durable.
    CloseChannel { channel: ChannelId },
    /// A channel ended by an error. A notice: its consumers and unacknowledged deliveries may go. A `CloseChannel` may follow:
    /// the client closes it too, and its close-ok waits for the publishes and settlements that came before.
    ChannelLost { channel: ChannelId },

    /// A message. Not answered; the engine reports its end with `confirm` or `reject_publish`, and `return_message` before that.
    Publish(Publish),
    /// Deliveries are acknowledged or given back. A notice.
    Settle(Settle),
    /// A synchronous method on a channel. Answered with [`crate::Connection::reply`].
    Call { channel: ChannelId, call: Call },
}

impl Request {
    /// True for what a channel asks while it is open; its opening and its loss are not among that.
    pub fn is_of(&self, id: ChannelId) -> bool {
        match self {
            Request::Publish(publish) => publish.channel == id,
            Request::Settle(settle) => settle.channel == id,
            Request::Call { channel, .. } | Request::CloseChannel { channel } => *channel == id,
            _ => false,
        }
    }
}

/// The log-in mechanisms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mechanism {
    /// RFC 4616.
    Plain,
    /// AMQP 0-9-1's own: a table with LOGIN and PASSWORD.
    AmqPlain,
    /// The client certificate's name.
    External,
    /// No password.
    Anonymous,
}

impl Mechanism {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::AmqPlain => "AMQPLAIN",
            Mechanism::External => "EXTERNAL",
            Mechanism::Anonymous => "ANONYMOUS",
        }
    }
}

/// What the client presented.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// By which mechanism.
    pub mechanism: Mechanism,
    /// The user's name.
    pub user: ShortStr,
    /// The password in clear; empty for EXTERNAL and ANONYMOUS.
    pub password: Bytes,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({:?}, {:?})", self.mechanism, self.user)
    }
}

/// Why a connection was lost, for the log and the listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LostReason {
    /// The protocol header was not that of 0-9-1.
    ProtocolHeader {
        /// What the client sent instead, at most eight octets.
        received: Bytes,
    },
    /// The handshake did not end in time.
    HandshakeTimeout,
    /// Nothing was heard for two heartbeat intervals.
    Heartbeat,
    /// The log-in was refused.
    LoginRefused,
    /// A hard error, sent to the client in `connection.close`.
    Error(AmqpError),
}

impl std::fmt::Display for LostReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LostReason::ProtocolHeader { received } => {
                let guess = match &received[..] {
                    [0x16, ..] => " (TLS: is it meant for the port with TLS?)",
                    [b'A', b'M', b'Q', b'P', ..] => " (another version of AMQP)",
                    received if received.iter().all(|octet| octet.is_ascii_graphic() || *octet == b' ') => {
                        " (text, such as HTTP)"
                    }
                    _ => "",
                };
                write!(f, "it does not speak AMQP 0-9-1: it began with \"{}\"{guess}", received.escape_ascii())
            }
            LostReason::HandshakeTimeout => f.write_str("it did not log in in time"),
            LostReason::Heartbeat => f.write_str("nothing was heard of it for two heartbeat intervals"),
            LostReason::LoginRefused => f.write_str("its log-in was refused"),
            LostReason::Error(error) => write!(f, "it was closed with {} {error}", error.code.number()),
        }
    }
}

/// A published message. All fields are slices of what the client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The channel it came in on.
    pub channel: ChannelId,
    /// Its number on this channel: 1, 2, 3 …, in confirm mode or not. The engine's handle for `confirm`.
    pub seq: u64,
    /// True where the client waits for a confirm.
    pub confirm: bool,
    /// The exchange; empty is the default one.
    pub exchange: ShortStr,
    /// The routing key.
    pub routing_key: ShortStr,
    /// Return it if no queue takes it.
    pub mandatory: bool,
    /// The property list; `user_id` has been checked, and `expiration` is not there.
    pub properties: Properties,
    /// The body.
    pub body: Bytes,
}

/// What becomes of deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged (also by the session, once the octets of a no-ack delivery were handed out).
    Ack,
    /// Back to its place.
    Requeue,
    /// Dropped or dead-lettered.
    Reject,
}

/// Consecutive deliveries of one consumer from one queue, with the engine's own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settle {
    /// The channel that had them.
    pub channel: ChannelId,
    /// The consumer's number on that channel.
    pub consumer: u32,
    /// The queue, as the engine gave it in [`Delivery::queue`].
    pub queue: u64,
    /// The first delivery number, as the engine gave it.
    pub first: u64,
    /// The last delivery number, inclusive.
    pub last: u64,
    /// What becomes of them.
    pub outcome: Outcome,
}

/// The synchronous methods. Queue names are never empty except in `DeclareQueue`, where the engine makes a name up.
/// Where `no_wait` was set the engine answers all the same, and the session sends nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// → [`Reply::Done`].
    DeclareExchange {
        name: ShortStr,
        kind: ShortStr,
        passive: bool,
        durable: bool,
        auto_delete: bool,
        internal: bool,
        arguments: FieldTable,
    },
    /// → [`Reply::Done`].
    DeleteExchange { name: ShortStr, if_unused: bool },
    /// → [`Reply::Done`].
    BindExchange { destination: ShortStr, source: ShortStr, routing_key: ShortStr, arguments: FieldTable },
    /// → [`Reply::Done`].
    UnbindExchange { destination: ShortStr, source: ShortStr, routing_key: ShortStr, arguments: FieldTable },
    /// → [`Reply::Declared`].
    DeclareQueue {
        name: ShortStr,
        passive: bool,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: FieldTable,
    },
    /// → [`Reply::Done`].
    BindQueue { queue: ShortStr, exchange: ShortStr, routing_key: ShortStr, arguments: FieldTable },
    /// → [`Reply::Done`].
    UnbindQueue { queue: ShortStr, exchange: ShortStr, routing_key: ShortStr, arguments: FieldTable },
    /// → [`Reply::Messages`].
    PurgeQueue { queue: ShortStr },
    /// → [`Reply::Messages`].
    DeleteQueue { queue: ShortStr, if_unused: bool, if_empty: bool },
    /// → [`Reply::Done`], and only then the first `deliver`. `prefetch` 0 = no limit.
    Consume {
        queue: ShortStr,
        consumer: u32,
        tag: ShortStr,
        no_local: bool,
        no_ack: bool,
        exclusive: bool,
        prefetch: u16,
        arguments: FieldTable,
    },
    /// → [`Reply::Done`]. What is delivered afterwards all the same is given back with [`Outcome::Requeue`].
    Cancel { consumer: u32, tag: ShortStr },
    /// → [`Reply::Got`] or [`Reply::Empty`]. `consumer` is a number for this one delivery.
    Get { queue: ShortStr, consumer: u32, no_ack: bool },
    /// The session has done what was asked (`basic.qos`, `basic.recover`, `confirm.select`) → [`Reply::Done`] once what
    /// the channel settled before is durable: a client may take any synchronous reply as the proof of its acks.
    Sync,
    /// → [`Reply::Done`], or [`Reply::Failed`] with 540 where transactions are not offered.
    SelectTx,
    /// All publishes and settlements since the last commit → [`Reply::Done`] once they are durable.
    CommitTx { publishes: Vec<Publish>, settles: Vec<Settle> },
}

/// A message on its way to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The queue: an opaque number of the engine's, which comes back in [`Settle::queue`].
    pub queue: u64,
    /// The delivery number: the engine's, comes back in [`Settle`]. Consecutive ones are settled as ranges.
    pub number: u64,
    /// Delivered before.
    pub redelivered: bool,
    /// The exchange it was published to.
    pub exchange: ShortStr,
    /// The routing key it was published with.
    pub routing_key: ShortStr,
    /// The encoded property list ([`Properties::as_bytes`]).
    pub properties: Bytes,
    /// The body.
    pub body: Bytes,
}

impl Delivery {
    /// About what it keeps in memory, octets.
    pub fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.properties.len() + self.body.len()
    }
}

/// The engine's answer to a [`Call`] or to `CloseChannel`.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Done, nothing to tell.
    Done,
    /// `queue.declare-ok`.
    Declared { queue: ShortStr, messages: u32, consumers: u32 },
    /// Purged, or deleted with the queue.
    Messages(u32),
    /// A message for `basic.get`, and how many are left.
    Got { delivery: Delivery, remaining: u32 },
    /// No message for `basic.get`.
    Empty,
    /// Refused: a soft code closes the channel, a hard one the connection.
    Failed(Refusal),
}

/// A refusal by the engine. The session puts the code's name before `text` and adds class and method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reply code.
    pub code: ReplyCode,
    /// The text without the code's name, e.g. `no queue 'q' in vhost '/'`.
    pub text: String,
}

impl Refusal {
    /// A refusal with this text.
    pub fn new(code: ReplyCode, text: impl Into<String>) -> Refusal {
        Refusal { code, text: text.into() }
    }
}
