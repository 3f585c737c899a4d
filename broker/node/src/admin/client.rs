//! A caller of the admin API, for `dev`, `pre-stop` and restores in place.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::json::ErrorBody;
use super::routes::TOKEN_HEADER;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("no answer: {0}")]
    Unreachable(String),
    #[error("{status}: {error} ({hint})")]
    Refused { status: u16, error: String, hint: String },
}

/// One member's admin API.
pub struct AdminClient {
    /// Where to connect.
    pub address: std::net::SocketAddr,
    /// The host that the member's certificate is for.
    pub host: String,
    pub tls: Arc<ClientConfig>,
}

impl AdminClient {
    /// One request on a connection of its own, bounded by `patience`. The answer is JSON.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        patience: Duration,
    ) -> Result<Value, CallError> {
        let bytes = body.map(|value| value.to_string()).unwrap_or_default();
        self.send(method, path, (bytes.into(), None), patience).await
    }

    /// The same with any body, and the operator's token where there is one.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        (body, token): (Bytes, Option<u64>),
        patience: Duration,
    ) -> Result<Value, CallError> {
        let unreachable = |error: &dyn std::fmt::Display| CallError::Unreachable(error.to_string());
        let answer = timeout(patience, self.exchange(method, path, body, token)).await;
        let (status, bytes) = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(unreachable(&error)),
            Err(_) => return Err(unreachable(&format!("nothing within {patience:?}"))),
        };
        if (200..300).contains(&status) {
            return serde_json::from_slice(&bytes).map_err(|error| unreachable(&error));
        }
        let ErrorBody { error, hint } = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| ErrorBody { error: String::from_utf8_lossy(&bytes).into_owned(), hint: String::new() });
        Err(CallError::Refused { status, error, hint })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        token: Option<u64>,
    ) -> Result<(u16, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from(self.host.clone())?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driving = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, &self.host)
            .header(http::header::CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(TOKEN_HEADER, token);
        }
        let response = sender.send_request(request.body(Full::new(body))?).await?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        driving.abort();
        Ok((status, bytes))
    }
}
