//! Links between members: mutual TLS, frames both ways.
//!
//! Every member dials every address that its engine names, so a pair of members has two connections, one dialled by each;
//! the engine sends on the one that its own side dialled and receives on both. A link that breaks is dialled again at
//! once, then with a back-off; names are resolved anew at each attempt, because a pod's address changes. Half-open links
//! are the engine's to notice, by its heartbeats.
//!
//! Both sides prove by certificate that they belong to the cluster. The dialler checks that the certificate is valid for
//! the host it dialled. The acceptor checks that it is valid for the host of some member that it knows, itself included
//! (certificates of one cluster share a wildcard).

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use holdfast_engine::{Input, LinkId, LinkOrigin};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use crate::clock::random_u64;
use crate::config::host_and_port;
use crate::framing::{self, FrameError, FrameReader, MAX_PAYLOAD_BYTES};
use crate::inbox::{Arrival, Inbox};
use crate::listen::accept;
use crate::outgoing::{self, Sender, Writer};
use crate::tls::is_for_any_host;

/// A link with this much waiting is cut, if its socket took nothing for [`STUCK`] as well.
const QUEUED_HIGH_BYTES: usize = 64 << 20;
/// A link with this much waiting is cut in any case.
const QUEUED_MAX_BYTES: usize = 512 << 20;
const STUCK: Duration = Duration::from_secs(1);

const CONNECT: Duration = Duration::from_secs(2);
/// A link on which nothing that was sent has arrived for this long is given up and dialled anew. Without it the system
/// tries again ever more rarely: after a cut of 8 s a link carried nothing for another 5.
const UNACKNOWLEDGED: Duration = Duration::from_secs(2);
const TLS_HANDSHAKE: Duration = Duration::from_secs(5);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_LAST: Duration = Duration::from_secs(1);

/// The core's way to one link.
pub struct LinkHandle {
    out: Sender,
    /// When the socket last took bytes, ms on the links' clock.
    progress: Arc<AtomicU64>,
    stop: CancellationToken,
    clock: Instant,
}

impl LinkHandle {
    /// Queues frames' pieces (see [`LinkHandle::frame`]). Returns false when the other side does not keep up and the link
    /// was cut.
    pub fn send(&self, pieces: Vec<Bytes>) -> bool {
        let queued = self.out.queued();
        let last = Duration::from_millis(self.progress.load(Ordering::Relaxed));
        let stuck = self.clock.elapsed().saturating_sub(last) > STUCK;
        if queued > QUEUED_MAX_BYTES || (queued > QUEUED_HIGH_BYTES && stuck) {
            self.cut();
            return false;
        }
        if queued == 0 {
            self.progress.store(self.clock.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
        self.out.write(pieces);
        true
    }

    /// Adds the pieces of one frame. A payload too large for the wire is left out, with a line in the log.
    pub fn frame(pieces: &mut Vec<Bytes>, payload: Bytes) {
        if payload.len() > MAX_PAYLOAD_BYTES {
            tracing::error!("a frame of {} bytes for another member is too large and was dropped", payload.len());
            return;
        }
        pieces.push(framing::header(&payload));
        pieces.push(payload);
    }

    /// Ends the link now.
    pub fn cut(&self) {
        self.stop.cancel();
    }
}

/// All links of this process.
#[derive(Clone)]
pub struct Peers {
    inbox: Inbox,
    client: Arc<ClientConfig>,
    /// Addresses that are dialled, each with what ends its dialling.
    dialled: Arc<Mutex<BTreeMap<String, CancellationToken>>>,
    own_host: Arc<str>,
    next: Arc<AtomicU64>,
    clock: Instant,
}

impl Peers {
    /// `own_host` is the host under which others reach this member.
    pub fn new(inbox: Inbox, client: Arc<ClientConfig>, own_host: &str) -> Self {
        Self {
            inbox,
            client,
            dialled: Arc::default(),
            own_host: own_host.into(),
            next: Arc::new(AtomicU64::new(1)),
            clock: Instant::now(),
        }
    }

    /// Keeps a link to `address` until [`Peers::undial`]. Doing it twice changes nothing. Needs a tokio runtime.
    pub fn dial(&self, address: String) {
        let mut dialled = self.dialled();
        if dialled.contains_key(&address) {
            return;
        }
        let stop = CancellationToken::new();
        dialled.insert(address.clone(), stop.clone());
        tokio::spawn(self.clone().keep_dialling(address, stop));
    }

    /// Closes the dialled link to `address` and dials no more.
    pub fn undial(&self, address: &str) {
        if let Some(stop) = self.dialled().remove(address) {
            stop.cancel();
        }
    }

    /// Accepts links for ever. Of those that have not shown yet that a member is behind them there may be `unproven` at a
    /// time: anybody may connect, and each takes a file descriptor.
    pub async fn serve(self, listener: TcpListener, tls: Arc<ServerConfig>, unproven: usize) {
        let acceptor = TlsAcceptor::from(tls);
        let room = Arc::new(Semaphore::new(unproven));
        loop {
            let (stream, from) = accept(&listener).await;
            let Ok(permit) = room.clone().try_acquire_owned() else { continue };
            let (peers, acceptor) = (self.clone(), acceptor.clone());
            tokio::spawn(async move {
                if let Err(error) = peers.accepted(acceptor, stream, from, permit).await {
                    tracing::info!("refused a link from {from}: {error}");
                }
            });
        }
    }

    fn dialled(&self) -> MutexGuard<'_, BTreeMap<String, CancellationToken>> {
        self.dialled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn accepted(
        &self,
        acceptor: TlsAcceptor,
        stream: TcpStream,
        from: SocketAddr,
        permit: OwnedSemaphorePermit,
    ) -> io::Result<()> {
        SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        let stream = timeout(TLS_HANDSHAKE, acceptor.accept(stream)).await??;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        if !self.is_for_a_member(&chain) {
            return Err(io::Error::other("its certificate is valid for no member of this cluster"));
        }
        drop(permit);
        let origin = LinkOrigin::Accepted { from: from.to_string() };
        self.link(stream, origin, CancellationToken::new()).await;
        Ok(())
    }

    fn is_for_a_member(&self, chain: &[rustls::pki_types::CertificateDer<'_>]) -> bool {
        let dialled = self.dialled();
        let hosts = dialled.keys().filter_map(|address| host_and_port(address)).map(|(host, _)| host);
        is_for_any_host(chain, std::iter::once(&*self.own_host).chain(hosts))
    }

    async fn keep_dialling(self, address: String, stop: CancellationToken) {
        let mut backoff = BACKOFF_FIRST;
        let mut complaint = String::new();
        while !stop.is_cancelled() {
            let connected = tokio::select! {
                connected = self.connect(&address) => connected,
                () = stop.cancelled() => return,
            };
            match connected {
                Ok(stream) => {
                    tracing::info!("linked to {address}");
                    complaint.clear();
                    let began = Instant::now();
                    let origin = LinkOrigin::Dialled { address: address.clone() };
                    self.link(stream, origin, stop.child_token()).await;
                    if began.elapsed() > BACKOFF_LAST {
                        backoff = BACKOFF_FIRST;
                        continue;
                    }
                }
                Err(error) => {
                    let text = error.to_string();
                    if text != complaint {
                        tracing::info!("cannot reach the member at {address}: {text}");
                        complaint = text;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(backoff)) => {}
                () = stop.cancelled() => return,
            }
            backoff = (backoff * 2).min(BACKOFF_LAST);
        }
    }

    async fn connect(&self, address: &str) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let (host, port) =
            host_and_port(address).ok_or_else(|| io::Error::other(format!("`{address}` is not host:port")))?;
        let name = ServerName::try_from(host.to_string()).map_err(io::Error::other)?;
        let stream = timeout(CONNECT, TcpStream::connect((host, port))).await??;
        stream.set_nodelay(true)?;
        SockRef::from(&stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
        timeout(TLS_HANDSHAKE, TlsConnector::from(self.client.clone()).connect(name, stream)).await?
    }

    /// Carries frames until the link ends, between the core's `LinkUp` and `LinkDown`.
    async fn link(&self, stream: impl AsyncRead + AsyncWrite, origin: LinkOrigin, stop: CancellationToken) {
        let link = LinkId(self.next.fetch_add(1, Ordering::Relaxed));
        let (out, queue) = outgoing::queue();
        let progress = Arc::new(AtomicU64::new(self.clock.elapsed().as_millis() as u64));
        let handle = LinkHandle { out, progress: progress.clone(), stop: stop.clone(), clock: self.clock };
        if self.inbox.peers.send(Arrival::Link { link, origin, handle }, 0).await.is_err() {
            return;
        }
        let (reader, writer) = tokio::io::split(stream);
        let reason = tokio::select! {
            reason = self.receive(link, reader) => reason,
            reason = self.transmit(writer, queue, &progress) => reason,
            () = stop.cancelled() => "closed here".into(),
        };
        let _ = self.inbox.peers.send(Arrival::Input(Input::LinkDown { link, reason }), 0).await;
    }

    async fn receive(&self, link: LinkId, mut reader: impl AsyncRead + Unpin) -> String {
        let mut frames = FrameReader::default();
        loop {
            match frames.next(&mut reader).await {
                Ok(Some(bytes)) => {
                    let count = bytes.len();
                    let input = Input::LinkFrame { link, bytes };
                    if self.inbox.peers.send(Arrival::Input(input), count).await.is_err() {
                        return "the process is ending".into();
                    }
                }
                Ok(None) => return "closed by the other side".into(),
                Err(FrameError::Io(error)) => return error.to_string(),
                Err(error) => {
                    tracing::warn!("a link sent bytes that are no frames: {error}");
                    return error.to_string();
                }
            }
        }
    }

    async fn transmit(&self, mut writer: impl AsyncWrite + Unpin, mut queue: Writer, progress: &AtomicU64) -> String {
        loop {
            match queue.write_some(&mut writer).await {
                Ok(Some(_)) => progress.store(self.clock.elapsed().as_millis() as u64, Ordering::Relaxed),
                Ok(None) => return "closed here".into(),
                Err(error) => return error.to_string(),
            }
        }
    }
}

/// Between half and all of `time`.
fn jittered(time: Duration) -> Duration {
    let share = random_u64().unwrap_or_default() % 512;
    time * (512 + share as u32) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::certificates::Authority;
    use crate::inbox::Lanes;
    use crate::tls::Certificates;

    struct Side {
        peers: Peers,
        lanes: Lanes,
        address: String,
    }

    async fn side(authority: &Authority, name: &str, host: &str) -> Side {
        let certificates = Certificates::load(&authority.issue(name, &[host]).unwrap()).unwrap();
        let (inbox, lanes) = Inbox::new();
        let peers = Peers::new(inbox, certificates.client().unwrap(), "127.0.0.1");
        let listener = crate::listen::listen("127.0.0.1:0".parse().unwrap(), "peer").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(peers.clone().serve(listener, certificates.server_for_members(None).unwrap(), 8));
        Side { peers, lanes, address }
    }

    async fn next(side: &mut Side) -> Arrival {
        timeout(Duration::from_secs(20), side.lanes.peers.recv()).await.expect("within 20 s").unwrap().arrival
    }

    async fn next_handle(side: &mut Side) -> (LinkId, LinkHandle) {
        match next(side).await {
            Arrival::Link { link, handle, .. } => (link, handle),
            _ => panic!("expected a link"),
        }
    }

    #[tokio::test]
    async fn frames_pass_both_ways_and_a_cut_link_is_dialled_again() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let (mut a, mut b) = (side(&authority, "a", "127.0.0.1").await, side(&authority, "b", "127.0.0.1").await);
        a.peers.dial(b.address.clone());
        let (_, to_b) = next_handle(&mut a).await;
        let (_, to_a) = next_handle(&mut b).await;
        for (from, to) in [(&to_b, &mut b), (&to_a, &mut a)] {
            let mut pieces = Vec::new();
            LinkHandle::frame(&mut pieces, Bytes::from_static(b"hello"));
            LinkHandle::frame(&mut pieces, Bytes::from(vec![9; 300_000]));
            assert!(from.send(pieces));
            for size in [5, 300_000] {
                match next(to).await {
                    Arrival::Input(Input::LinkFrame { bytes, .. }) => assert_eq!(bytes.len(), size),
                    _ => panic!("expected a frame"),
                }
            }
        }
        to_a.cut();
        assert!(matches!(next(&mut a).await, Arrival::Input(Input::LinkDown { .. })));
        next_handle(&mut a).await;
    }

    #[tokio::test]
    async fn a_certificate_for_another_host_makes_no_link_even_from_our_authority() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let mut member = side(&authority, "a", "127.0.0.1").await;
        let stranger = side(&authority, "b", "elsewhere.example").await;
        stranger.peers.dial(member.address.clone());
        let waited = timeout(Duration::from_millis(500), member.lanes.peers.recv()).await;
        assert!(waited.is_err(), "no link may come up");
    }
}
