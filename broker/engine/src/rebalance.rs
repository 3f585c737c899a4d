//! The leader of group 0 decides which groups move, and who leads them: a bounded number at a time, and it says why.
//!
//! It coordinates because only it sees all groups, and because a cluster that repairs itself must not drown its clients in
//! copies: the bound is for the whole cluster. Groups that lack voters have a wider one of their own, so that redundancy never
//! waits for a move that could as well come later. It decides nothing about *how* a group moves; that follows from the group
//! itself, on the group's leader (see [`crate::mover`]). So all that is kept here may be lost: the next coordinator finds
//! the same groups unsettled, and an old one that does not know that it is deposed can do no more than exceed the bound
//! for a second.

use std::collections::{BTreeMap, VecDeque};

use holdfast_journal::EntryReader;
use holdfast_queue::ids::{GroupId, MemberId};
use holdfast_queue::meta::{GroupInfo, MetaCommand, Standing};
use holdfast_queue::time::{Duration, Instant};

use crate::admin::{MoveReport, MoveState, RebalanceReport};
use crate::member::Member;
use crate::peer_message::{MoveNote, PeerMessage};
use crate::requests::Waiter;

/// Groups that change their replicas at the same time, in the whole cluster.
const MOVES_AT_ONCE: usize = 4;
/// Groups that get voters which they lack, at the same time, beside those: after a restore or a forced recovery every group
/// has one, and a queue's messages are on one disk until it has more. What they copy is bounded in bytes on each member, as
/// all Raft snapshots are; this bounds the steps, of which each group takes several through the metadata.
const GROWING_AT_ONCE: usize = 128;
/// A move that is held is tried again after this.
const HELD_RETRY: Duration = Duration::from_secs(3);
/// A group's leader that has said nothing for this long holds the move.
const NO_NEWS: Duration = Duration::from_secs(2);
/// Leaders move only when no member came, went or was suspected for this long.
const QUIET_FOR: Duration = Duration::from_secs(10);
/// A leader that has not arrived after this is given up for a while.
const LEAD_WITHIN: Duration = Duration::from_secs(3);
/// A group whose leader could not be moved is left alone for this long.
const LEAD_AGAIN: Duration = Duration::from_secs(60);
/// When no leader is misplaced, all groups are looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Moves that are done and still reported.
const REPORTED_DONE: usize = 20;
/// Moves in a report; the rest is a number.
const REPORTED: usize = 100;
/// A member that holds nothing more is asked to be removed this often until it is.
const REMOVE_EVERY: Duration = Duration::from_secs(2);

/// A group on its way, as the coordinator sees it.
struct Move {
    since_ms: u64,
    /// The last permit.
    asked: Instant,
    /// The last word of the group's leader.
    heard: Instant,
    note: MoveNote,
}

/// What the coordinator keeps; all of it can be lost.
#[derive(Default)]
pub(crate) struct Rebalance {
    moves: BTreeMap<GroupId, Move>,
    done: VecDeque<MoveReport>,
    /// The one leadership that is being moved.
    leading: Option<(GroupId, MemberId, Instant)>,
    leave_alone: BTreeMap<GroupId, Instant>,
    quiet_since: Instant,
    /// Groups up to here were looked at for who leads them.
    looked_at: GroupId,
    /// Every group was led where it should be, when that was last looked at. It is again by then, or when a group has a
    /// new leader.
    look_again: Instant,
    next_removal: Instant,
    /// Why no leader is moved.
    leaders: String,
}

impl<R: EntryReader> Member<R> {
    /// Something happened to a member: leaders stay where they are for a while.
    pub(crate) fn not_quiet(&mut self) {
        self.rebalance.quiet_since = self.now;
    }

    /// Some group has another leader: it may not be the one that it should have.
    pub(crate) fn leader_announced(&mut self) {
        self.rebalance.look_again = self.now;
    }

    /// This member has come to lead group 0: it begins with no more than the metadata.
    pub(crate) fn begin_to_coordinate(&mut self) {
        self.rebalance = Rebalance { quiet_since: self.now, ..Rebalance::default() };
    }

    /// A round of coordination, on the leader of group 0.
    pub(crate) fn coordinate(&mut self) {
        self.finish_moves();
        self.permit_moves();
        self.remove_empty_members();
        self.move_a_leader();
    }

    fn unsettled(&self) -> Vec<GroupId> {
        let Some(meta) = self.metadata() else { return Vec::new() };
        meta.unsettled().filter(|group| *group != GroupId::META).collect()
    }

    fn finish_moves(&mut self) {
        let unsettled: std::collections::BTreeSet<GroupId> = self.unsettled().into_iter().collect();
        let finished: Vec<GroupId> =
            self.rebalance.moves.keys().filter(|group| !unsettled.contains(group)).copied().collect();
        for group in finished {
            let Some(done) = self.rebalance.moves.remove(&group) else { continue };
            if self.metadata().is_none_or(|meta| meta.group(group).is_none()) {
                continue;
            }
            let mut report = self.move_report(group, &done);
            (report.state, report.why) = (MoveState::Done, String::new());
            self.rebalance.done.push_back(report);
            if self.rebalance.done.len() > REPORTED_DONE {
                self.rebalance.done.pop_front();
            }
        }
    }

    /// Lets as many groups move as may at once, and tries some of those that are held again.
    fn permit_moves(&mut self) {
        let now = self.now;
        for group_move in self.rebalance.moves.values_mut() {
            if !group_move.note.held && now.since(group_move.heard) >= NO_NEWS {
                group_move.note = MoveNote { held: true, text: "the group has no leader that answers".into() };
            }
        }
        let (growing, moving): (Vec<GroupId>, Vec<GroupId>) =
            self.unsettled().into_iter().partition(|group| self.lacks_voters(*group));
        let mut permitted = self.next_permits(&growing, GROWING_AT_ONCE);
        permitted.extend(self.next_permits(&moving, MOVES_AT_ONCE));
        for group in permitted {
            self.permit(group);
        }
    }

    /// Of these groups the ones that are on their way, as many more as may be at once, and as many that are held and due.
    fn next_permits(&self, unsettled: &[GroupId], at_once: usize) -> Vec<GroupId> {
        let now = self.now;
        let (mut permitted, mut fresh, mut again) = (Vec::new(), Vec::new(), Vec::new());
        for group in unsettled {
            match self.rebalance.moves.get(group) {
                None => fresh.push(*group),
                Some(group_move) if !group_move.note.held => permitted.push(*group),
                Some(group_move) if now.since(group_move.asked) >= HELD_RETRY => again.push((group_move.asked, *group)),
                Some(_) => {}
            }
        }
        permitted.extend(fresh.into_iter().take(at_once.saturating_sub(permitted.len())));
        again.sort_unstable();
        permitted.extend(again.into_iter().take(at_once).map(|(_, group)| group));
        permitted
    }

    /// Fewer voters than it should have, and not merely others.
    fn lacks_voters(&self, group: GroupId) -> bool {
        let info = self.metadata().and_then(|meta| meta.group(group));
        info.is_some_and(|info| info.voters.len() < info.target.voters.len())
    }

    fn permit(&mut self, group: GroupId) {
        let (now, since_ms) = (self.now, self.wall_ms);
        let begun = || Move { since_ms, asked: now, heard: now, note: MoveNote { held: false, text: "begun".into() } };
        self.rebalance.moves.entry(group).or_insert_with(begun).asked = now;
        match self.leaderships.announced.get(&group).map(|(leader, _)| *leader) {
            Some(leader) => self.send_or_take(leader, PeerMessage::Permit { group }),
            None => self.move_noted(group, MoveNote { held: true, text: "the group has no known leader".into() }),
        }
    }

    /// A group's leader was let to move it, and says how that stands.
    pub(crate) fn take_permit(&mut self, from: MemberId, group: GroupId) {
        let note = self.permitted(group);
        self.send_or_take(from, PeerMessage::MoveNote { group, note });
    }

    pub(crate) fn move_noted(&mut self, group: GroupId, note: MoveNote) {
        let now = self.now;
        if let Some(known) = self.rebalance.moves.get_mut(&group) {
            known.heard = now;
            known.note = note;
        }
    }

    /// Members that are to go, and hold nothing any more, leave the metadata.
    fn remove_empty_members(&mut self) {
        let now = self.now;
        if now < self.rebalance.next_removal {
            return;
        }
        let Some(meta) = self.metadata() else { return };
        let leaving = meta.members().filter(|(_, info)| info.standing != Standing::Present).map(|(id, _)| id);
        let holds = |id: &MemberId, metadata: bool| {
            meta.groups().any(|(group, info)| (group == GroupId::META) == metadata && info.concerns(*id))
        };
        let empty: Vec<(MemberId, bool)> =
            leaving.filter(|id| !holds(id, false)).map(|id| (id, holds(&id, true))).collect();
        self.rebalance.next_removal = now + REMOVE_EVERY;
        for (member, follows) in empty {
            // The metadata goes last.
            let command =
                if follows { MetaCommand::RetireMember { member } } else { MetaCommand::RemoveMember { member } };
            self.ask_metadata(command, Waiter::Nobody);
        }
    }

    /// Moves one leadership to the member that should have it, when nothing speaks against it: after a failover or a
    /// restart leaders have gathered on the members that stayed.
    fn move_a_leader(&mut self) {
        let now = self.now;
        if let Some((group, to, since)) = self.rebalance.leading {
            let arrived = self.leaderships.announced.get(&group).is_some_and(|(leader, _)| *leader == to);
            if !arrived && now.since(since) < LEAD_WITHIN {
                return;
            }
            if !arrived {
                self.rebalance.leave_alone.insert(group, now + LEAD_AGAIN);
            }
            self.rebalance.leading = None;
        }
        self.rebalance.leave_alone.retain(|_, until| now < *until);
        if let Some(why) = self.why_leaders_stay() {
            self.rebalance.leaders = why;
            return;
        }
        if now < self.rebalance.look_again {
            return;
        }
        let Some((group, to)) = self.next_misplaced_leader() else {
            self.rebalance.look_again = now + LOOK_AGAIN;
            self.rebalance.leaders = "every group is led where it should be, or cannot be".into();
            return;
        };
        self.rebalance.leaders = format!("group {group} goes to member {to}");
        self.rebalance.leading = Some((group, to, now));
        if let Some((leader, _)) = self.leaderships.announced.get(&group).copied() {
            self.send_or_take(leader, PeerMessage::Lead { group, to });
        }
    }

    /// Leaders stay while any member is suspected, missing, not ready or on its way out: its zone may be failing.
    fn why_leaders_stay(&self) -> Option<String> {
        let Some(meta) = self.metadata() else { return Some("there is no metadata yet".into()) };
        for (id, info) in meta.members().filter(|(id, info)| *id != self.me() && info.standing == Standing::Present) {
            let peer = self.peers.get(id);
            if peer.is_none_or(|peer| peer.suspected || !peer.ready) {
                return Some(format!("leaders stay while member '{}' is not up and ready", info.name));
            }
            if info.boot.is_none() || peer.is_some_and(|peer| Some(peer.boot) != info.boot) {
                return Some(format!("leaders stay while the run of member '{}' is not registered", info.name));
            }
            if peer.is_some_and(|peer| peer.draining) {
                return Some(format!("leaders stay while member '{}' hands its own over", info.name));
            }
        }
        if !self.ready() || self.host.as_ref().is_some_and(|host| host.is_draining()) {
            return Some("leaders stay while this member is not ready or hands its own over".into());
        }
        let quiet = self.now.since(self.rebalance.quiet_since);
        (quiet < QUIET_FOR).then(|| format!("leaders stay until all members were up for {} s", QUIET_FOR.as_secs()))
    }

    /// The next group, in turn, that is led by another member than the one that should.
    fn next_misplaced_leader(&mut self) -> Option<(GroupId, MemberId)> {
        let misplaced = |(id, info): (GroupId, &GroupInfo)| {
            let to = info.target.preferred_leader;
            let leader = self.leaderships.announced.get(&id).map(|(leader, _)| *leader)?;
            let votes = info.voters.iter().any(|voter| voter.member == to);
            let free = !self.rebalance.leave_alone.contains_key(&id) && !self.rebalance.moves.contains_key(&id);
            (leader != to && votes && free).then_some((id, to))
        };
        let meta = self.metadata()?;
        let all: Vec<(GroupId, MemberId)> = meta.groups().filter_map(misplaced).collect();
        let after = all.iter().find(|(group, _)| *group > self.rebalance.looked_at).or(all.first()).copied();
        if let Some((group, _)) = after {
            self.rebalance.looked_at = group;
        }
        after
    }

    /// Group 0's leader asks this member to hand a group over.
    pub(crate) fn take_lead(&mut self, group: GroupId, to: MemberId) {
        if let Some(host) = self.host.as_mut() {
            // Refused when the member lags or is silent; the coordinator sees that nothing came of it.
            let _ = host.transfer_leader(group, to);
        }
    }

    fn move_report(&self, group: GroupId, known: &Move) -> MoveReport {
        let meta = self.metadata();
        let info = meta.and_then(|meta| meta.group(group));
        let names = |replicas: Vec<MemberId>| {
            let name = |member: MemberId| self.name_of(member).unwrap_or_else(|| member.to_string());
            replicas.into_iter().map(name).collect::<Vec<_>>()
        };
        let state = if known.note.held { MoveState::Held } else { MoveState::Running };
        MoveReport {
            group,
            queues: self.queue_names(group),
            from: names(info.map(|it| it.replicas().map(|replica| replica.member).collect()).unwrap_or_default()),
            to: names(info.map(|it| it.target.replicas().map(|replica| replica.member).collect()).unwrap_or_default()),
            state,
            why: known.note.text.clone(),
            since_ms: known.since_ms,
        }
    }

    /// What the coordinator does at the moment; none on another member.
    pub(crate) fn rebalance_report(&self) -> Option<RebalanceReport> {
        if !self.leaderships.led.contains_key(&GroupId::META) {
            return None;
        }
        let meta = self.metadata()?;
        let unsettled = self.unsettled();
        let moves = self.rebalance.moves.iter().map(|(group, known)| self.move_report(*group, known));
        let mut moves: Vec<MoveReport> = moves.take(REPORTED).collect();
        moves.extend(self.rebalance.done.iter().rev().cloned());
        let waiting = unsettled.iter().filter(|group| !self.rebalance.moves.contains_key(group)).count();
        let leaving = meta.members().filter(|(_, info)| info.standing != Standing::Present);
        Some(RebalanceReport {
            moves,
            unsettled: unsettled.len(),
            waiting,
            metadata_settled: meta.group(GroupId::META).is_none_or(GroupInfo::is_settled),
            leaving: leaving.map(|(_, info)| info.name.clone()).collect(),
            leaders: self.rebalance.leaders.clone(),
        })
    }
}
