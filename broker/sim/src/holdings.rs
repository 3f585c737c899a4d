//! Who holds which message. A message that a session was given is not given again, to anybody, as *redelivered* while that
//! session lives, unless it gave the message back: a change of leader redelivers nothing to a living session, and takes
//! nothing away from one (design §3.3).
//!
//! For messages that were sent once. A session ends when its client says so or loses the connection, or when its
//! member's run was declared over.

use std::collections::{BTreeMap, BTreeSet};

use crate::ledger::MessageId;

/// What living sessions were given and have not given back. An ack does not end that: until it is durable, the session's
/// end may bring the message back, and while the session lives nothing may.
#[derive(Clone, Debug, Default)]
pub struct Holdings {
    holders: BTreeMap<MessageId, BTreeSet<u32>>,
    held_by: BTreeMap<u32, BTreeSet<MessageId>>,
}

impl Holdings {
    /// A session was given a message. The broken promise in words, if one living session holds what another gets as
    /// redelivered.
    pub fn given(&mut self, session: u32, id: MessageId, redelivered: bool) -> Option<String> {
        let holder = self.holders.get(&id).and_then(BTreeSet::first).copied();
        self.holders.entry(id).or_default().insert(session);
        self.held_by.entry(session).or_default().insert(id);
        let holder = holder.filter(|_| redelivered)?;
        Some(format!("{id:?} was redelivered to {session} while {holder} lives, which was given it and kept it"))
    }

    /// The session gave the message back.
    pub fn given_back(&mut self, session: u32, id: MessageId) {
        if let Some(holders) = self.holders.get_mut(&id) {
            holders.remove(&session);
        }
        if let Some(held) = self.held_by.get_mut(&session) {
            held.remove(&id);
        }
    }

    /// The session ended.
    pub fn ended(&mut self, session: u32) {
        for id in self.held_by.remove(&session).unwrap_or_default() {
            if let Some(holders) = self.holders.get_mut(&id) {
                holders.remove(&session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MessageId = MessageId { producer: 3, number: 77 };

    #[test]
    fn what_a_living_session_keeps_may_not_come_back_to_it_or_to_another() {
        for session in [1, 2] {
            let mut holdings = Holdings::default();
            assert_eq!(holdings.given(1, ID, false), None);
            assert!(holdings.given(session, ID, true).is_some());
        }
    }

    #[test]
    fn what_was_given_back_or_held_by_a_session_that_ended_may_come_back() {
        let mut holdings = Holdings::default();
        assert_eq!(holdings.given(1, ID, false), None);
        holdings.given_back(1, ID);
        assert_eq!(holdings.given(2, ID, true), None);
        holdings.ended(2);
        assert_eq!(holdings.given(1, ID, true), None);
    }
}
