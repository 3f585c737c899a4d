//! Links to other members and what they tell of them: who is there, in which run, and who is silent.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use holdfast_queue::codec::{Codec, Writer};
use holdfast_queue::ids::{BootId, MemberId};
use holdfast_queue::time::{Duration, Instant};

use crate::alarms::Alarms;
use crate::peer_message::{Hello, PeerMessage};
use crate::seam::{LinkId, LinkOrigin, Output};

/// One heartbeat per pair of members (design §3.1).
pub(crate) const HEARTBEAT_EVERY: Duration = Duration::from_millis(150);
/// A member that is silent for this long is suspected.
pub(crate) const SUSPECT_AFTER: Duration = Duration::from_millis(600);
/// A member whose last link broke, and that does not come back within this, is suspected.
pub(crate) const SUSPECT_AFTER_RESET: Duration = Duration::from_millis(150);
/// Room that is kept for the next frame at most.
const KEPT_BYTES: usize = 64 << 10;
/// Frames are closed at about this size.
const FRAME_BYTES: usize = 1 << 20;

/// One link.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) origin: LinkOrigin,
    /// None until the other side said hello.
    pub(crate) hello: Option<Hello>,
}

/// A member of the cluster other than this one.
pub(crate) struct Peer {
    pub(crate) boot: BootId,
    pub(crate) name: String,
    pub(crate) ready: bool,
    /// It hands its leaderships away.
    pub(crate) draining: bool,
    /// The link in use; messages without one are dropped.
    link: Option<LinkId>,
    last_heard: Instant,
    /// When something last came from it on a link, and not through a third member.
    heard_directly: Instant,
    /// What is sent to it on a link arrives, as far as it has said. A link can carry one way only.
    hears_us: bool,
    link_lost: Option<Instant>,
    pub(crate) suspected: bool,
    /// Members that the other side hears on links.
    hears: Vec<MemberId>,
    pub(crate) alarms: Alarms,
    pub(crate) transient_full: bool,
    outbox: Writer,
}

/// Something that the member must act upon.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PeerChange {
    /// Heard for the first time, again after suspicion, or in another run. `fresh_boot` in the last case.
    Returned {
        member: MemberId,
        fresh_boot: bool,
    },
    Suspected {
        member: MemberId,
    },
}

/// All links and peers.
#[derive(Default)]
pub(crate) struct Peers {
    links: BTreeMap<LinkId, Link>,
    peers: BTreeMap<MemberId, Peer>,
    boots: BTreeMap<BootId, MemberId>,
    dialled: BTreeSet<String>,
    next_heartbeat: Instant,
}

impl Peers {
    /// Sets the addresses that are to be dialled; returns what changes.
    pub(crate) fn dial_exactly(&mut self, addresses: BTreeSet<String>) -> Vec<Output> {
        let gone = self.dialled.difference(&addresses).map(|address| Output::Undial { address: address.clone() });
        let new = addresses.difference(&self.dialled).map(|address| Output::Dial { address: address.clone() });
        let outputs = gone.chain(new).collect();
        self.dialled = addresses;
        outputs
    }

    pub(crate) fn link_up(&mut self, link: LinkId, origin: LinkOrigin) {
        self.links.insert(link, Link { origin, hello: None });
    }

    pub(crate) fn link(&self, link: LinkId) -> Option<&Link> {
        self.links.get(&link)
    }

    /// Links whose other side has said hello, with what it said.
    pub(crate) fn greeted(&self) -> impl Iterator<Item = (LinkId, &Hello)> {
        self.links.iter().filter_map(|(id, link)| Some((*id, link.hello.as_ref()?)))
    }

    pub(crate) fn all_links(&self) -> impl Iterator<Item = LinkId> {
        self.links.keys().copied()
    }

    /// Takes an accepted hello in. Returns what it changes about its member.
    pub(crate) fn hello(&mut self, id: LinkId, hello: Hello, now: Instant) -> Option<PeerChange> {
        let link = self.links.get_mut(&id)?;
        let member = hello.member;
        let (boot, name) = (hello.boot, hello.name.clone());
        link.hello = Some(hello);
        let member = member?;
        let new = !self.peers.contains_key(&member);
        let peer = self.peers.entry(member).or_insert_with(|| Peer {
            boot,
            name: name.clone(),
            ready: false,
            draining: false,
            link: None,
            last_heard: now,
            heard_directly: now,
            hears_us: true,
            link_lost: None,
            suspected: false,
            hears: Vec::new(),
            alarms: Alarms::default(),
            transient_full: false,
            outbox: Writer::default(),
        });
        peer.name = name;
        if peer.link.is_none() {
            peer.link = Some(id);
        }
        peer.link_lost = None;
        (peer.heard_directly, peer.hears_us) = (now, true);
        self.boots.insert(boot, member);
        let change = self.heard(member, boot, now);
        if new { Some(PeerChange::Returned { member, fresh_boot: true }) } else { change }
    }

    /// Forgets a link; the member whose messages may be lost with it, if it was known.
    pub(crate) fn link_down(&mut self, id: LinkId, now: Instant) -> Option<MemberId> {
        let member = self.links.remove(&id)?.hello?.member?;
        let other = self.greeted().find(|(_, hello)| hello.member == Some(member)).map(|(id, _)| id);
        let peer = self.peers.get_mut(&member)?;
        if peer.link == Some(id) {
            peer.link = other;
            peer.outbox = Writer::default();
        }
        if other.is_none() {
            peer.link_lost = Some(now);
            // If there is a way through a third member, this shows it before anybody is suspected.
            self.next_heartbeat = now;
        }
        Some(member)
    }

    /// The member spoke, in this run.
    pub(crate) fn heard(&mut self, member: MemberId, boot: BootId, now: Instant) -> Option<PeerChange> {
        let peer = self.peers.get_mut(&member)?;
        peer.last_heard = now;
        peer.link_lost = None;
        let fresh_boot = peer.boot != boot;
        if fresh_boot {
            self.boots.remove(&peer.boot);
            self.boots.insert(boot, member);
            peer.boot = boot;
            peer.ready = false;
        }
        if peer.suspected || fresh_boot {
            peer.suspected = false;
            return Some(PeerChange::Returned { member, fresh_boot });
        }
        None
    }

    /// A frame came on a link with this member.
    pub(crate) fn heard_directly(&mut self, member: MemberId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.heard_directly = now;
        }
    }

    /// The member said whom it hears on its links; `me` is this one.
    pub(crate) fn said_to_hear(&mut self, member: MemberId, hears: &[MemberId], me: MemberId) {
        if let Some(peer) = self.peers.get_mut(&member) {
            peer.hears_us = hears.contains(&me);
            peer.hears = hears.to_vec();
        }
    }

    /// Members that became silent.
    pub(crate) fn check_silence(&mut self, now: Instant) -> Vec<PeerChange> {
        let mut changes = Vec::new();
        for (member, peer) in &mut self.peers {
            let silent = now.since(peer.last_heard) >= SUSPECT_AFTER;
            let cut = peer.link_lost.is_some_and(|at| now.since(at) >= SUSPECT_AFTER_RESET);
            if !peer.suspected && (silent || cut) {
                peer.suspected = true;
                peer.hears.clear();
                peer.hears_us = false;
                changes.push(PeerChange::Suspected { member: *member });
            }
        }
        changes
    }

    /// Counts silence anew, since nobody listened.
    pub(crate) fn forgive_silence(&mut self, now: Instant) {
        for peer in self.peers.values_mut().filter(|peer| !peer.suspected) {
            peer.last_heard = now;
            peer.heard_directly = now;
        }
    }

    /// True when what leaves on a link with this member arrives.
    pub(crate) fn is_direct(&self, to: MemberId) -> bool {
        self.peers.get(&to).is_some_and(Peer::is_direct)
    }

    /// A member that can be reached on a link and hears `to`, which cannot.
    fn way_to(&self, to: MemberId) -> Option<MemberId> {
        let mut ways = self.peers.iter().filter(|(_, peer)| peer.is_direct());
        ways.find(|(_, peer)| peer.hears.contains(&to)).map(|(member, _)| *member)
    }

    /// True when messages to a member can leave, directly or through another one.
    pub(crate) fn is_reachable(&self, member: MemberId) -> bool {
        self.is_linked(member) || self.way_to(member).is_some()
    }

    /// Members that are heard on links: they can be reached through this one.
    pub(crate) fn linked_and_heard(&self, now: Instant) -> impl Iterator<Item = MemberId> + '_ {
        let is_heard = move |peer: &Peer| now.since(peer.heard_directly) < SUSPECT_AFTER;
        let linked = self.peers.iter().filter(|(_, peer)| peer.link.is_some() && !peer.suspected);
        linked.filter(move |(_, peer)| is_heard(peer)).map(|(member, _)| *member)
    }

    /// Queues a message for a member that may be out of direct reach: then it goes through a third member (design §3.4).
    /// That is so without a link, and while the link carries nothing that way.
    pub(crate) fn send_or_relay(
        &mut self,
        from: MemberId,
        to: MemberId,
        message: &PeerMessage,
        outputs: &mut impl Extend<Output>,
    ) {
        let way = if self.is_direct(to) { None } else { self.way_to(to) };
        match way {
            None => self.send(to, message, outputs),
            Some(way) => {
                let relay = PeerMessage::Relay { from, to, messages: message.to_bytes() };
                self.send(way, &relay, outputs);
            }
        }
    }

    /// True when a round of heartbeats is due.
    pub(crate) fn heartbeat_due(&mut self, now: Instant) -> bool {
        if now < self.next_heartbeat {
            return false;
        }
        self.next_heartbeat = now + HEARTBEAT_EVERY;
        true
    }

    pub(crate) fn get(&self, member: MemberId) -> Option<&Peer> {
        self.peers.get(&member)
    }

    pub(crate) fn get_mut(&mut self, member: MemberId) -> Option<&mut Peer> {
        self.peers.get_mut(&member)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (MemberId, &Peer)> {
        self.peers.iter().map(|(member, peer)| (*member, peer))
    }

    /// Forgets a member that left the cluster.
    pub(crate) fn remove(&mut self, member: MemberId) {
        if let Some(peer) = self.peers.remove(&member) {
            self.boots.remove(&peer.boot);
        }
    }

    /// The member that runs as this boot, if it is linked.
    pub(crate) fn member_of(&self, boot: BootId) -> Option<MemberId> {
        self.boots.get(&boot).copied()
    }

    /// True while messages to this member can leave.
    pub(crate) fn is_linked(&self, member: MemberId) -> bool {
        self.peers.get(&member).is_some_and(|peer| peer.link.is_some())
    }

    /// Queues a message for the next frame to a member. Without a link it is dropped: everything is asked for again.
    pub(crate) fn send(&mut self, to: MemberId, message: &PeerMessage, outputs: &mut impl Extend<Output>) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if peer.link.is_none() {
            return;
        }
        message.encode(&mut peer.outbox);
        if peer.outbox.len() >= FRAME_BYTES {
            outputs.extend(peer.take_frame());
        }
    }

    /// Sends a whole frame after all that was queued before.
    pub(crate) fn send_frame(&mut self, to: MemberId, bytes: Bytes, outputs: &mut impl Extend<Output>) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        let Some(link) = peer.link else { return };
        outputs.extend(peer.take_frame());
        outputs.extend([Output::LinkSend { link, bytes }]);
    }

    /// Closes the frames of this round.
    pub(crate) fn flush(&mut self, outputs: &mut impl Extend<Output>) {
        for peer in self.peers.values_mut() {
            outputs.extend(peer.take_frame());
        }
    }
}

impl Peer {
    fn is_direct(&self) -> bool {
        self.link.is_some() && self.hears_us && !self.suspected
    }

    pub(crate) fn last_heard(&self) -> Instant {
        self.last_heard
    }

    fn take_frame(&mut self) -> Option<Output> {
        if self.outbox.is_empty() {
            return None;
        }
        // The next frame is likely to be as large as this one.
        let next = Writer::with_capacity(self.outbox.len().min(KEPT_BYTES));
        let bytes: Bytes = std::mem::replace(&mut self.outbox, next).into_bytes();
        Some(Output::LinkSend { link: self.link?, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(member: u64, boot: u64) -> Hello {
        Hello {
            protocol: 1,
            cluster_id: None,
            cluster_epoch: 1,
            meta_incarnation: Default::default(),
            uuid: u128::from(member),
            member: Some(MemberId(member)),
            boot: BootId(boot),
            name: format!("m{member}"),
            zone: String::new(),
            address: String::new(),
        }
    }

    fn accepted() -> LinkOrigin {
        LinkOrigin::Accepted { from: "x".into() }
    }

    #[test]
    fn a_silent_member_is_suspected_once_and_returns_when_it_speaks() {
        let mut peers = Peers::default();
        peers.link_up(LinkId(1), accepted());
        let start = Instant(1_000_000);
        let change = peers.hello(LinkId(1), hello(2, 7), start);
        assert_eq!(change, Some(PeerChange::Returned { member: MemberId(2), fresh_boot: true }));
        assert!(peers.check_silence(start + Duration::from_millis(599)).is_empty());
        let late = start + SUSPECT_AFTER;
        assert_eq!(peers.check_silence(late), [PeerChange::Suspected { member: MemberId(2) }]);
        assert!(peers.check_silence(late).is_empty());
        let back = peers.heard(MemberId(2), BootId(7), late);
        assert_eq!(back, Some(PeerChange::Returned { member: MemberId(2), fresh_boot: false }));
    }

    #[test]
    fn a_broken_link_is_replaced_by_another_one_or_leads_to_early_suspicion() {
        let mut peers = Peers::default();
        let start = Instant(1_000_000);
        for id in [1, 2] {
            peers.link_up(LinkId(id), accepted());
            peers.hello(LinkId(id), hello(2, 7), start);
        }
        assert_eq!(peers.link_down(LinkId(1), start), Some(MemberId(2)));
        assert!(peers.is_linked(MemberId(2)));
        assert!(peers.check_silence(start + SUSPECT_AFTER_RESET).is_empty());
        peers.link_down(LinkId(2), start);
        assert!(!peers.is_linked(MemberId(2)));
        assert_eq!(peers.check_silence(start + SUSPECT_AFTER_RESET).len(), 1);
    }

    /// To whom the frames go that a message to member 2 becomes; link 1 is with member 2, link 2 with member 3.
    fn route(peers: &mut Peers) -> Vec<LinkId> {
        let mut outputs = Vec::new();
        peers.send_or_relay(MemberId(1), MemberId(2), &PeerMessage::MetaApplied { index: 1 }, &mut outputs);
        peers.flush(&mut outputs);
        let link = |output| if let Output::LinkSend { link, .. } = output { link } else { panic!("{output:?}") };
        outputs.into_iter().map(link).collect()
    }

    #[test]
    fn what_does_not_arrive_on_a_link_that_stands_goes_through_a_third_member_until_it_does_again() {
        let mut peers = Peers::default();
        let start = Instant(1_000_000);
        for (id, member, boot) in [(1, 2, 7), (2, 3, 8)] {
            peers.link_up(LinkId(id), accepted());
            peers.hello(LinkId(id), hello(member, boot), start);
        }
        let (me, two, three) = (MemberId(1), MemberId(2), MemberId(3));
        peers.said_to_hear(three, &[me, two], me);
        assert_eq!(route(&mut peers), [LinkId(1)]);
        peers.said_to_hear(two, &[three], me);
        assert_eq!(route(&mut peers), [LinkId(2)], "member 2 does not hear this one, member 3 reaches it");
        peers.said_to_hear(three, &[me], me);
        assert_eq!(route(&mut peers), [LinkId(1)], "nobody reaches it: it is tried");
        peers.said_to_hear(three, &[me, two], me);
        peers.said_to_hear(two, &[me, three], me);
        assert_eq!(route(&mut peers), [LinkId(1)]);
    }

    #[test]
    fn a_member_that_is_heard_through_others_only_is_not_told_as_heard_on_a_link() {
        let mut peers = Peers::default();
        let start = Instant(1_000_000);
        peers.link_up(LinkId(1), accepted());
        peers.hello(LinkId(1), hello(2, 7), start);
        let later = start + SUSPECT_AFTER;
        assert_eq!(peers.heard(MemberId(2), BootId(7), later), None);
        assert!(peers.check_silence(later).is_empty());
        assert_eq!(peers.linked_and_heard(later).count(), 0);
        peers.heard_directly(MemberId(2), later);
        assert_eq!(peers.linked_and_heard(later).count(), 1);
    }

    #[test]
    fn messages_of_a_round_share_a_frame_and_without_a_link_they_are_dropped() {
        let mut peers = Peers::default();
        peers.link_up(LinkId(1), accepted());
        peers.hello(LinkId(1), hello(2, 7), Instant(1));
        let mut outputs = Vec::new();
        for index in 0..3 {
            peers.send(MemberId(2), &PeerMessage::MetaApplied { index }, &mut outputs);
            peers.send(MemberId(3), &PeerMessage::MetaApplied { index }, &mut outputs);
        }
        peers.flush(&mut outputs);
        assert_eq!(outputs.len(), 1);
    }
}
