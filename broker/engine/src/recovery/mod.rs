//! Forced recovery: a majority of the disks is gone for good, and the cluster goes on from those that are left (design §3.5).
//!
//! | module | holds |
//! |---|---|
//! | `survey` | what one stopped member's disk has of each group |
//! | `plan` | from the surveys of all disks that are left: which copy each group goes on from, and what would be lost |
//! | `rebuild` | one disk's part of the plan: a new journal beside the old one |
//!
//! Recovery is of the cluster as a whole: without a majority of group 0 nothing is served anyway. It begins a new epoch of
//! the cluster, and in it a new incarnation of every group, each with one voter: the member whose copy is best, as an
//! election would choose (highest term of the last entry, then highest index), with all of its log. All other replicas are
//! seeded anew from it. A disk that the plan does not name, or that it names as stale, has no part in the new epoch.
//!
//! # What can be said to be lost
//!
//! A voter that is here has on its disk all that it ever acknowledged, and the best copy has all that was confirmed with the
//! help of any voter that is here (Raft's election argument). So nothing confirmed is missing if every set of voters that
//! could confirm holds one that is here, which is less than a majority for an even number: of two voters, one is enough.
//! Otherwise those that are gone may have confirmed more among themselves, and nobody here can know what. The memberships
//! that count are the one at the commit index that the copy knows, every later one in its log, and the metadata's if that
//! is later still.
//!
//! # How two incarnations could both confirm, and what prevents it
//!
//! 1. *What is "gone" is not gone.* The members that the plan names as absent run somewhere, have the majority of the old
//!    incarnation, and confirm. Software on the survivors cannot see that: the plan names them, and applying it is a
//!    person's word that they are off. Once a stale member meets one of the new epoch (links are dialled from both sides),
//!    it stops at once and stays away from clients (`epochs`); `minClusterEpoch` in a member's configuration stops it
//!    before it has met anybody, and is what an operator sets everywhere before it lets volumes come back.
//! 2. *Two recoveries of the same cluster*, each from other disks, do not know of each other: both make the same epoch. Each
//!    draws its own nonce, which is in the incarnations and in the hello: their members refuse each other, and no envelope
//!    of one counts for the other. Which one goes on is for a person to say.
//! 3. *A copy of a recovered directory* runs beside its original: same UUID, which both refuse in the hello. (As without
//!    any recovery, a copy must never run beside its original.)
//! 4. *A recovery that was cut off*: some directories are of the new epoch, others still of the old one. The old ones are
//!    stale to the new ones, as in 1; until all parts are applied, groups whose best copy is in an unchanged directory have
//!    no voter, so nobody confirms in them. Applying the same plan again finishes it, under the same nonce.
//! 5. *A vote or acknowledgement of the old life counts in the new one.* Envelopes carry the incarnation; the new journal
//!    holds no record under an old one; replicas have generations that no founder has, and the changed membership is never
//!    taken for that of a group that is just being born, so that no member makes a founder's replica of it.
//! 6. *The metadata is older than a queue's group* and would number a new group, queue or member as a lost one was: numbers
//!    go on above all that any disk shows, and an old replica has another incarnation.
//! 7. *The old journal comes back* under the new identity, or the new one under the old: identity and log lie in one
//!    directory, which is exchanged as a whole.

mod plan;
mod rebuild;
mod survey;

pub use plan::{DiskPart, GroupPlan, Outcome, Plan, PlanError, Position, Role, plan};
pub use rebuild::{RebuildError, rebuild};
pub use survey::{CopySurvey, Life, MetadataSurvey, PlacedGroup, QueueSurvey, Replica, Survey, SurveyError, survey};
