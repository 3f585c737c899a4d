//! Policies and queues, as the admin API lists them.

use holdfast_journal::EntryReader;
use holdfast_queue::ids::{GroupId, MemberId, QueueId, ReplicaId};
use holdfast_queue::meta::{MetaMachine, Placement, PolicyKind, QueueInfo};
use holdfast_replica::GroupStatus;

use crate::admin::{PolicyReport, QueueReplica, QueueReport};
use crate::member::Member;

impl<R: EntryReader> Member<R> {
    pub(crate) fn policy_reports(&self, kind: PolicyKind) -> Vec<PolicyReport> {
        let Some(meta) = self.metadata() else { return Vec::new() };
        let report = |(vhost, name, policy): (&str, &str, &holdfast_queue::meta::Policy)| PolicyReport {
            vhost: vhost.to_owned(),
            name: name.to_owned(),
            policy: policy.asked().clone(),
        };
        meta.policies(kind).map(report).collect()
    }

    pub(crate) fn queue_reports(&self, limit: usize) -> Vec<QueueReport> {
        let Some(meta) = self.metadata() else { return Vec::new() };
        meta.queues().take(limit).map(|(queue, info)| self.queue_report(meta, queue, info)).collect()
    }

    fn queue_report(&self, meta: &MetaMachine, queue: QueueId, info: &QueueInfo) -> QueueReport {
        let name = |member: MemberId| self.name_of(member).unwrap_or_else(|| member.to_string());
        let mut report = QueueReport {
            vhost: info.vhost.clone(),
            name: info.name.clone(),
            group: None,
            policy: meta.policy_of(queue).cloned(),
            leader: None,
            replicas_wanted: 1,
            min_in_sync_replicas: meta.min_in_sync_replicas(queue),
            replicas: Vec::new(),
            moving_to: Vec::new(),
            unsynchronised: Vec::new(),
        };
        let group = match info.placement {
            Placement::Replicated { group } => group,
            Placement::Transient { owner } => return QueueReport { leader: Some(name(owner.member)), ..report },
        };
        let leader = self.host.as_ref().and_then(|host| host.leader(group));
        let announced = self.leaderships.announced.get(&group).map(|(leader, _)| *leader);
        report.group = Some(group);
        report.leader = leader.or(announced).map(name);
        report.replicas_wanted = meta.replicas_wanted(queue);
        if let Some(known) = meta.group(group) {
            let replica = |replica: &ReplicaId, voter| QueueReplica {
                name: name(replica.member),
                voter,
                synchronised: self.is_synchronised(group, replica.member),
            };
            let voters = known.voters.iter().map(|it| replica(it, true));
            report.replicas = voters.chain(known.learners.iter().map(|it| replica(it, false))).collect();
            let news = known.target.replicas().filter(|wanted| known.replicas().all(|there| there != *wanted));
            let waiting = || known.target.unsynchronised.iter().map(|it| name(it.member));
            let absent = |name| QueueReplica { name, voter: false, synchronised: Some(false) };
            report.replicas.extend(waiting().map(absent));
            report.unsynchronised = waiting().collect();
            report.moving_to = news.map(|wanted| name(wanted.member)).collect();
        }
        report
    }

    /// True for a group led here that has fewer voters than it should, or one that does not answer.
    pub(crate) fn is_under_replicated(&self, group: GroupId, status: &GroupStatus) -> bool {
        let voters = || status.peers.iter().filter(|peer| peer.voter);
        let expected = self.metadata().map_or(0, |meta| meta.voters_expected(group));
        voters().count() < expected || voters().any(|peer| !peer.live)
    }

    /// Only the leader knows.
    fn is_synchronised(&self, group: GroupId, member: MemberId) -> Option<bool> {
        let host = self.host.as_ref().filter(|_| self.leaderships.led.contains_key(&group))?;
        Some(host.is_in_sync(group, member))
    }
}
