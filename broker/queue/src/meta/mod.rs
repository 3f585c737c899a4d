//! The metadata machine, group 0: the cluster, its members, and everything that has a name.

mod access;
mod cluster;
mod command;
mod effect;
mod exchanges;
mod in_place;
mod machine;
mod pattern;
mod placement;
mod policies;
mod policy_keys;
mod queues;
mod recovery;
mod replicas;
mod replication;
mod restore;
mod state;
mod synchronising;

pub use access::Permission;
pub use command::{Binding, Destination, ExpectedMember, MetaCommand, NewMember, NewUser};
pub use effect::{Change, MetaEffect, MetaReply, Refusal};
pub use in_place::Restoring;
pub use machine::MetaMachine;
pub use placement::{Chosen, Load, Wish, place};
pub use policies::{ApplyTo, EffectivePolicy, NewPolicy, Policy, PolicyKind, keys_not_honoured};
pub use policy_keys::Promote;
pub use queues::queue_settings;
pub use recovery::{Reborn, Recovery, SEEDED_GENERATION, SOURCE_GENERATION};
pub use replication::MAX_REPLICAS;
pub use restore::{Refounded, Restoration, restored_life};
pub use state::{
    ClusterInfo, ExchangeInfo, ExchangeKind, GroupInfo, MemberInfo, Owner, Placement, QueueInfo, Standing, Target,
    Unsynchronised, UserInfo, Vhost,
};
