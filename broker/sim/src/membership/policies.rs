//! Replication policies that change while members die and are cut off: queues grow and shrink, new replicas wait to be
//! synchronised (`ha-sync-mode: manual`), are asked for, and are given up half way.
//!
//! No disk is taken away or damaged here: a policy may want one replica, and nobody can give back what only that one had.

use holdfast_engine::admin::{AdminAction, QueueAction};
use holdfast_queue::arguments::{Arguments, Value};
use holdfast_queue::meta::{ApplyTo, NewPolicy, PolicyKind};

use super::{Play, SECOND_US, Wish};

/// The queues that clients use, beside those that come and go.
const QUEUES: [&str; 2] = ["orders", "events"];

impl Play<'_> {
    /// Changes a policy, or asks for something about synchronising, and gives the time until the next change.
    pub(super) fn change_policy(&mut self) -> Result<u64, String> {
        let vhost = || "/".to_owned();
        let queue = QUEUES[self.rng.index(QUEUES.len())];
        let pattern = if self.rng.chance(70) { format!("^{queue}$") } else { String::new() };
        let name = format!("on-{pattern}");
        let action = match self.rng.range(0, 100) {
            0..10 if !self.spares.is_empty() => {
                let member = self.spares.remove(self.rng.index(self.spares.len()));
                self.members.push(member);
                self.wish = Some(Wish::Add { member, asked: None });
                self.pursue_wish()?;
                return Ok(SECOND_US);
            }
            0..50 => {
                let definition = self.definition();
                let policy = NewPolicy { pattern, apply_to: ApplyTo::Queues, priority: 0, definition };
                AdminAction::PutPolicy { kind: PolicyKind::User, vhost: vhost(), name, policy }
            }
            50..60 => AdminAction::DeletePolicy { kind: PolicyKind::User, vhost: vhost(), name },
            60..85 => AdminAction::QueueAction { vhost: vhost(), name: queue.into(), action: QueueAction::Sync },
            _ => AdminAction::QueueAction { vhost: vhost(), name: queue.into(), action: QueueAction::CancelSync },
        };
        self.ask(action)?;
        Ok(self.rng.range(SECOND_US / 10, 4 * SECOND_US))
    }

    fn definition(&mut self) -> Arguments {
        let sync = if self.rng.chance(70) { "manual" } else { "automatic" };
        let mut definition = vec![("ha-sync-mode".to_owned(), Value::string(sync))];
        let (mode, params) = match self.rng.range(0, 10) {
            0..7 => ("exactly", Some(Value::I64(self.rng.range(1, 5) as i64))),
            7..9 => {
                let picked = self.members.iter().filter(|_| self.rng.chance(60));
                let mut names: Vec<Value> =
                    picked.map(|member| Value::string(self.world.processes[*member].name.as_str())).collect();
                if names.is_empty() {
                    names.push(Value::string(self.world.processes[0].name.as_str()));
                }
                ("nodes", Some(Value::Array(names)))
            }
            _ => ("all", None),
        };
        definition.push(("ha-mode".to_owned(), Value::string(mode)));
        definition.extend(params.map(|params| ("ha-params".to_owned(), params)));
        Arguments(definition)
    }

    /// No replica waits to be synchronised any more: what was there when it was thought of has been consumed.
    pub(super) fn nobody_waits(&self) -> bool {
        self.metadata().is_some_and(|meta| meta.unsynchronised().next().is_none())
    }
}
