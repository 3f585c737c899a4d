//! Answers to the admin API.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_journal::EntryReader;
use holdfast_queue::ids::{GroupId, MemberId, ReplicaId};
use holdfast_queue::meta::{
    ExpectedMember as MetaExpected, MetaCommand, MetaReply, NewMember, NewUser, Standing, UserInfo, keys_not_honoured,
};
use holdfast_queue::time::{Duration, Instant};
use holdfast_replica::{GroupStatus, Role};

use crate::admin::{
    AdminAction, AdminError, AdminErrorKind, AdminReply, AdminRequest, ExpectedMember, Failover, GroupCounts,
    GroupReport, Health, MemberHealth, MemberState, ReplicaReport, UserCredentials, UserReport,
};
use crate::alarms::Alarms;
use crate::join::AfterIdentity;
use crate::member::Member;
use crate::requests::Waiter;
use crate::seam::{AdminRequestId, Output};

/// Requests that need a quorum are answered within this time.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A voter with no more than this many entries missing counts as caught up.
const CAUGHT_UP: u64 = 1_000;

/// Admin requests that wait.
#[derive(Default)]
pub(crate) struct AdminState {
    /// Until when each is to be answered.
    waiting: BTreeMap<AdminRequestId, Instant>,
    bootstrap: BTreeSet<AdminRequestId>,
    drains: BTreeMap<AdminRequestId, Instant>,
    pub(crate) last_failover: Option<Failover>,
    pub(crate) failovers: u64,
}

pub(crate) fn refused(kind: AdminErrorKind, error: impl Into<String>, hint: &str) -> AdminError {
    AdminError { kind, error: error.into(), hint: hint.to_owned() }
}

impl<R: EntryReader> Member<R> {
    pub(crate) fn admin(&mut self, request: AdminRequestId, body: AdminRequest) {
        match self.admin_action(request, body) {
            Ok(Some(reply)) => self.admin_reply(request, Ok(reply)),
            Ok(None) => {}
            Err(error) => self.admin_reply(request, Err(error)),
        }
    }

    pub(crate) fn admin_reply(&mut self, request: AdminRequestId, reply: Result<AdminReply, AdminError>) {
        self.admin.waiting.remove(&request);
        self.outputs.push_back(Output::AdminReply { request, reply });
    }

    /// The answer, or none if it comes later.
    fn admin_action(&mut self, request: AdminRequestId, body: AdminRequest) -> Result<Option<AdminReply>, AdminError> {
        self.check_token(body.token)?;
        match body.action {
            AdminAction::Health => Ok(Some(AdminReply::Health(Box::new(self.health())))),
            AdminAction::Members => {
                self.need_metadata()?;
                Ok(Some(AdminReply::Members(self.members_health())))
            }
            AdminAction::Users => {
                self.need_metadata()?;
                Ok(Some(AdminReply::Users(self.user_reports())))
            }
            AdminAction::DeleteUser { name } => {
                self.need_metadata()?;
                if self.metadata().is_some_and(|meta| meta.user(&name).is_none()) {
                    let hint = "GET /v1/users lists them";
                    return Err(refused(AdminErrorKind::NotFound, format!("there is no user '{name}'"), hint));
                }
                self.ask_for_admin(request, Some(request), MetaCommand::DeleteUser { name })?;
                Ok(None)
            }
            AdminAction::Groups { limit } => Ok(Some(AdminReply::Groups(self.group_reports(limit)))),
            AdminAction::Bootstrap {
                cluster_id,
                members,
                user,
                default_replication_factor,
                default_min_in_sync_replicas,
            } => {
                let defaults = (default_replication_factor, default_min_in_sync_replicas);
                self.bootstrap(request, cluster_id, members, user, defaults)
            }
            AdminAction::Transfer { group, to } => self.transfer(group, &to).map(|()| Some(AdminReply::Done)),
            AdminAction::DrainLeaders { deadline_ms } => {
                let until = self.now + Duration::from_millis(deadline_ms.min(60_000));
                let now = self.now;
                if let Some(host) = self.host.as_mut() {
                    host.drain(until, now);
                }
                self.admin.drains.insert(request, until);
                Ok(None)
            }
            AdminAction::PutUser(user) => self.put_user(request, user).map(|()| None),
            AdminAction::PutPolicy { kind, vhost, name, policy } => {
                let idle = keys_not_honoured(&policy.definition);
                if !idle.is_empty() {
                    let error = format!("nothing would come of {} yet", idle.join(", "));
                    return Err(refused(AdminErrorKind::BadRequest, error, "leave out what is not honoured yet"));
                }
                let command = MetaCommand::PutPolicy { kind, vhost, name, policy };
                self.ask_for_admin(request, Some(request), command)?;
                Ok(None)
            }
            AdminAction::DeletePolicy { kind, vhost, name } => {
                let command = MetaCommand::DeletePolicy { kind, vhost, name };
                self.ask_for_admin(request, Some(request), command)?;
                Ok(None)
            }
            AdminAction::Policies { kind } => Ok(Some(AdminReply::Policies(self.policy_reports(kind)))),
            AdminAction::Queues { limit } => Ok(Some(AdminReply::Queues(self.queue_reports(limit)))),
            AdminAction::QueueAction { vhost, name, action } => {
                self.queue_action(request, (&vhost, &name), action)?;
                Ok(None)
            }
            AdminAction::PutReplication { default_min_in_sync_replicas } => {
                let min_in_sync_replicas = u32::from(default_min_in_sync_replicas);
                let command = MetaCommand::SetDefaultMinInSync { min_in_sync_replicas };
                self.ask_for_admin(request, Some(request), command)?;
                Ok(None)
            }
            AdminAction::PutMembers { members } => {
                let expected = members.into_iter().map(meta_expected).collect();
                self.ask_for_admin(request, Some(request), MetaCommand::SetExpected { expected })?;
                Ok(None)
            }
            AdminAction::RemoveMember { name } => {
                let member = self.member_to_remove(&name)?;
                self.ask_for_admin(request, Some(request), MetaCommand::RetireMember { member })?;
                Ok(None)
            }
            AdminAction::Barrier(wanted) => self.begin_barrier(request, wanted).map(|()| None),
            AdminAction::RestoreStep(step) => self.restore_step(request, *step),
            AdminAction::Rebalance => match self.rebalance_report() {
                Some(report) => Ok(Some(AdminReply::Rebalance(Box::new(report)))),
                None => {
                    let leader = self.leaderships.announced.get(&GroupId::META).map(|(leader, _)| *leader);
                    let name = leader.and_then(|leader| self.name_of(leader));
                    let hint = name.map_or("ask again soon".to_owned(), |name| format!("ask member '{name}'"));
                    let error = "this member does not lead the metadata, which coordinates moves";
                    Err(refused(AdminErrorKind::Unavailable, error, &hint))
                }
            },
        }
    }

    /// The token grows with each holder of the operator's lease; one that was overtaken has nothing to say.
    fn check_token(&mut self, token: Option<u64>) -> Result<(), AdminError> {
        let Some(token) = token else { return Ok(()) };
        if token < self.identity.admin_token {
            let error = format!("token {token} is older than {}", self.identity.admin_token);
            return Err(refused(AdminErrorKind::Conflict, error, "another operator has taken over"));
        }
        if token > self.identity.admin_token {
            self.identity.admin_token = token;
            self.write_identity(AfterIdentity::Nothing);
        }
        Ok(())
    }

    pub(crate) fn need_metadata(&self) -> Result<(), AdminError> {
        if self.metadata().is_some() {
            return Ok(());
        }
        let hint = "bootstrap the cluster first, or wait until this member has joined";
        Err(refused(AdminErrorKind::Unavailable, "this member has no metadata yet", hint))
    }

    /// A new user may do everything in `/`; one that has permissions anywhere keeps them as they are, and its tags.
    fn put_user(&mut self, request: AdminRequestId, user: UserCredentials) -> Result<(), AdminError> {
        self.need_metadata()?;
        let UserCredentials { name, password_hash } = user;
        let tags = self.metadata().and_then(|meta| meta.user(&name)).map(|known| known.tags.clone());
        let has_permissions = self.metadata().is_some_and(|meta| meta.vhosts_of(&name).next().is_some());
        let tags = tags.unwrap_or_else(|| vec!["administrator".into()]);
        let command = MetaCommand::PutUser { user: NewUser { name: name.clone(), hash: password_hash, tags } };
        if has_permissions {
            return self.ask_for_admin(request, Some(request), command);
        }
        self.ask_for_admin(request, None, command)?;
        let all = || ".*".to_owned();
        let (vhost, configure, write, read) = ("/".to_owned(), all(), all(), all());
        let grant = MetaCommand::SetPermissions { vhost, user: name, configure, write, read };
        self.ask_for_admin(request, Some(request), grant)
    }

    fn user_reports(&self) -> Vec<UserReport> {
        let Some(meta) = self.metadata() else { return Vec::new() };
        let report = |(name, user): (&str, &UserInfo)| UserReport {
            name: name.to_owned(),
            tags: user.tags.clone(),
            vhosts: meta.vhosts_of(name).map(str::to_owned).collect(),
        };
        meta.users().map(report).collect()
    }

    /// It is told that it took too long, if nothing else comes first.
    pub(crate) fn expect_answer(&mut self, request: AdminRequestId) {
        self.admin.waiting.insert(request, self.now + ANSWER_WITHIN);
    }

    pub(crate) fn is_expected(&self, request: AdminRequestId) -> bool {
        self.admin.waiting.contains_key(&request)
    }

    pub(crate) fn ask_for_admin(
        &mut self,
        request: AdminRequestId,
        waiter: Option<AdminRequestId>,
        command: MetaCommand,
    ) -> Result<(), AdminError> {
        self.need_metadata()?;
        self.admin.waiting.insert(request, self.now + ANSWER_WITHIN);
        self.ask_metadata(command, waiter.map_or(Waiter::Nobody, Waiter::Admin));
        Ok(())
    }

    pub(crate) fn admin_answered(&mut self, request: AdminRequestId, reply: MetaReply) {
        if !self.admin.waiting.contains_key(&request) {
            return; // It was told already that it took too long.
        }
        let reply = match reply {
            MetaReply::Refused { refusal } => {
                let kind = match refusal.code {
                    404 => AdminErrorKind::NotFound,
                    406 => AdminErrorKind::Conflict,
                    _ => AdminErrorKind::BadRequest,
                };
                Err(refused(kind, refusal.text, ""))
            }
            _ => Ok(AdminReply::Done),
        };
        self.admin_reply(request, reply);
    }

    fn bootstrap(
        &mut self,
        request: AdminRequestId,
        cluster_id: String,
        members: Vec<ExpectedMember>,
        user: UserCredentials,
        (factor, min_in_sync): (u8, u8),
    ) -> Result<Option<AdminReply>, AdminError> {
        if let Some(own) = &self.identity.membership
            && own.cluster_id != cluster_id
        {
            let error = format!("this member belongs to cluster '{}' already", own.cluster_id);
            let hint = "a data directory never changes its cluster: give the member an empty one";
            return Err(refused(AdminErrorKind::Conflict, error, hint));
        }
        if self.metadata().is_some() {
            return Ok(Some(AdminReply::Done));
        }
        let Some(own) = members.iter().find(|member| member.name == self.config.name).cloned() else {
            let error = format!("this member, '{}', is not among those listed", self.config.name);
            return Err(refused(AdminErrorKind::BadRequest, error, "bootstrap a member of the list"));
        };
        if cluster_id.is_empty() || cluster_id.len() > 255 {
            return Err(refused(AdminErrorKind::BadRequest, "the cluster id must have 1 to 255 bytes", ""));
        }
        let joined_elsewhere = self.me() != MemberId(0) && self.me() != MemberId(1);
        let has_metadata = self.host.as_ref().is_some_and(|host| host.key(GroupId::META).is_some());
        let made_elsewhere = self.peers.greeted().any(|(_, hello)| hello.cluster_id.as_deref() == Some(&cluster_id));
        if self.identity.membership.is_none() && made_elsewhere {
            // Another member was told first; its invitation is on the way.
            self.admin.waiting.insert(request, self.now + ANSWER_WITHIN);
            self.admin.bootstrap.insert(request);
            return Ok(None);
        }
        if self.identity.membership.is_none() {
            let addresses = members.iter().map(|member| member.address.clone());
            let peers = addresses.filter(|address| *address != self.config.advertise_peer).collect();
            self.found_cluster(cluster_id.clone(), peers);
        } else if !joined_elsewhere && !has_metadata && !self.cluster_is_there() && !self.is_metadata_lost() {
            // The process ended between the identity and the birth of group 0.
            self.create_metadata();
        }
        self.admin.waiting.insert(request, self.now + ANSWER_WITHIN);
        self.admin.bootstrap.insert(request);
        if joined_elsewhere {
            return Ok(None); // It is in the cluster; the metadata is on its way.
        }
        let init = MetaCommand::Init {
            cluster_id,
            epoch: 1,
            expected: members.into_iter().map(meta_expected).collect(),
            replication_factor: u32::from(factor),
            default_min_in_sync_replicas: u32::from(min_in_sync),
            user: Some(NewUser { name: user.name, hash: user.password_hash, tags: vec!["administrator".into()] }),
            first: NewMember {
                uuid: self.identity.uuid.to_string(),
                name: own.name,
                zone: own.zone,
                address: own.address,
                boot: Some(self.boot),
            },
        };
        self.boot_asked = Some(self.boot);
        self.ask_metadata(init, Waiter::Bootstrap);
        Ok(None)
    }

    pub(crate) fn bootstrap_answered(&mut self, reply: MetaReply) {
        let reply = match reply {
            MetaReply::Refused { refusal } => Err(refused(AdminErrorKind::Conflict, refusal.text, "")),
            _ => Ok(AdminReply::Done),
        };
        for request in std::mem::take(&mut self.admin.bootstrap) {
            self.admin_reply(request, reply.clone());
        }
    }

    /// The member of this name, if its groups can do without it at the moment.
    fn member_to_remove(&self, name: &str) -> Result<MemberId, AdminError> {
        let Some(meta) = self.metadata() else {
            return Err(refused(AdminErrorKind::Unavailable, "this member has no metadata yet", "ask another member"));
        };
        // Of two members of one name, one has replaced the other, which is on its way out already.
        let mut named = meta.members().filter(|(_, info)| info.name == name).collect::<Vec<_>>();
        named.sort_by_key(|(_, info)| matches!(info.standing, Standing::Replaced { .. }));
        let Some((id, _)) = named.first().copied() else {
            return Err(refused(AdminErrorKind::NotFound, format!("there is no member '{name}'"), ""));
        };
        let answers =
            |member: MemberId| member == self.me() || self.peers.get(member).is_some_and(|peer| !peer.suspected);
        for (group, info) in meta.groups() {
            let others: Vec<MemberId> =
                info.voters.iter().map(|voter| voter.member).filter(|member| *member != id).collect();
            let concerned = others.len() < info.voters.len();
            let able = others.iter().filter(|member| answers(**member)).count();
            if concerned && !others.is_empty() && able <= others.len() / 2 {
                let error = format!(
                    "without member '{name}' only {able} of the other {} voters of group {group} would answer",
                    others.len()
                );
                let hint = "wait until the other members are up, or repair them first";
                return Err(refused(AdminErrorKind::Conflict, error, hint));
            }
        }
        Ok(id)
    }

    fn transfer(&mut self, group: GroupId, to: &str) -> Result<(), AdminError> {
        let member = self.metadata().and_then(|meta| meta.members().find(|(_, member)| member.name == to));
        let Some(member) = member.map(|(id, _)| id) else {
            return Err(refused(AdminErrorKind::NotFound, format!("there is no member '{to}'"), ""));
        };
        let Some(host) = self.host.as_mut() else {
            return Err(refused(AdminErrorKind::Unavailable, "this member is blank", ""));
        };
        if host.key(group).is_none() {
            return Err(refused(AdminErrorKind::NotFound, format!("there is no group {group} here"), ""));
        }
        host.transfer_leader(group, member)
            .map_err(|error| refused(AdminErrorKind::Conflict, error.to_string(), "ask the group's leader, or later"))
    }

    /// Answers what took too long, and drains that are done.
    pub(crate) fn tick_admin(&mut self) {
        let now = self.now;
        self.answer_drains();
        if !self.admin.bootstrap.is_empty() && self.metadata().is_some() {
            self.bootstrap_answered(MetaReply::Done);
        }
        let late: Vec<_> =
            self.admin.waiting.iter().filter(|(_, until)| now >= **until).map(|(request, _)| *request).collect();
        for request in late {
            self.admin.bootstrap.remove(&request);
            let error = refused(AdminErrorKind::Unavailable, "no quorum answered in time", "repeat the request");
            self.admin_reply(request, Err(error));
        }
    }

    fn answer_drains(&mut self) {
        if self.admin.drains.is_empty() {
            return; // All groups are asked for who leads them.
        }
        let now = self.now;
        let remaining = self.host.as_ref().map_or(0, |host| host.leaderships());
        let drained = self.admin.drains.iter().filter(|(_, until)| remaining == 0 || now >= **until);
        for request in drained.map(|(request, _)| *request).collect::<Vec<_>>() {
            self.admin.drains.remove(&request);
            self.admin_reply(request, Ok(AdminReply::Drained { remaining }));
        }
    }

    /// This member has come to lead a group: if it lost its leader before, that was a failover.
    pub(crate) fn record_failover(&mut self, group: GroupId) {
        let Some((before, _)) = self.leaderships.announced.get(&group).copied() else { return };
        let Some(peer) = self.peers.get(before).filter(|peer| peer.suspected) else { return };
        let duration_ms = self.now.since(peer.last_heard()).as_millis() as u64;
        self.admin.last_failover = Some(Failover { at_ms: self.wall_ms, duration_ms });
        self.admin.failovers += 1;
        self.metrics.failovers += 1;
    }

    /// The summary of `GET /v1/health`.
    pub fn health(&self) -> Health {
        let statuses = self.statuses();
        let blocker = self.zone_fault_blocker(&statuses);
        let own = self.identity.membership.as_ref();
        let leader = self.leaderships.announced.get(&GroupId::META).map(|(leader, _)| *leader);
        Health {
            uuid: self.identity.uuid,
            member: own.map(|own| own.member),
            name: self.config.name.clone(),
            zone: self.config.zone.clone(),
            boot: self.boot,
            cluster_id: own.map(|own| own.cluster_id.clone()),
            cluster_epoch: own.map_or(1, |own| own.cluster_epoch),
            state: match (own, self.ready()) {
                (None, _) => MemberState::Blank,
                (Some(_), false) => MemberState::Joining,
                (Some(_), true) => MemberState::Started,
            },
            ready: self.ready(),
            metadata_leader: leader.and_then(|leader| self.name_of(leader)),
            quorum: self.lease_fresh(),
            groups: self.group_counts(&statuses),
            last_failover: self.admin.last_failover,
            failovers: self.admin.failovers,
            members: self.members_health(),
            alarms: self.alarms_by_name(),
            blocked_connections: self.clients.values().filter(|client| client.blocked).count(),
            zone_fault_tolerant: blocker.is_none(),
            zone_fault_blocker: blocker,
        }
    }

    fn alarms_by_name(&self) -> Vec<(String, Alarms)> {
        let me = self.me();
        let name = |member| match member == me {
            true => self.config.name.clone(),
            false => self.name_of(member).unwrap_or_else(|| member.to_string()),
        };
        self.alarmed_members().into_iter().map(|(member, alarms)| (name(member), alarms)).collect()
    }

    fn statuses(&self) -> Vec<(GroupId, GroupStatus)> {
        let Some(host) = self.host.as_ref() else { return Vec::new() };
        host.groups().filter_map(|group| Some((group, host.status(group)?))).collect()
    }

    pub(crate) fn name_of(&self, member: MemberId) -> Option<String> {
        let known = self.metadata().and_then(|meta| meta.member(member)).map(|member| member.name.clone());
        known.or_else(|| self.peers.get(member).map(|peer| peer.name.clone()))
    }

    fn group_counts(&self, statuses: &[(GroupId, GroupStatus)]) -> GroupCounts {
        let mut counts = GroupCounts { total: statuses.len(), ..GroupCounts::default() };
        for (group, status) in statuses {
            counts.leading += usize::from(status.me_leading);
            counts.without_leader += usize::from(status.leader.is_none());
            counts.quarantined += usize::from(status.role == Role::Quarantined);
            if status.me_leading {
                let voters = || status.peers.iter().filter(|peer| peer.voter);
                counts.lagging += usize::from(voters().any(|peer| peer.lag > CAUGHT_UP));
                counts.under_replicated += usize::from(self.is_under_replicated(*group, status));
            }
        }
        counts
    }

    fn members_health(&self) -> Vec<MemberHealth> {
        let Some(meta) = self.metadata() else { return Vec::new() };
        let expected = meta.cluster().map(|cluster| cluster.expected.as_slice()).unwrap_or_default();
        let mut seen = BTreeSet::new();
        let mut members: Vec<MemberHealth> = Vec::new();
        for (id, member) in meta.members() {
            let me = id == self.me();
            let peer = self.peers.get(id);
            seen.insert(member.name.clone());
            members.push(MemberHealth {
                name: member.name.clone(),
                id: Some(id),
                zone: member.zone.clone(),
                live: me || peer.is_some_and(|peer| !peer.suspected),
                ready: if me { self.ready() } else { peer.is_some_and(|peer| peer.ready && !peer.suspected) },
            });
        }
        for member in expected.iter().filter(|member| !seen.contains(&member.name)) {
            let (name, zone) = (member.name.clone(), member.zone.clone());
            members.push(MemberHealth { name, id: None, zone, live: false, ready: false });
        }
        members
    }

    /// The first group led here that would lose its quorum with some zone, from real match indexes.
    fn zone_fault_blocker(&self, statuses: &[(GroupId, GroupStatus)]) -> Option<String> {
        let Some(meta) = self.metadata() else { return Some("the cluster is not started".into()) };
        let zone_of = |member: MemberId| meta.member(member).map_or("", |member| member.zone.as_str());
        for (group, status) in statuses.iter().filter(|(_, status)| status.me_leading) {
            let voters: Vec<_> = status.peers.iter().filter(|peer| peer.voter).collect();
            let majority = voters.len() / 2 + 1;
            let zones: BTreeSet<&str> = voters.iter().map(|peer| zone_of(peer.replica.member)).collect();
            for zone in zones {
                let left = voters
                    .iter()
                    .filter(|peer| zone_of(peer.replica.member) != zone && peer.live && peer.lag <= CAUGHT_UP)
                    .count();
                if left < majority {
                    let zone = if zone.is_empty() { "(none given)" } else { zone };
                    return Some(format!(
                        "without zone {zone}, group {group} would have {left} of the {majority} caught-up voters it needs"
                    ));
                }
            }
        }
        None
    }

    fn group_reports(&self, limit: usize) -> Vec<GroupReport> {
        let Some(host) = self.host.as_ref() else { return Vec::new() };
        let reports = host.groups().take(limit).filter_map(|group| Some(self.group_report(group, host.status(group)?)));
        reports.collect()
    }

    /// The queues of a group, as `vhost/name`.
    pub(crate) fn queue_names(&self, group: GroupId) -> Vec<String> {
        let Some(meta) = self.metadata() else { return Vec::new() };
        let queues = meta.group(group).into_iter().flat_map(|info| &info.queues);
        queues.filter_map(|queue| meta.queue(*queue)).map(|info| format!("{}/{}", info.vhost, info.name)).collect()
    }

    fn group_report(&self, group: GroupId, status: GroupStatus) -> GroupReport {
        let name = |member: MemberId| self.name_of(member).unwrap_or_else(|| member.to_string());
        let unknown = |member: &ReplicaId, voter| ReplicaReport {
            member: member.member,
            name: name(member.member),
            voter,
            matched: 0,
            lag: 0,
        };
        let replicas = if status.peers.is_empty() {
            let voters = status.voters.iter().map(|member| unknown(member, true));
            voters.chain(status.learners.iter().map(|member| unknown(member, false))).collect()
        } else {
            let known = status.peers.iter().map(|peer| ReplicaReport {
                member: peer.replica.member,
                name: name(peer.replica.member),
                voter: peer.voter,
                matched: peer.matched,
                lag: peer.lag,
            });
            known.collect()
        };
        GroupReport {
            group,
            queues: self.queue_names(group),
            voters_expected: self.metadata().map_or(0, |meta| meta.voters_expected(group)),
            leader: status.leader.map(name),
            leading: status.me_leading,
            term: status.term,
            commit: status.commit,
            applied: status.applied,
            quarantined: status.role == Role::Quarantined,
            in_sync_replicas: status
                .me_leading
                .then(|| self.host.as_ref().map_or(0, |it| it.voters_known_in_sync(group))),
            min_in_sync_replicas: self.metadata().map_or(0, |meta| meta.group_min_in_sync_replicas(group)),
            replicas,
        }
    }
}

fn meta_expected(member: ExpectedMember) -> MetaExpected {
    MetaExpected { name: member.name, address: member.address, zone: member.zone }
}
