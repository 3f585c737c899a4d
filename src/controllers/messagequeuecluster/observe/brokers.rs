//! What the brokers say of themselves, and what is remembered of it between passes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use futures::future::join_all;
use jiff::Timestamp;
use kube::ResourceExt;
use rustls::ClientConfig;

use super::{
    super::super::{Context, Error},
    MemberFacts, Observed, authority_name, keyed_certificate, pods,
};
use crate::{
    api::v1alpha1::{Decision, MessageQueueCluster},
    broker_admin::{ADMIN_PORT, AdminError, Door, Health},
    certificates::{self, KeyedCertificate},
};

/// Kept between passes; losing it costs a little time, nothing else.
#[derive(Default)]
pub struct Memory {
    /// Since when a broker has not answered, by its pod's UID: a new pod begins anew.
    silent_since: BTreeMap<String, Timestamp>,
    /// Since when a member has had no pod.
    podless_since: BTreeMap<u32, Timestamp>,
    /// When a pod was last drained of leaders and how many stayed, by UID.
    kept_leaders: BTreeMap<String, (Timestamp, u64)>,
    /// When the status was last written.
    pub status_written: Option<Timestamp>,
    /// What was done since.
    pub unwritten: Vec<Decision>,
    /// The operator's own client certificate, and the authority it is of.
    client: Option<(KeyedCertificate, Timestamp, Arc<ClientConfig>)>,
}

impl Memory {
    /// A pod was asked to hand its leaders away and kept `remaining`.
    pub fn drained(&mut self, pod_uid: &str, now: Timestamp, remaining: u64) {
        self.kept_leaders.insert(pod_uid.to_owned(), (now, remaining));
    }

    /// Notes what this pass saw, and gives the members' facts what earlier passes saw.
    fn note(&mut self, members: &mut BTreeMap<u32, MemberFacts>, now: Timestamp) {
        let uids: BTreeSet<&str> = members.values().filter_map(|m| Some(m.pod.as_ref()?.uid.as_str())).collect();
        self.kept_leaders.retain(|uid, _| uids.contains(uid.as_str()));
        let mut silent = BTreeMap::new();
        let mut podless = BTreeMap::new();
        for (number, member) in members {
            let Some(pod) = &member.pod else {
                let since = *self.podless_since.get(number).unwrap_or(&now);
                podless.insert(*number, since);
                member.podless_since = Some(since);
                continue;
            };
            member.kept_leaders = self.kept_leaders.get(&pod.uid).copied();
            if let Some(Err(error)) = &member.answer {
                tracing::debug!(%error, "a broker does not say how it is");
                let since = *self.silent_since.get(&pod.uid).unwrap_or(&now);
                silent.insert(pod.uid.clone(), since);
                member.silent_since = Some(since);
            }
        }
        (self.silent_since, self.podless_since) = (silent, podless);
    }
}

/// Asks every broker that runs how it is.
pub(super) async fn ask(
    ctx: &Context,
    mqc: &MessageQueueCluster,
    observed: &mut Observed,
    now: Timestamp,
) -> Result<(), Error> {
    let tls = client_certificate(ctx, mqc, observed, now)?;
    ask_through(ctx, mqc, tls, &mut observed.members).await;
    ctx.remembered(&mqc.uid().unwrap_or_default(), |memory| memory.note(&mut observed.members, now));
    Ok(())
}

/// The pods and the brokers' answers once more, for what must not rest on what was true some seconds ago.
pub async fn ask_again(
    ctx: &Context,
    mqc: &MessageQueueCluster,
    observed: &Observed,
    now: Timestamp,
) -> Result<Observed, Error> {
    let mut pods = pods(ctx, &mqc.names(), &mqc.spec.placement.topology_key).await?;
    let facts = |number: &u32| (*number, MemberFacts { pod: pods.remove(number), ..MemberFacts::default() });
    let mut members = observed.members.keys().map(facts).collect();
    ask_through(ctx, mqc, client_certificate(ctx, mqc, observed, now)?, &mut members).await;
    Ok(Observed { members, ..Observed::default() })
}

async fn ask_through(
    ctx: &Context,
    mqc: &MessageQueueCluster,
    tls: Option<Arc<ClientConfig>>,
    members: &mut BTreeMap<u32, MemberFacts>,
) {
    let Some(tls) = tls else { return };
    let names = mqc.names();
    for (number, member) in members.iter_mut() {
        let ip = member.pod.as_ref().filter(|p| p.running).and_then(|p| p.ip);
        member.door = ip.map(|ip| Door {
            member: names.pod(*number),
            host: names.host(*number),
            address: SocketAddr::new(ip, ADMIN_PORT),
            tls: tls.clone(),
        });
    }
    let doors = members.iter().filter_map(|(n, m)| Some((*n, m.door.as_ref()?)));
    let answers: Vec<(u32, Result<Health, AdminError>)> =
        join_all(doors.map(|(n, door)| async move { (n, ctx.brokers.health(door).await) })).await;
    for (number, answer) in answers {
        members.entry(number).or_default().answer = Some(answer);
    }
}

/// The operator's own leaf, in memory, made anew when the authority changes or two thirds of its time are over.
fn client_certificate(
    ctx: &Context,
    mqc: &MessageQueueCluster,
    observed: &Observed,
    now: Timestamp,
) -> Result<Option<Arc<ClientConfig>>, Error> {
    let Some(authority) = observed.secrets.authority.as_ref().and_then(keyed_certificate) else { return Ok(None) };
    let uid = mqc.uid().unwrap_or_default();
    ctx.remembered(&uid, |memory| {
        if let Some((of, made, config)) = &memory.client
            && *of == authority
            && now.duration_since(*made).as_hours() < 24 * 200
        {
            return Ok(Some(config.clone()));
        }
        let config = certificates::client_config(&authority, &authority_name(mqc), now)?;
        memory.client = Some((authority, now, config.clone()));
        Ok(Some(config))
    })
}
