//! Memory and disk alarms. While one is on anywhere in the cluster, connections that publish are told so
//! (`connection.blocked`) and not read from; all others, and with them log-ins, acknowledgements, purges and deletes, go
//! on. As in RabbitMQ a connection is blocked at its first publish after the alarm, so one that only consumes never is.

use holdfast_journal::EntryReader;
use holdfast_queue::ids::MemberId;

use crate::member::Member;
use crate::seam::{ConnId, Memory, Severity};

/// A memory alarm ends this part below the watermark, so that it does not flutter.
const MEMORY_HYSTERESIS_PART: u64 = 20;

/// Which alarms are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alarms {
    /// More memory is in use than the watermark allows.
    pub memory: bool,
    /// The disk is nearly full ([`holdfast_journal::Space::low`]).
    pub disk: bool,
}

impl Alarms {
    /// Whether publishers must wait.
    pub fn any(self) -> bool {
        self.memory || self.disk
    }

    /// Both together.
    pub fn and(self, other: Alarms) -> Alarms {
        Alarms { memory: self.memory || other.memory, disk: self.disk || other.disk }
    }

    /// The reason in `connection.blocked`, in RabbitMQ's words.
    pub fn reason(self) -> Option<&'static str> {
        match (self.memory, self.disk) {
            (true, true) => Some("low on memory & disk"),
            (true, false) => Some("low on memory"),
            (false, true) => Some("low on disk"),
            (false, false) => None,
        }
    }
}

/// What this member knows of alarms.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AlarmState {
    /// Memory as the driver last reported it.
    pub(crate) memory: Memory,
    /// Own alarms.
    pub(crate) own: Alarms,
    /// Alarms anywhere in the cluster.
    pub(crate) cluster: Alarms,
}

impl<R: EntryReader> Member<R> {
    /// The driver has looked at the process's memory.
    pub(crate) fn memory_seen(&mut self, memory: Memory) {
        self.alarms.memory = memory;
        let limit = match self.alarms.own.memory {
            true => memory.high_watermark_bytes - memory.high_watermark_bytes / MEMORY_HYSTERESIS_PART,
            false => memory.high_watermark_bytes,
        };
        let high = memory.high_watermark_bytes > 0 && memory.used_bytes > limit;
        if high != self.alarms.own.memory {
            let (used, high_watermark) = (memory.used_bytes >> 20, memory.high_watermark_bytes >> 20);
            let text = match high {
                true => format!(
                    "memory alarm: {used} MiB are in use, the high watermark is {high_watermark} MiB; publishers wait"
                ),
                false => format!("the memory alarm is over: {used} MiB are in use"),
            };
            self.event(if high { Severity::Warning } else { Severity::Info }, text);
        }
        self.alarms.own.memory = high;
        self.look_at_alarms();
    }

    /// Members with an alarm, and which: this one, and those that are heard.
    pub(crate) fn alarmed_members(&self) -> Vec<(MemberId, Alarms)> {
        let peers = self.peers.iter().filter(|(_, peer)| !peer.suspected).map(|(member, peer)| (member, peer.alarms));
        let all = peers.chain([(self.me(), self.alarms.own)]);
        all.filter(|(_, alarms)| alarms.any()).collect()
    }

    /// Joins what is known of this member and the others. When the last alarm ends, everybody may publish again.
    pub(crate) fn look_at_alarms(&mut self) {
        self.alarms.own.disk = self.space.is_some_and(|space| space.low);
        let now = self.alarmed_members().into_iter().fold(Alarms::default(), |all, (_, alarms)| all.and(alarms));
        let before = std::mem::replace(&mut self.alarms.cluster, now);
        if !before.any() || now.any() {
            return;
        }
        for (conn, client) in &mut self.clients {
            if std::mem::take(&mut client.blocked) {
                client.session.set_blocked(None);
                self.touched.insert(*conn);
            }
        }
    }

    /// A connection has published: while there is an alarm, this was its last message.
    pub(crate) fn block_publisher(&mut self, conn: ConnId) {
        let Some(reason) = self.alarms.cluster.reason() else { return };
        let Some(client) = self.clients.get_mut(&conn) else { return };
        client.blocked = true;
        client.session.set_blocked(Some(reason));
        self.touched.insert(conn);
    }
}
