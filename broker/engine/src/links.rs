//! Frames from other members: the hello, heartbeats, and who gets what else they say.

use bytes::Bytes;
use holdfast_journal::EntryReader;
use holdfast_queue::ids::MemberId;
use holdfast_queue::meta::Standing;
use holdfast_replica::EnvelopeError;

use crate::member::Member;
use crate::peer_message::{Frame, Heartbeat, Hello, PROTOCOL_VERSION, PeerMessage};
use crate::peers::PeerChange;
use crate::seam::{LinkId, LinkOrigin, Output, Severity};

impl<R: EntryReader> Member<R> {
    /// What this member says of itself.
    fn own_hello(&self) -> Hello {
        let membership = self.identity.membership.as_ref();
        Hello {
            protocol: PROTOCOL_VERSION,
            cluster_id: membership.map(|membership| membership.cluster_id.clone()),
            cluster_epoch: membership.map_or(0, |membership| membership.cluster_epoch),
            meta_incarnation: self.metadata_incarnation(),
            uuid: self.identity.uuid.0,
            member: membership.map(|membership| membership.member),
            boot: self.boot,
            name: self.config.name.clone(),
            zone: self.config.zone.clone(),
            address: self.config.advertise_peer.clone(),
        }
    }

    /// Sends a message on one link at once, whoever is behind it.
    pub(crate) fn send_on(&mut self, link: LinkId, message: &PeerMessage) {
        let bytes = holdfast_queue::codec::Codec::to_bytes(message);
        self.outputs.push_back(Output::LinkSend { link, bytes });
    }

    /// Sends a message to a member with this round's frame.
    pub(crate) fn send(&mut self, to: MemberId, message: PeerMessage) {
        let me = self.me();
        self.peers.send_or_relay(me, to, &message, &mut self.outputs);
    }

    /// Sends a Raft envelope; a large one as the frame of its own that it is, so that it is copied only once.
    pub(crate) fn send_envelope(&mut self, to: MemberId, bytes: Bytes, is_frame: bool) {
        match is_frame {
            true if self.peers.is_direct(to) => self.peers.send_frame(to, bytes, &mut self.outputs),
            // Without the byte that makes it a frame.
            true => self.send(to, PeerMessage::Envelope(bytes.slice(1..))),
            false => self.send(to, PeerMessage::Envelope(bytes)),
        }
    }

    /// Passes messages on to a member that their sender cannot reach, or takes them in where they arrive.
    fn relayed(&mut self, from: MemberId, to: MemberId, messages: Bytes) {
        if to != self.me() {
            if self.peers.is_linked(to) {
                self.peers.send(to, &PeerMessage::Relay { from, to, messages }, &mut self.outputs);
            }
            return;
        }
        for message in Frame::new(messages).map_while(Result::ok) {
            if !matches!(message, PeerMessage::Relay { .. }) {
                self.peer_message(from, message);
            }
        }
    }

    /// Sends a message to a member, which may be this one.
    pub(crate) fn send_or_take(&mut self, to: MemberId, message: PeerMessage) {
        if to == self.me() { self.peer_message(to, message) } else { self.send(to, message) }
    }

    pub(crate) fn link_up(&mut self, link: LinkId, origin: LinkOrigin) {
        self.peers.link_up(link, origin);
        let hello = PeerMessage::Hello(self.own_hello());
        self.send_on(link, &hello);
    }

    /// Says hello again on all links, since who this member is has changed.
    pub(crate) fn greet_again(&mut self) {
        let hello = PeerMessage::Hello(self.own_hello());
        let links: Vec<LinkId> = self.peers.all_links().collect();
        for link in links {
            self.send_on(link, &hello);
        }
    }

    pub(crate) fn link_down(&mut self, link: LinkId) {
        if let Some(member) = self.peers.link_down(link, self.now) {
            self.detach_from(member);
        }
    }

    /// Takes a whole frame in. Before the hello nothing else counts.
    pub(crate) fn link_frame(&mut self, link: LinkId, bytes: Bytes) {
        for message in Frame::new(bytes) {
            let message = match message {
                Ok(message) => message,
                Err(error) => return self.close_link(link, format!("it sent a malformed frame: {error}")),
            };
            let Some(known) = self.peers.link(link) else { return };
            let from = known.hello.as_ref().map(|hello| hello.member);
            match (message, from) {
                (PeerMessage::Hello(hello), _) => self.hello(link, hello),
                (PeerMessage::Refused { reason }, _) => {
                    self.event(Severity::Warning, format!("another member refuses this one: {reason}"));
                }
                (PeerMessage::Invite(invite), Some(_)) => self.invited(link, invite),
                (message, Some(Some(member))) => {
                    self.peers.heard_directly(member, self.now);
                    self.peer_message(member, message);
                }
                (_, Some(None)) => {} // A blank member has nothing else to say.
                (_, None) => return self.close_link(link, "it spoke before it said hello".into()),
            }
        }
    }

    /// Ends the links with a member whose place another disk has taken.
    pub(crate) fn fence_replaced(&mut self, member: MemberId) {
        let standing = self.metadata().and_then(|meta| meta.member(member)).map(|info| info.standing);
        if matches!(standing, Some(Standing::Replaced { .. })) {
            self.fence(member, "another disk has taken its place");
        }
    }

    /// Ends the links with a member that has no part in the cluster any more.
    pub(crate) fn fence(&mut self, member: MemberId, why: &str) {
        let with = |(link, hello): (LinkId, &Hello)| (hello.member == Some(member)).then_some(link);
        let links: Vec<LinkId> = self.peers.greeted().filter_map(with).collect();
        for link in links {
            self.send_on(link, &PeerMessage::Refused { reason: why.to_owned() });
            self.close_link(link, why.to_owned());
        }
    }

    fn close_link(&mut self, link: LinkId, reason: String) {
        let with = match self.peers.link(link).map(|link| &link.origin) {
            Some(LinkOrigin::Dialled { address }) => format!("to {address}"),
            Some(LinkOrigin::Accepted { from }) => format!("from {from}"),
            None => return,
        };
        self.event(Severity::Warning, format!("closing the peer link {with}: {reason}"));
        self.outputs.push_back(Output::LinkClose { link, reason });
        self.link_down(link);
    }

    fn hello(&mut self, link: LinkId, hello: Hello) {
        self.look_at_epoch(&hello);
        if let Some(reason) = self.refusal(&hello) {
            self.send_on(link, &PeerMessage::Refused { reason: reason.clone() });
            return self.close_link(link, reason);
        }
        let member = hello.member;
        let known = self.peers.link(link).and_then(|known| known.hello.as_ref()?.member);
        let first = known.is_none();
        if let Some(change) = self.peers.hello(link, hello, self.now) {
            self.peer_changed(change);
        }
        if let Some(member) = member
            && first
        {
            // The boots and groups of both sides may be news, and what the last link carried may be lost.
            self.announce_all_to(member);
            self.detach_from(member);
        }
        self.greeted(link);
    }

    /// Why this member has nothing to do with another one, if so (design §3.1).
    fn refusal(&self, hello: &Hello) -> Option<String> {
        if hello.protocol != PROTOCOL_VERSION {
            return Some(format!(
                "member {} speaks version {} of the peer protocol, this one speaks {PROTOCOL_VERSION}",
                hello.name, hello.protocol
            ));
        }
        if hello.uuid == self.identity.uuid.0 {
            return Some(format!("{} is this member itself, or a copy of its data directory", hello.address));
        }
        let (own, theirs) = (self.identity.membership.as_ref()?, hello.cluster_id.as_ref()?);
        if own.cluster_id != *theirs {
            return Some(format!("member {} belongs to cluster {theirs}, this one to {}", hello.name, own.cluster_id));
        }
        if let Some(reason) = crate::epochs::other_epoch(own, hello) {
            return Some(reason);
        }
        let replaced = |member: MemberId| {
            let info = self.metadata()?.member(member)?;
            matches!(info.standing, Standing::Replaced { .. }).then(|| info.name.clone())
        };
        if let Some(name) = hello.member.and_then(replaced) {
            return Some(format!("another disk has taken the place of this one under the name {name}"));
        }
        if let Some(id) = hello.member.filter(|id| self.metadata().is_some_and(|meta| meta.was_removed(*id))) {
            return Some(format!("member {} ({id}) was removed from the cluster", hello.name));
        }
        let uuid_of = self.metadata().and_then(|meta| meta.member(hello.member?)).map(|member| member.uuid.clone());
        let shown = crate::identity::MemberUuid(hello.uuid).to_string();
        uuid_of
            .filter(|known| *known != shown)
            .map(|known| format!("member {} shows the UUID {shown}, but the cluster knows it as {known}", hello.name))
    }

    pub(crate) fn peer_changed(&mut self, change: PeerChange) {
        self.copies.recheck = true;
        match change {
            PeerChange::Returned { member, fresh_boot } => {
                self.not_quiet();
                if let Some(host) = self.host.as_mut() {
                    let boot = self.peers.get(member).map(|peer| peer.boot).unwrap_or_default();
                    host.member_returned(member, boot, self.now);
                }
                if fresh_boot {
                    self.event(Severity::Info, format!("member {member} is here"));
                }
            }
            PeerChange::Suspected { member } => {
                self.not_quiet();
                self.event(Severity::Warning, format!("member {member} is silent"));
                if let Some(host) = self.host.as_mut() {
                    host.member_suspected(member, self.now);
                }
            }
        }
    }

    fn heartbeat(&mut self, from: MemberId, heartbeat: &Heartbeat) {
        let change = self.peers.heard(from, heartbeat.boot, self.now);
        if let Some(peer) = self.peers.get_mut(from) {
            peer.ready = heartbeat.ready;
            peer.draining = heartbeat.draining;
            peer.alarms = heartbeat.alarms;
            peer.transient_full = heartbeat.transient_full;
        }
        self.peers.said_to_hear(from, &heartbeat.hears, self.me());
        if let Some(change) = change {
            self.peer_changed(change);
            self.announce_all_to(from);
            self.detach_from(from);
        }
    }

    /// Sends the heartbeats that are due, and notices who is silent.
    pub(crate) fn tick_peers(&mut self) {
        if self.peers.heartbeat_due(self.now) {
            let write_age_ms = self.oldest_write_age_ms();
            let ready = self.ready();
            let draining = self.host.as_ref().is_some_and(|host| host.is_draining());
            let members: Vec<MemberId> = self.peers.iter().map(|(member, _)| member).collect();
            let hears: Vec<MemberId> = self.peers.linked_and_heard(self.now).collect();
            for member in members {
                let heartbeat = Heartbeat {
                    boot: self.boot,
                    hears: hears.clone(),
                    write_age_ms,
                    ready,
                    draining,
                    alarms: self.alarms.own,
                    transient_full: self.transient_full(),
                };
                let heartbeat = PeerMessage::Heartbeat(heartbeat);
                if !self.peers.is_direct(member) {
                    // On the link too, so that it shows when that carries again.
                    self.peers.send(member, &heartbeat, &mut self.outputs);
                }
                self.send(member, heartbeat);
            }
        }
        for change in self.peers.check_silence(self.now) {
            self.peer_changed(change);
        }
    }

    /// Takes a message of a known member in (or of this one, where it talks to itself).
    pub(crate) fn peer_message(&mut self, from: MemberId, message: PeerMessage) {
        match message {
            PeerMessage::Hello(_) | PeerMessage::Refused { .. } | PeerMessage::Invite(_) => {}
            PeerMessage::Heartbeat(heartbeat) => self.heartbeat(from, &heartbeat),
            PeerMessage::Envelope(bytes) => self.envelope(from, bytes),
            PeerMessage::Commands { group, batch } => self.take_commands(group, from, &batch),
            PeerMessage::Attach { group, boot } => self.attach(group, boot, from),
            PeerMessage::Attached { group, term } => self.attached(group, from, term),
            PeerMessage::Leaders { groups } => {
                for (group, (leader, term)) in groups {
                    self.group_led_by(group, leader, term);
                }
            }
            PeerMessage::Relay { from, to, messages } => self.relayed(from, to, messages),
            PeerMessage::NotLeading { group, leader } => self.not_leading(group, from, leader),
            PeerMessage::DeliveriesAfter { group, queue, consumer, after } => {
                self.send_outstanding(group, queue, consumer, after, from);
            }
            PeerMessage::Outstanding { group, queue, consumer, through, deliveries } => {
                self.outstanding(group, queue, consumer, through, deliveries);
            }
            PeerMessage::QueueEffect { group, effect } => self.home_effect(group, effect),
            PeerMessage::MetaEffect { effect, index } => self.metadata_effect(effect, index),
            PeerMessage::LeaseRequest { round, applied, boot } => self.lease_request(from, round, applied, boot),
            PeerMessage::LeaseProbe { round } => self.lease_probe(from, round),
            PeerMessage::LeaseProbeAck { round, term } => self.lease_probe_ack(from, round, term),
            PeerMessage::LeaseGrant { round, commit } => self.lease.granted(round, commit),
            PeerMessage::MetaApplied { index } => self.granter.report_applied(from, index),
            PeerMessage::InSync { group, term, replicas } => self.in_sync_told(group, term, replicas),
            PeerMessage::Permit { group } => self.take_permit(from, group),
            PeerMessage::MoveNote { group, note } => self.move_noted(group, note),
            PeerMessage::Lead { group, to } => self.take_lead(group, to),
            PeerMessage::MetadataDamaged { generation } => self.metadata_damaged(from, generation),
            PeerMessage::RejoinMetadata { generation } => self.rejoin_metadata(generation),
            PeerMessage::Barrier(message) => self.barrier_message(from, message),
        }
    }

    fn envelope(&mut self, from: MemberId, bytes: Bytes) {
        let now = self.now;
        if let Some(Err(error)) = self.host.as_mut().map(|host| host.arrived(from, bytes, now)) {
            self.bad_envelope(from, &error);
        }
    }

    pub(crate) fn bad_envelope(&mut self, from: MemberId, error: &EnvelopeError) {
        self.event(Severity::Error, format!("member {from} sent a bad envelope: {error}"));
    }
}
