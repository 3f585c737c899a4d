//! `holdfast-broker restore push`: a copy of a member's hold is sent to a blank member, as the pod does that mounts a
//! snapshot's volume. What is there already is not sent again, and what other copies have is not sent at all.

use std::fs::File;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use holdfast_engine::backup::FileEntry;
use holdfast_journal::{FileSystem, RealFileSystem, StoredFile};
use http::{Method, Request};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, SizeHint};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use crate::admin::json::ErrorBody;
use crate::admin::routes::TOKEN_HEADER;
use crate::config::{TlsFiles, host_and_port};
use crate::failure::{ExitKind, Failure};
use crate::hold_dirs::{hold_in, member_of, read_manifest, sha256_hex};
use crate::tls::Certificates;

/// A file travels in pieces of this size.
const PIECE_BYTES: usize = 256 << 10;
/// A request that makes no progress for so long has failed.
const SILENT_FOR: Duration = Duration::from_secs(60);
/// A network that carries less is as good as none.
const SLOWEST_BYTES_A_SECOND: u64 = 256 << 10;
/// Damaged files that a failure names.
const NAMED: usize = 20;
/// Between two attempts.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// It is asked this often whether more is needed, and the progress is told.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// `restore push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The backup's manifest.json.
    #[arg(long, value_name = "FILE")]
    manifest: PathBuf,
    /// The SHA-256 that the barrier's answer gave of it.
    #[arg(long, value_name = "HEX")]
    manifest_sha256: Option<String>,
    /// What the restore is called; without it as the backup in the manifest.
    #[arg(long, value_name = "NAME")]
    backup: Option<String>,
    /// A copy of a member's data directory, or of its hold.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Whose copy it is, where its hold.json does not say so.
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    /// The admin API of the member that is to found the new cluster.
    #[arg(long, value_name = "https://HOST:PORT")]
    to: String,
    #[command(flatten)]
    access: AccessArgs,
}

/// How a command gets into the admin API, and how long it tries.
#[derive(Debug, Args)]
pub struct AccessArgs {
    /// The authority that has signed the members' certificates.
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// A certificate of it for the admin API.
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its key.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The operator's token.
    #[arg(long, value_name = "NUMBER")]
    pub token: Option<u64>,
    /// Give up when nothing has got on for so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    patience: u64,
}

impl AccessArgs {
    /// With the certificates that were given.
    ///
    /// # Errors
    /// They cannot be used.
    pub fn tls(&self) -> Result<Arc<ClientConfig>, Failure> {
        let files = TlsFiles { ca: self.ca.clone(), cert: self.cert.clone(), key: self.key.clone() };
        Certificates::load(&files)?.client()
    }

    /// How long nothing may get on.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }
}

/// Host and port of a member's admin API.
///
/// # Errors
/// It is not https://HOST:PORT.
pub fn admin_address(url: &str) -> Result<(String, u16), Failure> {
    let address = url.strip_prefix("https://").unwrap_or(url).trim_end_matches('/');
    let (host, port) = host_and_port(address).ok_or_else(|| {
        let problem = format!("`{url}` is not https://HOST:PORT");
        Failure::new(ExitKind::Config, problem, "give the admin API of a member with --to")
    })?;
    Ok((host.to_owned(), port))
}

/// Why a request came to nothing.
enum Trouble {
    /// It may work later.
    Passing(String),
    /// What the member has against it, and the status.
    Refused(u16, String),
}

/// Sends it all.
///
/// # Errors
/// The copy is damaged (65), the member cannot be reached within the patience (69) or refuses (75), or something here is
/// wrong (74, 78).
pub async fn push(args: &PushArgs) -> Result<(), Failure> {
    let (manifest, bytes) = read_manifest(&args.manifest, args.manifest_sha256.as_deref())?;
    let hold = hold_in(&args.from, &manifest)?;
    let own = member_of(&manifest, args.member.as_deref(), &hold)?;
    let (host, port) = admin_address(&args.to)?;
    let backup = args.backup.clone().unwrap_or_else(|| manifest.id.clone());
    let pusher = Pusher {
        list: format!("/v1/restore/{backup}/members/{}/files", own.name),
        backup,
        member: own.name.clone(),
        host,
        port,
        tls: args.access.tls()?,
        token: args.access.token,
        patience: args.access.patience(),
        hold,
    };
    pusher.push(&own.files, bytes).await
}

struct Pusher {
    backup: String,
    member: String,
    /// The path of the member's files.
    list: String,
    host: String,
    port: u16,
    tls: Arc<ClientConfig>,
    token: Option<u64>,
    patience: Duration,
    hold: RealFileSystem,
}

type Outgoing = BoxBody<Bytes, std::io::Error>;

fn small(bytes: Bytes) -> Outgoing {
    Full::new(bytes).map_err(|never| match never {}).boxed()
}

fn damaged(problem: String) -> Failure {
    let remedy = "push the copies of other members: the restore goes on unless it needs what only this file has";
    Failure::new(ExitKind::Data, problem, remedy)
}

impl Pusher {
    async fn push(&self, files: &[FileEntry], manifest: Vec<u8>) -> Result<(), Failure> {
        let path = format!("/v1/restore/{}/manifest?sha256={}", self.backup, sha256_hex(&manifest));
        let manifest = Bytes::from(manifest);
        self.patiently(Method::PUT, &path, || small(manifest.clone())).await?;
        let total: u64 = files.iter().map(|file| file.length).sum();
        let (mut done, mut wrong) = (0, Vec::new());
        let (mut here, mut looked) = (Value::Null, None::<Instant>);
        for (number, file) in files.iter().enumerate() {
            if looked.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
                here = self.wait_for_turn().await?;
                looked = Some(Instant::now());
                self.tell(&format!("{number} of {} files, {done} of {total} bytes", files.len()));
            }
            if here["needed"] == false {
                self.tell("nothing more of it is needed");
                return Ok(());
            }
            if here["files"][number]["present"] != true {
                match self.send(file).await {
                    Err(failure) if failure.kind == ExitKind::Data => wrong.push(failure.problem),
                    sent => sent?,
                }
            }
            done += file.length;
        }
        if wrong.is_empty() {
            self.tell(&format!("all {} files, {total} bytes, are there", files.len()));
            return Ok(());
        }
        let named = wrong.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join("; ");
        Err(damaged(format!("{} files of the copy of member {} are damaged: {named}", wrong.len(), self.member)))
    }

    /// What is there, once more of this copy is wanted now, or none at all. The member may have all that it needs from other
    /// copies, if they come whole: this one is sent if they do not.
    async fn wait_for_turn(&self) -> Result<Value, Failure> {
        let mut told = false;
        loop {
            let here = self.patiently(Method::GET, &self.list, || small(Bytes::new())).await?;
            if here["later"] != true {
                return Ok(here);
            }
            if !std::mem::replace(&mut told, true) {
                self.tell("other copies come first; this one waits, in case that one of them is damaged");
            }
            sleep(RETRY_EVERY).await;
        }
    }

    fn tell(&self, what: &str) {
        println!("backup {}, member {}: {what}", self.backup, self.member);
    }

    /// Sends one file until it is there, or cannot be.
    async fn send(&self, file: &FileEntry) -> Result<(), Failure> {
        let path = format!("{}/{}", self.list, file.name);
        let until = Instant::now() + self.patience;
        loop {
            let unreadable = |error: std::io::Error| damaged(format!("{}: it cannot be read: {error}", file.name));
            let stored = self.hold.open(&file.name).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => damaged(format!("{}: it is missing", file.name)),
                _ => unreadable(error),
            })?;
            let found = stored.len().map_err(unreadable)?;
            if found < file.length {
                let what = format!("it is truncated: {found} bytes are left of {}", file.length);
                return Err(damaged(format!("{}: {what}", file.name)));
            }
            let failed = Arc::new(Mutex::new(None));
            let body = Pieces { file: stored, at: 0, length: file.length, failed: failed.clone() }.boxed();
            let why = match self.call(Method::PUT, &path, body).await {
                Ok(_) => return Ok(()),
                Err(Trouble::Refused(400, why)) => return Err(damaged(why)),
                Err(Trouble::Refused(status, why)) => return Err(refused(status, &why)),
                Err(Trouble::Passing(why)) => why,
            };
            if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return Err(unreadable(error));
            }
            if Instant::now() >= until {
                return Err(self.out_of_patience(&why));
            }
            sleep(RETRY_EVERY).await;
            // One that refuses before it has read all of a file breaks the connection: it says here why.
            self.patiently(Method::GET, &self.list, || small(Bytes::new())).await?;
        }
    }

    fn out_of_patience(&self, why: &str) -> Failure {
        let problem =
            format!("{}:{} took nothing for {} seconds: {why}", self.host, self.port, self.patience.as_secs());
        Failure::new(ExitKind::Unavailable, problem, "see that the member runs, then push again: it goes on from there")
    }

    /// Asks until it is answered.
    async fn patiently(&self, method: Method, path: &str, body: impl Fn() -> Outgoing) -> Result<Value, Failure> {
        let until = Instant::now() + self.patience;
        loop {
            match self.call(method.clone(), path, body()).await {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Refused(status, why)) => return Err(refused(status, &why)),
                Err(Trouble::Passing(why)) if Instant::now() >= until => return Err(self.out_of_patience(&why)),
                Err(Trouble::Passing(_)) => sleep(RETRY_EVERY).await,
            }
        }
    }

    /// One request on a connection of its own.
    async fn call(&self, method: Method, path: &str, body: Outgoing) -> Result<Value, Trouble> {
        let passing = |error: &dyn std::fmt::Display| Trouble::Passing(error.to_string());
        // A file of a gigabyte has its time; one of which nothing moves does not.
        let bytes = body.size_hint().exact().unwrap_or_default();
        let within = SILENT_FOR + Duration::from_secs(bytes / SLOWEST_BYTES_A_SECOND);
        let (status, answer) = match timeout(within, self.exchange(method, path, body)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(passing(&error)),
            Err(_) => return Err(passing(&format!("no answer within {within:?}"))),
        };
        if (200..300).contains(&status) {
            return serde_json::from_slice(&answer).map_err(|error| passing(&error));
        }
        let told: ErrorBody = serde_json::from_slice(&answer).unwrap_or_else(|_| ErrorBody {
            error: String::from_utf8_lossy(&answer).into_owned(),
            hint: String::new(),
        });
        let why = format!("{} ({})", told.error, told.hint);
        // 503: its disk, or it is starting or stopping.
        if status >= 500 { Err(Trouble::Passing(why)) } else { Err(Trouble::Refused(status, why)) }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Outgoing,
    ) -> Result<(u16, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let name = ServerName::try_from(self.host.clone())?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driving = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(http::header::HOST, &self.host);
        if let Some(token) = self.token {
            request = request.header(TOKEN_HEADER, token);
        }
        let response = sender.send_request(request.body(body)?).await?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        driving.abort();
        Ok((status, bytes))
    }
}

fn refused(status: u16, why: &str) -> Failure {
    let (kind, remedy) = match status {
        400 => (ExitKind::Data, "use another copy of the manifest"),
        _ => {
            (ExitKind::Temporary, "see GET /v1/restore of that member, and begin again if the restore is still wanted")
        }
    };
    Failure::new(kind, format!("the member refuses: {why}"), remedy)
}

/// The part of a file that counts.
struct Pieces {
    file: File,
    at: u64,
    length: u64,
    /// Why it could not be read.
    failed: Arc<Mutex<Option<std::io::Error>>>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let wanted = (this.length - this.at).min(PIECE_BYTES as u64) as usize;
        if wanted == 0 {
            return Poll::Ready(None);
        }
        let mut piece = vec![0; wanted];
        let read = match this.file.read_at(this.at, &mut piece) {
            Ok(0) => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
            other => other,
        };
        match read {
            Ok(count) => {
                piece.truncate(count);
                this.at += count as u64;
                Poll::Ready(Some(Ok(Frame::data(piece.into()))))
            }
            Err(error) => {
                let kind = error.kind();
                *this.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                Poll::Ready(Some(Err(kind.into())))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length - self.at)
    }
}
