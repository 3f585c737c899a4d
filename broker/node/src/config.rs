//! The configuration file of `holdfast-broker run`: YAML, every key checked, every complaint naming the key, the file and
//! what to write instead.
//!
//! ```yaml
//! member: {name: demo-0-0, zone: zone-1}      # HOLDFAST_MEMBER and HOLDFAST_ZONE override these
//! dataDir: /var/lib/holdfast
//! listeners: {amqp: "[::]:5672", amqps: "[::]:5671", peer: "[::]:5680", admin: "[::]:5690", http: "[::]:15692"}
//! advertise: {peer: "demo-0-0.demo-nodes.ns.svc:5680"}
//! tls: {ca: /etc/holdfast/tls/ca.crt, cert: /etc/holdfast/tls/tls.crt, key: /etc/holdfast/tls/tls.key}
//! ```

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use holdfast_engine::MOST_WORKERS;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::{ExitKind, Failure};

/// The whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    pub member: MemberConfig,
    /// Journal, checkpoints and identity live here; one running process at a time.
    pub data_dir: PathBuf,
    /// The cluster that the data directory must belong to, where that is known; a directory of another cluster is
    /// refused at start. A blank directory fits any.
    #[serde(default)]
    pub cluster_id: Option<String>,
    /// A data directory of an earlier epoch of the cluster is refused at start: a forced recovery went on without it. A
    /// blank directory fits any.
    #[serde(default)]
    pub min_cluster_epoch: u64,
    #[serde(default)]
    pub listeners: Listeners,
    pub advertise: Advertise,
    pub tls: TlsFiles,
    #[serde(default)]
    pub limits: Limits,
}

/// Who this member is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MemberConfig {
    /// Unique in the cluster; the name that the bootstrap request uses.
    pub name: String,
    /// Failure domain; replicas of a queue are spread over zones.
    pub zone: String,
}

/// Where the process listens. `[::]` takes IPv4 too.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Listeners {
    /// AMQP without encryption.
    pub amqp: Listen,
    /// AMQP over TLS.
    pub amqps: Listen,
    /// Links from other members, with certificates on both sides.
    pub peer: Listen,
    /// The admin API, with certificates on both sides.
    pub admin: Listen,
    /// Probes and metrics, plain.
    pub http: Listen,
}

impl Default for Listeners {
    fn default() -> Self {
        let any = |port| Listen::At(SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port));
        Self { amqp: any(5672), amqps: any(5671), peer: any(5680), admin: any(5690), http: any(15692) }
    }
}

/// One listener: an address, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    Off,
    At(SocketAddr),
}

impl Listen {
    /// The address, unless the listener is off.
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        SocketAddr::from_str(&text).map(Self::At).map_err(|_| {
            format!("`{text}` is not an address to listen on; write an IP address and a port such as \"[::]:5672\", or \"off\"")
        })
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        match listen {
            Listen::Off => "off".into(),
            Listen::At(address) => address.to_string(),
        }
    }
}

/// Where others reach this member.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Advertise {
    /// `host:port` of the peer listener; the certificate must be valid for the host.
    pub peer: String,
}

/// PEM files, read at start.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsFiles {
    /// The authorities that certificates of members and administrators must chain to.
    pub ca: PathBuf,
    /// This member's certificate, followed by intermediates if there are any.
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Bounds; the defaults suit most.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Client connections at a time; more are closed at once.
    pub connections: usize,
    /// How long a start waits for the data directory's lock, in seconds.
    pub lock_wait_seconds: u64,
    /// How long an orderly stop may take before the process ends anyway, in seconds.
    pub shutdown_seconds: u64,
    /// Size of a journal segment in MiB.
    pub journal_segment_mib: u64,
    /// While this process takes more memory, publishers wait, in bytes. Default: 0.6 of what its control group (or the
    /// machine) allows.
    pub memory_high_watermark_bytes: Option<u64>,
    /// While less than this is free on the data directory's disk, publishers wait, in bytes. Default: four segments.
    pub disk_free_limit_bytes: Option<u64>,
    /// Workers that share the Raft groups, each with a thread for when there is much to do. Default: one for every two
    /// cores, and at most four.
    pub workers: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            lock_wait_seconds: 60,
            shutdown_seconds: 10,
            journal_segment_mib: 64,
            memory_high_watermark_bytes: None,
            disk_free_limit_bytes: None,
            workers: None,
        }
    }
}

/// Environment variables that override the file, as a look-up so that tests need not touch the process.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Config {
    /// Reads and checks the file at `path`, with the overrides of `environment`.
    pub fn load(path: &Path, environment: Environment) -> Result<Self, Failure> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::new(
                ExitKind::Config,
                format!("cannot read the configuration file {}: {error}", path.display()),
                "check the path given with --config, and that this user may read the file",
            )
        })?;
        Self::parse(&text, environment).map_err(|complaint| {
            Failure::new(ExitKind::Config, format!("{}: {}", path.display(), complaint.problem), complaint.remedy)
        })
    }

    fn parse(text: &str, environment: Environment) -> Result<Self, Complaint> {
        let value: Value = serde_saphyr::from_str(text).map_err(|error| {
            Complaint::new(format!("not valid YAML: {error}"), "correct the file at the place shown")
        })?;
        if !value.is_object() {
            let found = if value.is_null() { "the file holds no keys" } else { "the file is not a map of keys" };
            return Err(Complaint::new(found, "write `key: value` lines, at least dataDir, advertise and tls"));
        }
        refuse_unknown_keys(&value, &every_key(), "")?;
        let mut config: Self = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            let key = if path == "." { String::new() } else { format!("{path}: ") };
            Complaint::new(format!("{key}{}", plainly(&error.inner().to_string())), "correct that key in the file")
        })?;
        if let Some(name) = environment("HOLDFAST_MEMBER") {
            config.member.name = name;
        }
        if let Some(zone) = environment("HOLDFAST_ZONE") {
            config.member.zone = zone;
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Complaint> {
        let need = |ok: bool, key: &str, problem: &str, remedy: &str| match ok {
            true => Ok(()),
            false => Err(Complaint::new(format!("{key}: {problem}"), remedy)),
        };
        let name = &self.member.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        need(!name.is_empty(), "member.name", "missing", "write the member's name there, or set HOLDFAST_MEMBER")?;
        need(
            name.len() <= 63 && name.chars().all(plain),
            "member.name",
            &format!("`{name}` cannot name a member"),
            "use at most 63 letters, digits, '-', '_' and '.'",
        )?;
        need(
            self.data_dir.is_absolute(),
            "dataDir",
            &format!("`{}` is not an absolute path", self.data_dir.display()),
            "write where the volume is mounted, such as /var/lib/holdfast",
        )?;
        need(
            host_and_port(&self.advertise.peer).is_some(),
            "advertise.peer",
            &format!("`{}` is not host:port", self.advertise.peer),
            "write the name and port under which other members reach this one, such as \"demo-0-0.demo-nodes:5680\"",
        )?;
        need(self.listeners.peer != Listen::Off, "listeners.peer", "cannot be off", "write \"[::]:5680\"")?;
        need(self.limits.connections > 0, "limits.connections", "is 0", "write a number above 0")?;
        let watermark = self.limits.memory_high_watermark_bytes;
        need(
            watermark.is_none_or(|bytes| bytes > 0),
            "limits.memoryHighWatermarkBytes",
            "is 0, so nobody could ever publish",
            "write a number of bytes, or leave the key out",
        )?;
        need(
            self.limits.workers.is_none_or(|workers| (1..=MOST_WORKERS).contains(&workers)),
            "limits.workers",
            "is out of range",
            &format!("write a number from 1 to {MOST_WORKERS}, or leave the key out"),
        )?;
        need(
            (1..=1024).contains(&self.limits.journal_segment_mib),
            "limits.journalSegmentMib",
            &format!("{} is out of range", self.limits.journal_segment_mib),
            "write a number from 1 to 1024",
        )
    }

    /// The file's text, as `dev` writes it.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).expect("a configuration is plain data")
    }
}

/// Splits `host:port` and `[v6]:port`.
pub fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let port = port.parse().ok().filter(|port| *port != 0)?;
    (!host.is_empty() && !host.contains(char::is_whitespace)).then_some((host, port))
}

/// What the deserializer says of types, in words for those who do not write Rust.
fn plainly(text: &str) -> String {
    let named = [
        ("expected usize", "expected a number that is not negative"),
        ("expected u64", "expected a number that is not negative"),
    ];
    named.iter().fold(text.to_owned(), |text, (type_name, words)| text.replace(type_name, words))
}

/// A complaint about the file's contents; the file's name is added by [`Config::load`].
#[derive(Debug)]
struct Complaint {
    problem: String,
    remedy: String,
}

impl Complaint {
    fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { problem: problem.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.problem, self.remedy)
    }
}

/// A document with every key there is, which the keys of a file are compared with.
fn every_key() -> Value {
    let config = Config {
        member: MemberConfig::default(),
        data_dir: PathBuf::new(),
        cluster_id: None,
        min_cluster_epoch: 0,
        listeners: Listeners::default(),
        advertise: Advertise { peer: String::new() },
        tls: TlsFiles { ca: PathBuf::new(), cert: PathBuf::new(), key: PathBuf::new() },
        limits: Limits::default(),
    };
    serde_json::to_value(config).expect("a configuration is plain data")
}

fn refuse_unknown_keys(given: &Value, known: &Value, path: &str) -> Result<(), Complaint> {
    let (Value::Object(given), Value::Object(known)) = (given, known) else { return Ok(()) };
    for (key, value) in given {
        let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match known.get(key) {
            Some(inner) => refuse_unknown_keys(value, inner, &full)?,
            None => {
                let choices: Vec<&str> = known.keys().map(String::as_str).collect();
                let remedy = match nearest(key, &choices) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("keys known here: {}", choices.join(", ")),
                };
                return Err(Complaint::new(format!("unknown key `{full}`"), remedy));
            }
        }
    }
    Ok(())
}

/// The choice most like `word`, if any is like it at all. Case, `-` and `_` count for nothing.
fn nearest<'a>(word: &str, choices: &[&'a str]) -> Option<&'a str> {
    let plain = |s: &str| s.to_ascii_lowercase().replace(['-', '_'], "");
    choices
        .iter()
        .map(|choice| (strsim::jaro_winkler(&plain(word), &plain(choice)), *choice))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, choice)| choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
member: {name: demo-0-0, zone: zone-1}
dataDir: /var/lib/holdfast
listeners: {amqp: "[::]:5672", amqps: "off"}
advertise: {peer: "demo-0-0.demo-nodes.ns.svc:5680"}
tls: {ca: /tls/ca.crt, cert: /tls/tls.crt, key: /tls/tls.key}
"#;

    fn nothing(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn a_file_with_defaults_is_read_and_the_environment_overrides_name_and_zone() {
        let config = Config::parse(GOOD, &nothing).unwrap();
        assert_eq!(config.listeners.amqps, Listen::Off);
        assert_eq!(config.listeners.peer, Listen::At("[::]:5680".parse().unwrap()));
        assert_eq!(config.limits.shutdown_seconds, 10);
        let environment = |key: &str| (key == "HOLDFAST_ZONE").then(|| "zone-9".to_string());
        let config = Config::parse(GOOD, &environment).unwrap();
        assert_eq!((config.member.name.as_str(), config.member.zone.as_str()), ("demo-0-0", "zone-9"));
    }

    #[test]
    fn a_written_configuration_reads_back_the_same() {
        let config = Config::parse(GOOD, &nothing).unwrap();
        let again = Config::parse(&config.to_yaml(), &nothing).unwrap();
        assert_eq!(serde_json::to_value(config).unwrap(), serde_json::to_value(again).unwrap());
    }

    #[test]
    fn every_complaint_names_the_key_and_says_what_to_write() {
        let cases = [
            ("dataDir:", "data-dir:", "unknown key `data-dir`", "did you mean `dataDir`?"),
            ("zone:", "zoen:", "unknown key `member.zoen`", "did you mean `zone`?"),
            ("advertise:", "flurb:", "unknown key `flurb`", "keys known here"),
            ("{amqp:", "{ampq:", "unknown key `listeners.ampq`", "did you mean `amqp"),
            ("\"[::]:5672\"", "5672", "listeners.amqp: ", "correct that key"),
            ("\"[::]:5672\"", "\"localhost\"", "listeners.amqp: `localhost` is not an address", "correct that key"),
            ("name: demo-0-0, ", "", "member.name: missing", "HOLDFAST_MEMBER"),
            ("demo-0-0,", "a b,", "member.name: `a b` cannot name a member", "at most 63"),
            (".svc:5680", "", "advertise.peer: ", "write the name and port"),
            ("dataDir: /var/lib/holdfast\n", "", "missing field `dataDir`", "correct"),
            ("/var/lib/holdfast", "\"\"", "dataDir: `` is not an absolute path", "volume is mounted"),
            ("tls:", "limits: {connections: -1}\ntls:", "limits.connections: ", "correct that key"),
            ("tls:", "limits: {workers: 0}\ntls:", "limits.workers: ", "from 1 to 64, or leave the key out"),
            ("key: /tls/tls.key}", "key: /tls/tls.key", "not valid YAML", "at the place shown"),
        ];
        for (from, to, problem, remedy) in cases {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from}");
            let complaint = Config::parse(&text, &nothing).unwrap_err();
            assert!(complaint.problem.contains(problem), "{from} -> {to}: {complaint}");
            assert!(complaint.remedy.contains(remedy), "{from} -> {to}: {complaint}");
        }
        assert!(Config::parse("", &nothing).unwrap_err().problem.contains("holds no keys"));
        assert!(Config::parse("- a\n", &nothing).unwrap_err().problem.contains("not a map"));
        let negative = format!("{GOOD}limits: {{connections: many}}\n");
        let complaint = Config::parse(&negative, &nothing).unwrap_err();
        assert!(complaint.problem.contains("expected a number"), "{complaint}");
    }

    #[test]
    fn hosts_and_ports_are_split_with_and_without_brackets() {
        assert_eq!(host_and_port("a.b:1"), Some(("a.b", 1)));
        assert_eq!(host_and_port("[::1]:5680"), Some(("::1", 5680)));
        for bad in ["a", ":1", "a:0", "a:b", "a b:1", "a:70000"] {
            assert_eq!(host_and_port(bad), None, "{bad}");
        }
    }
}
