//! What replication promises.

use std::collections::BTreeMap;

use holdfast_journal::GroupKey;
use holdfast_queue::ids::GroupId;
use holdfast_replica::Role;

use super::machine::number_of;
use super::node::Node;

/// Remembers what was seen; every method returns the promise that was broken.
#[derive(Default)]
pub struct Checker {
    /// Where each command was proposed. Numbers are never proposed twice.
    proposed: BTreeMap<u64, (GroupId, u64, u64)>,
    /// The command and term at each applied index, whoever applied it first.
    applied: BTreeMap<(GroupId, u64), (u64, Vec<u64>)>,
    /// Commands whose effects left.
    confirmed: BTreeMap<u64, GroupId>,
    leaders: BTreeMap<(GroupId, u64), usize>,
}

impl Checker {
    pub fn proposed(&mut self, group: GroupId, number: u64, index: u64, term: u64) -> Result<(), String> {
        self.proposed.insert(number, (group, index, term));
        Ok(())
    }

    /// Applied entries are the same everywhere and for ever (Raft §5.4.3, state machine safety), and are what was
    /// proposed at that index in that term.
    pub fn applied(
        &mut self,
        member: usize,
        group: GroupId,
        index: u64,
        term: u64,
        leading: bool,
        effects: &[u64],
    ) -> Result<(), String> {
        let first = self.applied.entry((group, index)).or_insert_with(|| (term, effects.to_vec()));
        if (first.0, first.1.as_slice()) != (term, effects) {
            return Err(format!(
                "m{member} applied {effects:?} (term {term}) at {index} of group {group}, elsewhere it is {first:?}"
            ));
        }
        for number in effects {
            if self.proposed.get(number) != Some(&(group, index, term)) {
                return Err(format!(
                    "command {number} was applied at {index} (term {term}) of group {group}, and never proposed there"
                ));
            }
            if leading {
                self.confirmed.insert(*number, group);
            }
        }
        Ok(())
    }

    /// At most one leader in a term (Raft §5.2), and every live payload can be read.
    pub fn after_step(&mut self, member: usize, node: &Node, groups: &[GroupKey]) -> Result<(), String> {
        let Some(host) = node.host() else { return Ok(()) };
        for group in groups.iter().map(|key| GroupId(key.group)) {
            if !host.is_leading(group) {
                continue;
            }
            let term = host.term(group);
            let first = *self.leaders.entry((group, term)).or_insert(member);
            if first != member {
                return Err(format!("group {group} had two leaders in term {term}: m{first} and m{member}"));
            }
        }
        Ok(())
    }

    pub fn leaderships(&self) -> usize {
        self.leaders.len()
    }

    pub fn confirmed(&self) -> u64 {
        self.confirmed.len() as u64
    }

    /// One leader, and everyone has applied everything.
    pub fn is_settled(&self, nodes: &[Node], group: GroupId) -> bool {
        let statuses: Vec<_> = nodes.iter().filter_map(|node| node.host()?.status(group)).collect();
        let leaders = statuses.iter().filter(|status| status.role == Role::Leader && status.me_leading).count();
        let Some(first) = statuses.first() else { return false };
        leaders == 1
            && statuses.len() == nodes.len()
            && statuses
                .iter()
                .all(|status| status.applied == first.last && status.last == first.last && status.term == first.term)
    }

    pub fn at_the_end(&self, nodes: &[Node], groups: &[GroupKey]) -> Result<(), String> {
        for group in groups.iter().map(|key| GroupId(key.group)) {
            for (member, node) in nodes.iter().enumerate() {
                let Some(host) = node.host() else { continue };
                let machine =
                    host.machine(group).ok_or_else(|| format!("m{member} has no machine of group {group}"))?;
                let held: BTreeMap<u64, u64> =
                    machine.applied.iter().map(|(index, number)| (*number, *index)).collect();
                if held.len() != machine.applied.len() {
                    return Err(format!("m{member} applied a command of group {group} twice"));
                }
                let lost = self.confirmed.iter().find(|(number, own)| **own == group && !held.contains_key(number));
                if let Some((number, _)) = lost {
                    return Err(format!("command {number} of group {group} was confirmed and is lost on m{member}"));
                }
                for (index, number) in machine.applied.iter().filter(|(index, _)| machine.is_live(*index)) {
                    let read = host
                        .payload(group, *index)
                        .map_err(|error| format!("m{member}, group {group}, index {index}: {error}"))?;
                    if number_of(&read) != Some(*number) {
                        return Err(format!(
                            "m{member}: the payload at {index} of group {group} is not command {number}"
                        ));
                    }
                }
            }
            let machines: Vec<_> = nodes.iter().filter_map(|node| node.host()?.machine(group)).collect();
            if machines.windows(2).any(|pair| pair[0].applied != pair[1].applied) {
                return Err(format!("replicas of group {group} differ at the same index"));
            }
        }
        Ok(())
    }
}
