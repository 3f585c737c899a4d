//! AMQP connections: bytes between sockets and the core.
//!
//! Per connection there is one reader and one writer in one task. A client that does not read what it is sent is not read
//! either, once [`QUEUED_HIGH_BYTES`] wait for it; the engine also pauses connections that publish faster than the cluster
//! takes in.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use holdfast_engine::{ConnId, Input};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::inbox::{Arrival, CoreGone, Inbox};
use crate::listen::accept;
use crate::metrics::NodeMetrics;
use crate::outgoing::{self, Level, Sender, Writer};

/// A client is not read while more than this waits to be written to it.
const QUEUED_HIGH_BYTES: usize = 4 << 20;
/// Read sizes: idle connections keep the small one, busy ones grow to the large one.
const READ_MIN_BYTES: usize = 4 << 10;
const READ_MAX_BYTES: usize = 128 << 10;
const TLS_HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a closed connection is kept open for the client to read what it was sent.
const LINGER: Duration = Duration::from_secs(2);

/// The core's way to one client.
pub struct ClientHandle {
    pub out: Sender,
    /// True while the engine wants no more bytes from the client.
    pub paused: watch::Sender<bool>,
}

/// What all listeners of clients share.
#[derive(Clone)]
pub struct Clients {
    inbox: Inbox,
    metrics: Arc<NodeMetrics>,
    next: Arc<AtomicU64>,
    room: Arc<Semaphore>,
}

impl Clients {
    /// At most `limit` connections at a time.
    pub fn new(inbox: Inbox, metrics: Arc<NodeMetrics>, limit: usize) -> Self {
        let room = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        Self { inbox, metrics, next: Arc::new(AtomicU64::new(1)), room }
    }

    /// Serves a listener for ever. With `tls`, each connection starts with a TLS handshake.
    pub async fn serve(self, listener: TcpListener, tls: Option<Arc<ServerConfig>>) {
        let tls = tls.map(TlsAcceptor::from);
        loop {
            let (stream, from) = accept(&listener).await;
            let Ok(permit) = self.room.clone().try_acquire_owned() else {
                tracing::warn!(
                    "refused a connection from {from}: there are as many as limits.connections, or the file descriptors, allow"
                );
                continue;
            };
            self.metrics.connections_opened.inc();
            let (clients, tls) = (self.clone(), tls.clone());
            tokio::spawn(async move {
                let _permit = permit;
                match tls {
                    None => clients.plain(stream, from).await,
                    Some(acceptor) => clients.encrypted(acceptor, stream, from).await,
                }
                clients.metrics.connections_closed.inc();
            });
        }
    }

    async fn plain(&self, mut stream: TcpStream, from: SocketAddr) {
        let (reader, writer) = stream.split();
        self.connection(reader, writer, from, true).await;
    }

    async fn encrypted(&self, acceptor: TlsAcceptor, stream: TcpStream, from: SocketAddr) {
        match timeout(TLS_HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                let (reader, writer) = tokio::io::split(stream);
                self.connection(reader, writer, from, false).await;
            }
            Ok(Err(error)) => tracing::info!("TLS with the client at {from} failed: {error}"),
            Err(_) => tracing::info!("the client at {from} did not finish its TLS handshake"),
        }
    }

    async fn connection(
        &self,
        mut reader: impl AsyncRead + Unpin,
        mut writer: impl AsyncWrite + Unpin,
        from: SocketAddr,
        plain_port: bool,
    ) {
        let conn = ConnId(self.next.fetch_add(1, Ordering::Relaxed));
        let (out, mut queue) = outgoing::queue();
        let (paused, pause) = watch::channel(false);
        let handle = ClientHandle { out, paused };
        let arrival = Arrival::Client { conn, peer: from.to_string(), plain_port, handle };
        if self.inbox.clients.send(arrival, 0).await.is_err() {
            return;
        }
        let level = queue.level();
        let ended = tokio::select! {
            ended = self.read(conn, &mut reader, pause, &level) => ended,
            ended = self.write(conn, &mut writer, &mut queue) => ended,
        };
        let orderly = matches!(ended, Ok(Ended::ByCore));
        let _ = self.inbox.clients.send(Arrival::Input(Input::ClientClosed { conn }), 0).await;
        drop(queue);
        if orderly && writer.shutdown().await.is_ok() {
            // Closing a socket that holds unread bytes resets it, and the client might lose the last frames.
            let _ = timeout(LINGER, tokio::io::copy(&mut reader, &mut tokio::io::sink())).await;
        }
        if let Err(error) = ended {
            tracing::debug!("the connection from {from} broke: {error}");
        }
    }

    async fn read(
        &self,
        conn: ConnId,
        reader: &mut (impl AsyncRead + Unpin),
        mut pause: watch::Receiver<bool>,
        level: &Level,
    ) -> io::Result<Ended> {
        let mut size = READ_MIN_BYTES;
        let mut buffer = BytesMut::new();
        loop {
            level.at_most(QUEUED_HIGH_BYTES).await;
            if pause.wait_for(|paused| !paused).await.is_err() {
                // The core dropped the handle: the writer ends the connection.
                std::future::pending::<()>().await;
            }
            if buffer.capacity() < READ_MIN_BYTES {
                buffer.reserve(size);
            }
            let room = buffer.capacity();
            let count = reader.read_buf(&mut buffer).await?;
            if count == 0 {
                return Ok(Ended::ByClient);
            }
            size = if count == room { (size * 2).min(READ_MAX_BYTES) } else { (size / 2).max(READ_MIN_BYTES) };
            let bytes = buffer.split().freeze();
            let input = Input::ClientBytes { conn, bytes };
            self.inbox.clients.send(Arrival::Input(input), count).await.map_err(gone)?;
        }
    }

    async fn write(
        &self,
        conn: ConnId,
        writer: &mut (impl AsyncWrite + Unpin),
        queue: &mut Writer,
    ) -> io::Result<Ended> {
        let mut total = 0;
        while let Some(taken) = queue.write_some(writer).await? {
            total += taken as u64;
            let input = Input::ClientWritten { conn, total };
            self.inbox.clients.send(Arrival::Input(input), 0).await.map_err(gone)?;
        }
        Ok(Ended::ByCore)
    }
}

/// How a connection ended.
enum Ended {
    /// The engine closed it; everything was written.
    ByCore,
    /// The client closed it.
    ByClient,
}

fn gone(_: CoreGone) -> io::Error {
    io::Error::other("the process is ending")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::certificates::Authority;
    use crate::inbox::Lanes;
    use crate::tls::Certificates;
    use bytes::Bytes;
    use rustls::pki_types::ServerName;
    use tokio_rustls::TlsConnector;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn next(lanes: &mut Lanes) -> Arrival {
        timeout(PATIENCE, lanes.clients.recv()).await.expect("an arrival in time").unwrap().arrival
    }

    /// Sends `ping`, and reads to the end what the other side of `lanes` answers before it closes.
    async fn converse(stream: impl AsyncRead + AsyncWrite, lanes: &mut Lanes, plain: bool) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        writer.write_all(b"ping").await.unwrap();
        let Arrival::Client { plain_port, handle, .. } = next(lanes).await else { panic!("a new client first") };
        assert_eq!(plain_port, plain);
        let Arrival::Input(Input::ClientBytes { bytes, .. }) = next(lanes).await else { panic!("then its bytes") };
        assert_eq!(bytes, "ping");
        handle.out.write(vec![Bytes::from_static(b"refused: "), Bytes::from(vec![b'x'; 100_000])]);
        handle.out.close();
        // Bytes that nobody reads must not cost the client the answer.
        writer.write_all(&[0; 1000]).await.unwrap();
        let mut answer = Vec::new();
        timeout(PATIENCE, reader.read_to_end(&mut answer)).await.expect("an end in time").unwrap();
        assert_eq!((answer.len(), &answer[..9]), (100_009, &b"refused: "[..]));
    }

    async fn until_closed(lanes: &mut Lanes) -> u64 {
        let mut written = 0;
        loop {
            match next(lanes).await {
                Arrival::Input(Input::ClientWritten { total, .. }) => written = total,
                Arrival::Input(Input::ClientClosed { .. }) => return written,
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn bytes_pass_with_and_without_tls_and_the_last_ones_are_readable_after_a_close() {
        let dir = tempfile::tempdir().unwrap();
        let files = Authority::load_or_create(dir.path()).unwrap().issue("m", &["localhost"]).unwrap();
        let certificates = Certificates::load(&files).unwrap();
        for tls in [false, true] {
            let (inbox, mut lanes) = Inbox::new();
            let listener = crate::listen::listen("127.0.0.1:0".parse().unwrap(), "amqp").unwrap();
            let address = listener.local_addr().unwrap();
            let server = tls.then(|| certificates.server_for_clients().unwrap());
            tokio::spawn(Clients::new(inbox, NodeMetrics::new(), 10).serve(listener, server));
            let stream = TcpStream::connect(address).await.unwrap();
            if tls {
                let name = ServerName::try_from("localhost").unwrap();
                let connector = TlsConnector::from(certificates.client().unwrap());
                converse(connector.connect(name, stream).await.unwrap(), &mut lanes, false).await;
            } else {
                converse(stream, &mut lanes, true).await;
            }
            assert_eq!(until_closed(&mut lanes).await, 100_009, "all of it is reported as taken");
        }
    }

    #[tokio::test]
    async fn a_paused_client_is_not_read_until_it_may_go_on() {
        let (inbox, mut lanes) = Inbox::new();
        let listener = crate::listen::listen("127.0.0.1:0".parse().unwrap(), "amqp").unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(Clients::new(inbox, NodeMetrics::new(), 10).serve(listener, None));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let Arrival::Client { handle, .. } = next(&mut lanes).await else { panic!("a new client first") };
        handle.paused.send_replace(true);
        // A read that was under way when the pause came may still deliver; nothing after it does.
        stream.write_all(b"1").await.unwrap();
        let _ = timeout(Duration::from_millis(200), lanes.clients.recv()).await;
        stream.write_all(b"2").await.unwrap();
        assert!(timeout(Duration::from_millis(200), lanes.clients.recv()).await.is_err(), "paused");
        handle.paused.send_replace(false);
        assert!(matches!(next(&mut lanes).await, Arrival::Input(Input::ClientBytes { .. })));
    }
}
