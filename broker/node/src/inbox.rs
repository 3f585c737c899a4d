//! The ways into the core thread, each bounded.
//!
//! Three lanes, so that one kind of traffic cannot starve another: *control* (the journal, password checks, the admin API;
//! bounded by what the core itself asked for), *peers* and *clients*. A lane holds a number of arrivals and a number of
//! bytes; a sender waits for both, which is how a busy core stops reading sockets.

use std::sync::Arc;
use std::time::Instant;

use holdfast_engine::admin::{AdminError, AdminReply, AdminRequest};
use holdfast_engine::{ConnId, Input, LinkId, LinkOrigin};
use holdfast_journal::Written;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::clients::ClientHandle;
use crate::peers::LinkHandle;

/// Arrivals that a lane holds.
const LANE_ARRIVALS: usize = 256;
/// Bytes of inputs that the clients' lane holds.
const CLIENT_BYTES: usize = 16 << 20;
/// Bytes of frames that the peers' lane holds; a larger frame passes alone.
const PEER_BYTES: usize = 64 << 20;
/// Bytes are counted in these, so that a semaphore can hold the number.
const UNIT_BYTES: usize = 1024;

/// Something for the core thread.
pub enum Arrival {
    /// An input, as it is.
    Input(Input),
    /// What the journal has written with one sync, in order, and since when it is durable.
    Written { reports: Vec<Written>, at: Instant },
    /// A client connection and the way back to it.
    Client { conn: ConnId, peer: String, plain_port: bool, handle: ClientHandle },
    /// A link and the way back to it.
    Link { link: LinkId, origin: LinkOrigin, handle: LinkHandle },
    /// An admin request and where its answer goes.
    Admin { body: AdminRequest, reply: oneshot::Sender<Result<AdminReply, AdminError>> },
}

/// An arrival and its share of the lane's bytes, given back when it is dropped.
pub struct Held {
    pub arrival: Arrival,
    _room: Option<OwnedSemaphorePermit>,
}

/// The core thread has ended; the process is about to.
#[derive(Debug)]
pub struct CoreGone;

/// The sending side of one lane.
#[derive(Clone)]
pub struct Lane {
    sender: mpsc::Sender<Held>,
    room: Arc<Semaphore>,
    units: u32,
}

impl Lane {
    fn new(bytes: usize) -> (Self, mpsc::Receiver<Held>) {
        let (sender, receiver) = mpsc::channel(LANE_ARRIVALS);
        let units = bytes / UNIT_BYTES;
        (Self { sender, room: Arc::new(Semaphore::new(units)), units: units as u32 }, receiver)
    }

    /// Hands `arrival`, which keeps `bytes` of memory, to the core; waits while the lane is full.
    pub async fn send(&self, arrival: Arrival, bytes: usize) -> Result<(), CoreGone> {
        let units = ((bytes / UNIT_BYTES) as u32).min(self.units);
        let room = match units {
            0 => None,
            units => Some(self.room.clone().acquire_many_owned(units).await.map_err(|_| CoreGone)?),
        };
        self.sender.send(Held { arrival, _room: room }).await.map_err(|_| CoreGone)
    }

    /// As [`Lane::send`], from a thread that may block.
    pub fn send_blocking(&self, arrival: Arrival) -> Result<(), CoreGone> {
        self.sender.blocking_send(Held { arrival, _room: None }).map_err(|_| CoreGone)
    }
}

/// All ways in.
#[derive(Clone)]
pub struct Inbox {
    pub control: Lane,
    pub peers: Lane,
    pub clients: Lane,
}

/// The core's ends of the lanes.
pub struct Lanes {
    pub control: mpsc::Receiver<Held>,
    pub peers: mpsc::Receiver<Held>,
    pub clients: mpsc::Receiver<Held>,
}

impl Inbox {
    /// New, empty lanes.
    pub fn new() -> (Self, Lanes) {
        let (control, control_end) = Lane::new(CLIENT_BYTES);
        let (peers, peers_end) = Lane::new(PEER_BYTES);
        let (clients, clients_end) = Lane::new(CLIENT_BYTES);
        (Self { control, peers, clients }, Lanes { control: control_end, peers: peers_end, clients: clients_end })
    }

    /// Asks the core and waits for its answer.
    pub async fn admin(&self, body: AdminRequest) -> Result<Result<AdminReply, AdminError>, CoreGone> {
        let (reply, answer) = oneshot::channel();
        self.control.send(Arrival::Admin { body, reply }, 0).await?;
        answer.await.map_err(|_| CoreGone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed() -> Arrival {
        Arrival::Input(Input::ClientClosed { conn: ConnId(1) })
    }

    #[tokio::test]
    async fn a_lane_full_of_bytes_makes_its_senders_wait_until_the_core_takes_some() {
        let (lane, mut end) = Lane::new(4 * UNIT_BYTES);
        lane.send(closed(), 3 * UNIT_BYTES).await.unwrap();
        let second = lane.send(closed(), 2 * UNIT_BYTES);
        tokio::pin!(second);
        assert!(futures_poll(second.as_mut()).await.is_none(), "there is no room yet");
        drop(end.recv().await);
        second.await.unwrap();
    }

    #[tokio::test]
    async fn an_arrival_larger_than_the_lane_passes_alone() {
        let (lane, mut end) = Lane::new(4 * UNIT_BYTES);
        lane.send(closed(), 1 << 30).await.unwrap();
        assert!(end.recv().await.is_some());
    }

    /// The future's result if it is ready now.
    async fn futures_poll<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
        std::future::poll_fn(|context| match std::pin::Pin::new(&mut future).poll(context) {
            std::task::Poll::Ready(out) => std::task::Poll::Ready(Some(out)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }
}
