//! The outer seam of a member: what its driver (the node, the simulator) feeds in and carries out.
//!
//! The driver owns sockets, files and clocks; [`crate::Member`] owns every decision. The protocol between them:
//!
//! 1. call [`crate::Member::handle`] for each input that is ready, many in a row when many are;
//! 2. call [`crate::Member::flush`] once: what was collected leaves as one entry or frame for each destination;
//! 3. take outputs with [`crate::Member::poll`] until it is empty, and carry them out in order;
//! 4. call [`crate::Member::tick`] when [`crate::Member::next_deadline`] has come.
//!
//! Nothing here blocks and nothing needs an answer at once, so outputs may be carried out by other threads; only
//! the order of the outputs to one destination (a client, a link, the journal) must be kept.

use bytes::Bytes;
use holdfast_journal::{Batch, Upkeep, Written};

use crate::admin::{AdminError, AdminReply, AdminRequest};
use crate::backup::{HoldNews, HoldOrder};

/// What a frame for another member holds at most beside one message body, bytes: the frame is closed at 1 MiB, an answer
/// of missed deliveries adds 256 KiB, and each carries the names and properties of its messages.
pub const FRAME_ROOM_BYTES: usize = 2 << 20;

/// A client connection. The driver chooses it and never uses it again while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// One established connection to another member, dialled or accepted; both directions carry frames.
/// The driver chooses it and never uses it again while the process lives: a connection that is dialled anew is a new link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u64);

/// How a link came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkOrigin {
    /// This member dialled the address, as an earlier [`Output::Dial`] asked.
    Dialled { address: String },
    /// The other side dialled; `from` is for messages to people only.
    Accepted { from: String },
}

/// Names one password check between its request and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PasswordToken(pub u64);

/// Names one admin request; chosen by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdminRequestId(pub u64);

/// What happens to a member.
#[derive(Debug)]
pub enum Input {
    /// A client's connection was accepted (and its TLS handshake, if any, is done).
    ClientConnected {
        conn: ConnId,
        /// Address and port, for logs.
        peer: String,
        /// The subject of the client's certificate, for SASL EXTERNAL.
        tls_subject: Option<String>,
        /// True when the connection is not encrypted.
        plain_port: bool,
    },
    /// Bytes from a client, split anywhere.
    ClientBytes { conn: ConnId, bytes: Bytes },
    /// The kernel took bytes of this connection: `total` counts all since it began. Report it when the socket took
    /// something, at most once for each connection and round. It releases held deliveries, and tells that deliveries
    /// without acknowledgement have left.
    ClientWritten { conn: ConnId, total: u64 },
    /// The client's connection ended, by whichever side.
    ClientClosed { conn: ConnId },

    /// A link to another member stands.
    LinkUp { link: LinkId, origin: LinkOrigin },
    /// One whole frame from a link (the driver frames by length and checksum).
    LinkFrame { link: LinkId, bytes: Bytes },
    /// A link broke. Every `LinkUp` is followed by exactly one `LinkDown`.
    LinkDown { link: LinkId, reason: String },

    /// A batch is durable, checkpoints included. Batches are reported in the order they were handed out.
    Written(Written),
    /// What [`holdfast_journal::Journal::upkeep`] gave: the room on the disk ([`holdfast_journal::Space::low`] is the disk
    /// alarm), and what replicas must know of the journal's own work.
    Upkeep(Upkeep),
    /// The memory of the process, as the driver sees it about once a second.
    Memory(Memory),
    /// The journal failed: nothing after this is durable. The member answers with [`Output::Exit`].
    WriteFailed { error: String },

    /// What came of an [`Output::Hold`].
    Hold(HoldNews),
    /// The answer to [`Output::CheckPassword`].
    PasswordChecked { token: PasswordToken, ok: bool },
    /// A request to the admin API; answered by one [`Output::AdminReply`] with the same id.
    Admin { request: AdminRequestId, body: AdminRequest },
    /// Stop in an orderly way: hand leaderships over, close clients, then [`Output::Exit`].
    Shutdown,
}

/// What a member wants done.
#[derive(Debug)]
pub enum Output {
    /// Bytes for a client, in order.
    ClientSend { conn: ConnId, bytes: Bytes },
    /// Close the connection once what was sent before is written (or after a short linger), then report
    /// [`Input::ClientClosed`] unless that was already done.
    ClientClose { conn: ConnId },
    /// Stop (`paused`) or go on reading from a client: publishing runs ahead of what the cluster takes in.
    ClientPause { conn: ConnId, paused: bool },

    /// Keep a connection to this `host:port` open: dial, and dial again after it breaks (at once, then with a
    /// back-off of 50 ms to 1 s), until [`Output::Undial`]. Each success is a new [`Input::LinkUp`].
    Dial { address: String },
    /// Close and do not dial any more.
    Undial { address: String },
    /// One whole frame for a link, of no more bytes than the largest body that clients may publish and
    /// [`FRAME_ROOM_BYTES`]; silently dropped when the link is gone.
    LinkSend { link: LinkId, bytes: Bytes },
    /// Close a link; the reason is for the log.
    LinkClose { link: LinkId, reason: String },

    /// Hand to the journal, in order. Its own batches carry the identity too.
    Journal(Batch),
    /// Do this about files that are held for a backup.
    Hold(HoldOrder),
    /// Check `password` against the stored `hash` (PHC string) outside the core.
    CheckPassword { token: PasswordToken, hash: String, password: Bytes },
    /// The answer to an admin request.
    AdminReply { request: AdminRequestId, reply: Result<AdminReply, AdminError> },
    /// Something worth a line in the log.
    Event(Event),
    /// The process must end now. `clean` after an orderly shutdown; otherwise the reason is an error.
    Exit { clean: bool, reason: String },
    /// The process must end now: the cluster was recovered without this disk, which is left as it is.
    LeftBehind { reason: String },
}

/// What the process takes of the machine's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident now.
    pub used_bytes: u64,
    /// Publishers must wait while more than this is in use; 0 for no limit.
    pub high_watermark_bytes: u64,
}

/// How serious an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Info,
    Warning,
    Error,
}

/// A line for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub severity: Severity,
    pub text: String,
}
