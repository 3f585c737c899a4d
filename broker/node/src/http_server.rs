//! Serving HTTP/1.1, with or without TLS: the admin API, and probes with metrics.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::listen::accept;

const TLS_HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a connection may take to send the head of a request; idle ones are closed by it too.
const HEADER: Duration = Duration::from_secs(60);

/// Serves `router` for ever, to so many connections at a time.
pub async fn serve(listener: TcpListener, tls: Option<Arc<ServerConfig>>, router: Router, connections: usize) {
    let tls = tls.map(TlsAcceptor::from);
    let room = Arc::new(Semaphore::new(connections));
    loop {
        let (stream, from) = accept(&listener).await;
        let Ok(permit) = room.clone().try_acquire_owned() else { continue };
        let (tls, router) = (tls.clone(), router.clone());
        tokio::spawn(async move {
            let _permit = permit;
            match tls {
                None => connection(stream, router).await,
                Some(acceptor) => match timeout(TLS_HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => connection(stream, router).await,
                    Ok(Err(error)) => tracing::info!("refused an HTTPS connection from {from}: {error}"),
                    Err(_) => tracing::info!("an HTTPS connection from {from} did not finish its handshake"),
                },
            }
        });
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!("an HTTP connection ended: {error}");
    }
}
