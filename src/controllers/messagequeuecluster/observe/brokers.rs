//! What the brokers say of themselves, and what is remembered of it between passes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use jiff::Timestamp;
use kube::ResourceExt;
use rustls::ClientConfig;

use super::{
    super::super::{Context, Error},
    super::validate::Blocker,
    MemberFacts, Observed, authority_name, pods, read_secrets,
};
use crate::{
    api::v1alpha1::{Decision, MessageQueueCluster},
    broker_admin::{ADMIN_PORT, AdminError, Door, Health, MemberState},
    certificates::{self, KeyedCertificate},
};

/// Kept between passes; losing it costs a little time, nothing else.
#[derive(Default)]
pub struct Memory {
    /// How brokers answered, by their pod's UID: a new pod begins anew.
    answers: BTreeMap<String, Answers>,
    /// Since when a member has had no pod.
    podless_since: BTreeMap<u32, Timestamp>,
    /// Since when nobody has said that a majority is in touch.
    quorum_lost_since: Option<Timestamp>,
    /// When a forced recovery was last looked at in vain since then, and why.
    pub recovery_held: Option<(Timestamp, Blocker)>,
    /// When a pod was last drained of leaders and how many stayed, by UID.
    kept_leaders: BTreeMap<String, (Timestamp, u64)>,
    /// When the status was last written.
    pub status_written: Option<Timestamp>,
    /// What was done since.
    pub unwritten: Vec<Decision>,
    /// The operator's own client certificate, and the authority it is of.
    client: Option<(KeyedCertificate, Timestamp, Arc<ClientConfig>)>,
}

/// How one broker answered so far.
#[derive(Clone, Debug, Default)]
struct Answers {
    silent_since: Option<Timestamp>,
    in_row: u32,
    last: Option<Health>,
}

impl Memory {
    /// A pod was asked to hand its leaders away and kept `remaining`.
    pub fn drained(&mut self, pod_uid: &str, now: Timestamp, remaining: u64) {
        self.kept_leaders.insert(pod_uid.to_owned(), (now, remaining));
    }

    /// Since when no broker that answers has been in touch with a majority. While none answers, nothing new is known.
    fn note_quorum(&mut self, members: &BTreeMap<u32, MemberFacts>, now: Timestamp) -> Option<Timestamp> {
        let health = || members.values().filter_map(MemberFacts::health);
        if health().any(|health| health.quorum) {
            (self.quorum_lost_since, self.recovery_held) = (None, None);
        } else if health().any(|health| health.state == MemberState::Started) {
            self.quorum_lost_since.get_or_insert(now);
        }
        self.quorum_lost_since
    }

    /// Notes what this pass saw, and gives the members' facts what earlier passes saw.
    fn note(&mut self, members: &mut BTreeMap<u32, MemberFacts>, patience: Duration, now: Timestamp) {
        let uids: BTreeSet<&str> = members.values().filter_map(|m| Some(m.pod.as_ref()?.uid.as_str())).collect();
        self.kept_leaders.retain(|uid, _| uids.contains(uid.as_str()));
        let mut answers = BTreeMap::new();
        let mut podless = BTreeMap::new();
        for (number, member) in members {
            let Some(pod) = &member.pod else {
                let since = *self.podless_since.get(number).unwrap_or(&now);
                podless.insert(*number, since);
                member.podless_since = Some(since);
                continue;
            };
            member.kept_leaders = self.kept_leaders.get(&pod.uid).copied();
            let Some(answer) = &member.answer else { continue };
            let mut known = self.answers.remove(&pod.uid).unwrap_or_default();
            match answer {
                Ok(health) => {
                    known = Answers {
                        silent_since: None,
                        in_row: known.in_row.saturating_add(1),
                        last: Some(health.clone()),
                    };
                }
                Err(error) => {
                    tracing::debug!(%error, "a broker does not say how it is");
                    let since = *known.silent_since.get_or_insert(now);
                    known.in_row = 0;
                    let short = now.duration_since(since).unsigned_abs() < patience;
                    member.recent = known.last.clone().filter(|_| short && pod.ready && !pod.going);
                }
            }
            (member.silent_since, member.answers_in_row) = (known.silent_since, known.in_row);
            answers.insert(pod.uid.clone(), known);
        }
        (self.answers, self.podless_since) = (answers, podless);
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
    let patience = mqc.spec.health.patience();
    let uid = mqc.uid().unwrap_or_default();
    (observed.quorum_lost_since, observed.recovery_held) = ctx.remembered(&uid, |memory| {
        memory.note(&mut observed.members, patience, now);
        (memory.note_quorum(&observed.members, now), memory.recovery_held.clone())
    });
    Ok(())
}

/// The members, each with its door and what it answers: for what is done to a cluster beside its own reconcile. Nothing is
/// noted for the cluster's next pass.
pub async fn brokers_of(ctx: &Context, mqc: &MessageQueueCluster, now: Timestamp) -> Result<Observed, Error> {
    let names = mqc.names();
    let pods = pods(ctx, &names, &mqc.spec.placement.topology_key).await?;
    let secrets = read_secrets(ctx, &names).await?;
    let facts = |(number, pod)| (number, MemberFacts { pod: Some(pod), ..MemberFacts::default() });
    let mut observed = Observed { members: pods.into_iter().map(facts).collect(), secrets, ..Observed::default() };
    let tls = client_certificate(ctx, mqc, &observed, now)?;
    ask_through(ctx, mqc, tls, &mut observed.members).await;
    Ok(observed)
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
    let authority = observed.secrets.usable_authority();
    let lost = observed.authority_lost().is_some();
    let uid = mqc.uid().unwrap_or_default();
    ctx.remembered(&uid, |memory| {
        // Brokers that run trust the former authority; what was signed by it serves until this process ends.
        if let (true, Some((.., config))) = (lost, &memory.client) {
            return Ok(Some(config.clone()));
        }
        let Some(authority) = authority else { return Ok(None) };
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
