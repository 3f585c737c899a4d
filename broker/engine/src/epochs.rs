//! Epochs of the cluster: a forced recovery begins one, and leaves behind every disk that it was not applied to.

use holdfast_journal::EntryReader;

use crate::identity::Membership;
use crate::member::Member;
use crate::peer_message::Hello;
use crate::seam::Severity;

/// Why a member of the same cluster belongs to another epoch of it than this one, if so.
pub(crate) fn other_epoch(own: &Membership, hello: &Hello) -> Option<String> {
    let (name, theirs, ours) = (&hello.name, hello.cluster_epoch, own.cluster_epoch);
    if theirs == ours && hello.meta_incarnation == own.meta_incarnation {
        return None;
    }
    Some(match theirs.cmp(&ours) {
        std::cmp::Ordering::Less => format!(
            "member {name} is of epoch {theirs} of the cluster, which was recovered without its disk and is at epoch {ours}: \
             give it an empty volume, with which it joins anew"
        ),
        std::cmp::Ordering::Greater => format!(
            "member {name} is of epoch {theirs} of the cluster; this disk is of epoch {ours}, and the cluster was recovered \
             without it"
        ),
        std::cmp::Ordering::Equal => format!(
            "member {name} comes from another forced recovery of the same cluster (epoch {theirs}, {:016x} there and \
             {:016x} here): two recoveries that did not know of each other cannot go on together",
            hello.meta_incarnation.nonce, own.meta_incarnation.nonce
        ),
    })
}

impl<R: EntryReader> Member<R> {
    /// A member of a later epoch was met: the cluster has gone on without this disk. It stops at once, with what it holds
    /// left as it is: together with others that were left behind it could have a majority of the old life, and confirm
    /// what the new one never hears of.
    pub(crate) fn look_at_epoch(&mut self, hello: &Hello) {
        let Some(own) = &self.identity.membership else { return };
        if hello.cluster_id.as_ref() != Some(&own.cluster_id) || hello.cluster_epoch <= own.cluster_epoch {
            return;
        }
        let reason = format!(
            "this data directory is of epoch {} of cluster {}, which was recovered without it and is at epoch {} (as {} \
             says): move it away and start with an empty one, which joins anew",
            own.cluster_epoch, own.cluster_id, hello.cluster_epoch, hello.name
        );
        self.event(Severity::Error, reason.clone());
        self.stop_left_behind(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_queue::ids::{BootId, Incarnation, MemberId};

    fn own(epoch: u64, nonce: u64) -> Membership {
        Membership {
            cluster_id: "c".into(),
            cluster_epoch: epoch,
            meta_incarnation: Incarnation { counter: 1, nonce },
            member: MemberId(1),
            joining: false,
            meta_generation: 1,
            peers: Vec::new(),
        }
    }

    fn hello(epoch: u64, nonce: u64) -> Hello {
        Hello {
            protocol: crate::peer_message::PROTOCOL_VERSION,
            cluster_id: Some("c".into()),
            cluster_epoch: epoch,
            meta_incarnation: Incarnation { counter: 1, nonce },
            uuid: 2,
            member: Some(MemberId(2)),
            boot: BootId(2),
            name: "m2".into(),
            zone: String::new(),
            address: "a:1".into(),
        }
    }

    #[test]
    fn two_recoveries_that_did_not_know_of_each_other_refuse_each_other() {
        let both = [(own(2, 5), hello(2, 6)), (own(2, 6), hello(2, 5))];
        for (own, hello) in both {
            let reason = other_epoch(&own, &hello).expect("a refusal");
            assert!(reason.contains("another forced recovery"), "{reason}");
        }
        assert_eq!(other_epoch(&own(2, 5), &hello(2, 5)), None);
    }

    #[test]
    fn an_earlier_and_a_later_epoch_are_refused_in_words_that_say_whose_disk_is_old() {
        let earlier = other_epoch(&own(3, 5), &hello(2, 5)).expect("a refusal");
        assert!(earlier.contains("recovered without its disk"), "{earlier}");
        let later = other_epoch(&own(2, 5), &hello(3, 5)).expect("a refusal");
        assert!(later.contains("recovered without it"), "{later}");
    }
}
