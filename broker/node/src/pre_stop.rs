//! `holdfast-broker pre-stop`: before its pod ends, a member hands its leaderships to others. Bounded, and never a reason
//! for the pod not to end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;

use crate::admin::client::AdminClient;
use crate::config::{Config, host_and_port};
use crate::failure::{ExitKind, Failure};
use crate::tls::Certificates;

/// Asks the local member to drain, again and again until nothing remains or `patience` is over.
pub async fn drain(config: &Config, patience: Duration) -> Result<(), Failure> {
    let until = Instant::now() + patience;
    let client = local_client(config)?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(unfinished("leaderships remain"));
        }
        let body = json!({ "deadlineMs": left.as_millis() as u64 });
        match client.call(Method::POST, "/v1/drain-leaders", Some(&body), left + Duration::from_secs(1)).await {
            Ok(answer) if answer["remaining"] == 0 => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(unfinished(&error.to_string())),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn local_client(config: &Config) -> Result<AdminClient, Failure> {
    let off = || Failure::new(ExitKind::Config, "listeners.admin is off", "pre-stop needs the admin listener");
    let listens = config.listeners.admin.address().ok_or_else(off)?;
    let ip = match listens.ip() {
        ip if !ip.is_unspecified() => ip,
        // A dual-stack listener takes IPv4, and it is there also where IPv6 is off.
        _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let (host, _) = host_and_port(&config.advertise.peer).unwrap_or_default();
    Ok(AdminClient {
        address: SocketAddr::new(ip, listens.port()),
        host: host.into(),
        tls: Certificates::load(&config.tls)?.client()?,
    })
}

fn unfinished(why: &str) -> Failure {
    Failure::new(
        ExitKind::Temporary,
        format!("not all leaderships were handed over: {why}"),
        "nothing: the other members elect leaders when this one ends",
    )
}
