//! What is looked at while a run goes on: members after each event, clients after each answer.

use std::collections::BTreeMap;

use holdfast_queue::ids::GroupId;

use super::{MEMBERS, World};
use crate::process::Running;

impl World {
    pub(super) fn watch(&mut self) {
        let Some(group) = self.watched.map(GroupId) else { return };
        for (member, process) in self.processes.iter().enumerate() {
            let host = process.running.as_ref().and_then(|running| running.member.host());
            let state = match host.and_then(|host| host.status(group)) {
                None => "none".to_owned(),
                Some(status) => format!(
                    "{:?} term {} commit {} applied {} last {} checkpoint {} {}",
                    status.role,
                    status.term,
                    status.commit,
                    status.applied,
                    status.last,
                    status.checkpoint,
                    status.quarantined.unwrap_or_default()
                ),
            };
            if self.watched_states.get(&member) != Some(&state) {
                self.trace.note(self.now_us, format!("m{member} group {group}: {state}"));
                self.watched_states.insert(member, state);
            }
        }
    }

    pub(super) fn check(&mut self) -> Result<(), String> {
        self.watch();
        for member in 0..MEMBERS {
            if std::mem::take(&mut self.touched[member]) {
                self.invariants.check(member, &self.processes[member])?;
                self.cut_transfer(member);
            }
        }
        Ok(())
    }

    /// What a client saw is held against what it was promised.
    pub(super) fn check_client(&mut self, client: usize) -> Result<(), String> {
        let state = &mut self.clients[client];
        if let Some(complaint) = state.complaint.take() {
            return Err(format!("client {} of queue {}: {complaint}", state.id, state.queue));
        }
        let (sent_us, now) = (state.confirmed_sent_us, self.now_us);
        if let Some(lost) = self.majority_lost_us.filter(|lost| self.replicas_stay && sent_us > *lost) {
            return Err(format!(
                "client {} got a confirm for what it sent {} ms after the majority was gone",
                state.id,
                (sent_us - lost) / 1000
            ));
        }
        let (queue, connections) = (&state.queue, state.connections());
        let gaps = &mut self.service_gaps_us;
        self.unanswered_strikes.retain(|(strike_us, waiting, connection)| {
            if *waiting != client {
                return true;
            }
            let is_same = *connection == connections;
            if is_same && sent_us >= *strike_us {
                gaps.push(now - strike_us);
            }
            is_same && sent_us < *strike_us
        });
        let ledger = self.ledgers.get(queue);
        match ledger.and_then(|ledger| ledger.violations().first()) {
            Some(violation) => Err(format!("queue {queue}: {violation}")),
            None => Ok(()),
        }
    }

    /// A fault has come: clients of members that it left alone wait for the next confirm of what they publish now.
    pub fn struck(&mut self) {
        for client in 0..self.clients.len() {
            let Some(attached) = self.attached[client] else { continue };
            if self.clients[client].awaits_confirms() && self.is_in_touch(attached.member) {
                self.unanswered_strikes.push((self.now_us, client, self.clients[client].connections()));
            }
        }
    }

    /// True for a member that runs and reaches another one, both ways.
    fn is_in_touch(&self, member: usize) -> bool {
        let now = self.now_us;
        let goes_on = |member: usize| {
            let process = &self.processes[member];
            process.running.is_some() && !process.is_paused(now)
        };
        let reaches =
            |other: usize| self.conditions.passes(member, other, now) && self.conditions.passes(other, member, now);
        goes_on(member) && (0..MEMBERS).any(|other| other != member && goes_on(other) && reaches(other))
    }

    /// The member that holds a client's connection.
    #[must_use]
    pub fn member_of(&self, client: usize) -> Option<usize> {
        self.attached[client].map(|attached| attached.member)
    }

    /// The highest term of each group that any member knows.
    #[must_use]
    pub fn highest_terms(&self) -> BTreeMap<u64, u64> {
        let mut terms: BTreeMap<u64, u64> = BTreeMap::new();
        for view in self.processes.iter().filter_map(|process| process.running.as_ref()).flat_map(Running::views) {
            let term = terms.entry(view.group.0).or_default();
            *term = view.term.max(*term);
        }
        terms
    }
}
