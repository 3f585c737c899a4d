//! Every condition type and every reason, declared once: tools match on these words.

use std::fmt;

/// The types of the conditions in a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// The cluster is what its spec asks for, and serves.
    Ready,
    /// Clients can publish and consume.
    Available,
    /// The operator is changing something: creating, rolling, growing.
    Progressing,
    /// Something needs a person's or a repair's attention, though the cluster may serve.
    Degraded,
    /// Only present while true (kstatus): the spec is not yet in effect.
    Reconciling,
    /// Only present while true (kstatus): nothing goes on until a person acts.
    Stalled,
    /// Any one zone may be lost without losing a confirmed message or the ability to serve.
    ZoneFaultTolerant,
    /// Only present while true: `spec.paused`.
    Paused,
    /// The last backup that a schedule asked for completed; of a cluster: of each schedule, and it is no older than that asks.
    BackupHealthy,
    /// The last backup that was restored to prove it, was as it should be; of a cluster: of each schedule.
    BackupVerified,
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a condition has its status, why something was decided, and the reason of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    // All is well.
    AllMembersReady,
    Quorum,
    Idle,
    Healthy,
    EveryQueueSpansZones,

    // Transient: they pass by themselves.
    /// The CRD's default, before the operator has seen the object.
    Pending,
    CreatingMembers,
    WaitingForMembers,
    Bootstrapping,
    /// A new cluster receives what is in a backup.
    Restoring,
    JoiningMembers,
    SettingUser,
    RollingOut,
    Scaling,
    MembersNotReady,
    ReplicasCatchingUp,

    // Chosen by the user.
    Hibernated,
    Paused,

    // A person has to act.
    InvalidSpec,
    /// `spec.members` is below the number of members: removing members is refused.
    MembersNotRemovable,
    /// `spec.storage.size` is below the capacity of a volume.
    StorageNotShrinkable,
    /// A volume could not be grown; the message is the API server's.
    StorageGrowthRefused,
    StorageClassMissing,
    Unschedulable,
    ImagePullFailed,
    BrokerCrashing,
    /// The cluster id is known, and a majority of disks is blank.
    DataLost,
    /// A disk belongs to another cluster.
    ForeignDisk,
    /// A new cluster cannot get the backup that it is to begin with.
    RestoreBlocked,
    /// What is in a backup is not what its manifest says.
    BackupDamaged,
    QuorumLost,
    /// The certificate authority's Secret is missing, unusable or another one while brokers run that trust the former.
    CertificatesInvalid,
    /// A member's node has been unreachable for longer than `health.replaceAfterSeconds`.
    MemberLost,
    ReplicaQuarantined,
    /// The API server refused an object; the message is its own.
    ApplyFailed,
    NoAnswer,

    // ZoneFaultTolerant.
    TooFewMembers,
    TooFewZones,
    UnknownZones,
    ReplicasNotSpread,
    /// The cluster has grown, but queues get as many replicas as were usual when it was founded.
    FactorFixedAtFounding,

    // Decisions and Events.
    Bootstrapped,
    Adopted,
    Restored,
    LeadersMoved,
    MemberRestarted,
    RemovalHeld,
    /// A pod is kept for a while because queues have too few replicas to go on without it, or went in spite of it.
    SmallQueueWait,
    FailedOver,
    /// A majority of the disks was lost, and the queues' policies let the operator go on from those that are left.
    RecoveredByPolicy,
    /// A majority of the disks is lost, and a person has to decide whether to go on without them.
    RecoveryHeld,
    TakenOffService,
    PutInService,

    // Backups and their schedules.
    BackupBegun,
    BackupCompleted,
    Verified,
    VerificationFailed,
    BackupFailed,
    /// A schedule's tick brought no good backup in its time.
    BackupOverdue,
    /// A try failed, and another one is made.
    BackupRetried,
    /// A time that was due had no backup of its own, since the one before was still at work.
    BackupLeftOut,
    BackupRemoved,
    Scheduled,
    /// `spec.suspend`.
    Suspended,
    ClusterMissing,
    /// Another backup of the same cluster goes first.
    OtherBackup,
    /// The brokers did not draw the line; the message is their own.
    BarrierFailed,
    /// A broker no longer holds the files of a backup whose snapshots are not all cut.
    HoldEnded,
    SnapshotsCutting,
    SnapshotsFinishing,
    /// The storage could not make a snapshot; the message is the driver's.
    SnapshotFailed,
    /// The VolumeSnapshot CRDs are not there.
    SnapshotsNotInstalled,
    SnapshotClassMissing,
    DeadlineExceeded,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
