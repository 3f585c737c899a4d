//! gRPC over a Unix socket, for calls with one request and one answer: CSI and kubelet's registration have no others.
//!
//! On `h2` and `prost` alone: a gRPC framework would add another build of the HTTP stack that the operator has already.

use std::collections::HashMap;
use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use prost::Message;
use tokio::net::{UnixListener, UnixStream};

/// The largest request that is read; gRPC's own default.
const REQUEST_LIMIT_BYTES: usize = 4 << 20;
/// Before each message: one byte "compressed", four bytes length.
const PREFIX_BYTES: usize = 5;

/// The gRPC status codes that this driver answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    InvalidArgument = 3,
    NotFound = 5,
    AlreadyExists = 6,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

/// A call that was not carried out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the caller decides by.
    pub code: Code,
    /// What a person reads.
    pub message: String,
}

impl Refusal {
    /// A refusal with this code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:?})", self.message, self.code)
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Code::Internal, format!("{error:#}"))
    }
}

/// What a method answers.
pub type Answer<T> = Result<T, Refusal>;

type Method = Box<dyn Fn(Bytes) -> BoxFuture<'static, Answer<Bytes>> + Send + Sync>;

/// Methods by their path, such as `/csi.v1.Identity/Probe`.
#[derive(Default)]
pub struct Methods(HashMap<&'static str, Method>);

impl Methods {
    /// Adds a method. The future is dropped when the caller gives up: what must not be left half done is spawned.
    #[must_use]
    pub fn add<Q, A, F>(mut self, path: &'static str, method: impl Fn(Q) -> F + Send + Sync + 'static) -> Self
    where
        Q: Message + Default,
        A: Message,
        F: Future<Output = Answer<A>> + Send + 'static,
    {
        let call = move |request: Bytes| match Q::decode(request) {
            Ok(request) => method(request).map(|answer| answer.map(|a| a.encode_to_vec().into())).boxed(),
            Err(error) => {
                let refusal = Refusal::new(Code::InvalidArgument, format!("the request does not parse: {error}"));
                std::future::ready(Err(refusal)).boxed()
            }
        };
        self.0.insert(path, Box::new(call));
        self
    }
}

/// Listens on a socket of its own, in place of one that an earlier process left.
///
/// # Errors
/// When the folder cannot be made or the socket not bound.
pub fn listen(socket: &Path) -> Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the old socket {}", socket.display()));
        }
        _ => {}
    }
    UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))
}

/// Answers every connection, for as long as it is polled.
pub async fn serve(listener: UnixListener, methods: Arc<Methods>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(serve_connection(stream, methods.clone()));
            }
            Err(error) => tracing::warn!(%error, "cannot accept a connection"),
        }
    }
}

async fn serve_connection(stream: UnixStream, methods: Arc<Methods>) {
    let result: Result<(), h2::Error> = async {
        let mut connection = h2::server::handshake(stream).await?;
        while let Some(call) = connection.accept().await {
            let (request, respond) = call?;
            tokio::spawn(answer_call(request, respond, methods.clone()));
        }
        Ok(())
    }
    .await;
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn answer_call(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, methods: Arc<Methods>) {
    let path = request.uri().path().to_owned();
    let answer = tokio::select! {
        answer = carry_out(&path, request.into_body(), &methods) => answer,
        _ = poll_fn(|context| respond.poll_reset(context)) => {
            tracing::info!(path, "the caller gave up");
            return;
        }
    };
    if let Err(refusal) = &answer {
        tracing::info!(path, %refusal, "refused");
    }
    if let Err(error) = send(&mut respond, answer) {
        tracing::debug!(path, %error, "the caller was gone before its answer");
    }
}

async fn carry_out(path: &str, body: RecvStream, methods: &Methods) -> Answer<Bytes> {
    let message = read_message(body).await?;
    let method = methods.0.get(path);
    let method = method.ok_or_else(|| Refusal::new(Code::Unimplemented, format!("no method {path}")))?;
    method(message).await
}

async fn read_message(mut body: RecvStream) -> Answer<Bytes> {
    let refuse = |message: String| Refusal::new(Code::InvalidArgument, message);
    let mut bytes = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| refuse(format!("the request broke off: {error}")))?;
        // The window is only bookkeeping of HTTP/2; a stream that is gone needs none.
        let _ = body.flow_control().release_capacity(data.len());
        if bytes.len() + data.len() > REQUEST_LIMIT_BYTES {
            return Err(refuse(format!("the request is larger than {REQUEST_LIMIT_BYTES} bytes")));
        }
        bytes.extend_from_slice(&data);
    }
    unframe(&bytes.freeze()).map_err(refuse)
}

fn unframe(bytes: &Bytes) -> Result<Bytes, String> {
    let prefix = bytes.get(..PREFIX_BYTES).ok_or("the request has no message")?;
    if prefix[0] != 0 {
        return Err("the request is compressed, which was not offered".to_owned());
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    let message = bytes.slice(PREFIX_BYTES..);
    if message.len() == length { Ok(message) } else { Err(format!("{} bytes instead of {length}", message.len())) }
}

fn frame(message: &Bytes) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.extend_from_slice(message);
    bytes.freeze()
}

fn send(respond: &mut SendResponse<Bytes>, answer: Answer<Bytes>) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    match answer {
        Ok(message) => {
            let mut stream: SendStream<Bytes> = respond.send_response(response, false)?;
            stream.send_data(frame(&message), false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers)
        }
        Err(refusal) => {
            let headers = response.headers_mut();
            headers.insert("grpc-status", HeaderValue::from(refusal.code as u16));
            if let Ok(message) = HeaderValue::from_str(&percent_encoded(&refusal.message)) {
                headers.insert("grpc-message", message);
            }
            respond.send_response(response, true).map(|_| ())
        }
    }
}

/// As gRPC wants `grpc-message`: printable ASCII as it is, the rest and `%` as hexadecimal bytes.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            if (b' '..=b'~').contains(&byte) && byte != b'%' {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_its_frame_and_a_cut_one_is_refused() {
        let message = Bytes::from_static(b"a message");
        let framed = frame(&message);
        assert_eq!(unframe(&framed), Ok(message));
        for length in 0..framed.len() {
            assert!(unframe(&framed.slice(..length)).is_err(), "{length} bytes passed for a whole message");
        }
    }

    #[test]
    fn messages_for_people_pass_through_a_header() {
        assert_eq!(percent_encoded("100% of \"é\"\n"), "100%25 of \"%C3%A9\"%0A");
    }
}
