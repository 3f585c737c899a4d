//! Virtual hosts, exchanges and bindings.

use super::command::{Binding, Destination};
use super::effect::{Change, MetaReply, Refusal};
use super::machine::{MetaMachine, Outcome};
use super::queues::{boolean, inequivalent, inequivalent_arguments};
use super::state::{ExchangeInfo, ExchangeKind, Vhost};
use crate::arguments::Value;
use crate::ids::{QueueId, SessionId};
use crate::router::Target;

/// The exchanges that every virtual host has (AMQP 0-9-1 §3.1.3.1, and RabbitMQ's `amq.headers`).
const DECLARED: [(&str, ExchangeKind); 6] = [
    ("", ExchangeKind::Direct),
    ("amq.direct", ExchangeKind::Direct),
    ("amq.fanout", ExchangeKind::Fanout),
    ("amq.headers", ExchangeKind::Headers),
    ("amq.match", ExchangeKind::Headers),
    ("amq.topic", ExchangeKind::Topic),
];

const ALTERNATE: &str = "alternate-exchange";

impl MetaMachine {
    /// A virtual host.
    pub fn vhost(&self, name: &str) -> Option<&Vhost> {
        self.vhosts.get(name)
    }

    /// All virtual hosts by name.
    pub fn vhosts(&self) -> impl Iterator<Item = (&str, &Vhost)> {
        self.vhosts.iter().map(|(name, vhost)| (name.as_str(), vhost))
    }

    /// An exchange.
    ///
    /// # Errors
    /// 404 in RabbitMQ's words, for a passive declare and for a publish.
    pub fn exchange(&self, vhost: &str, name: &str) -> Result<&ExchangeInfo, Refusal> {
        let found = self.vhost(vhost).and_then(|vhost| vhost.exchanges.get(name));
        found.ok_or_else(|| Refusal { code: 404, text: format!("no exchange '{name}' in vhost '{vhost}'") })
    }

    pub(super) fn vhost_mut(&mut self, name: &str) -> Result<&mut Vhost, Refusal> {
        self.vhosts.get_mut(name).ok_or_else(|| Refusal { code: 530, text: format!("vhost {name} not found") })
    }

    pub(super) fn put_vhost(&mut self, name: &str, changes: &mut Vec<Change>) -> Outcome {
        if self.vhosts.contains_key(name) {
            return Ok(MetaReply::Done);
        }
        let mut vhost = Vhost::default();
        for (exchange, kind) in DECLARED {
            let info = ExchangeInfo { kind, durable: true, ..ExchangeInfo::default() };
            self.router.add_exchange(name, exchange, &info);
            vhost.exchanges.insert(exchange.to_owned(), info);
        }
        self.vhosts.insert(name.to_owned(), vhost);
        changes.push(Change::Access);
        Ok(MetaReply::Done)
    }

    pub(super) fn delete_vhost(&mut self, name: &str, changes: &mut Vec<Change>) -> Outcome {
        let queues: Vec<QueueId> =
            self.vhost(name).map(|vhost| vhost.queues.values().copied().collect()).unwrap_or_default();
        for queue in queues {
            self.drop_queue(queue, changes);
        }
        self.vhosts.remove(name);
        self.restores.remove(name);
        self.router.remove_vhost(name);
        changes.push(Change::Access);
        Ok(MetaReply::Done)
    }

    pub(super) fn declare_exchange(&mut self, vhost: &str, name: &str, kind: &str, info: ExchangeInfo) -> Outcome {
        let Some(kind) = ExchangeKind::from_name(kind) else {
            return Err(Refusal { code: 503, text: format!("unknown exchange type '{kind}'") });
        };
        let info = ExchangeInfo { kind, ..info };
        if let Ok(present) = self.exchange(vhost, name) {
            check_equivalent(vhost, name, present, &info)?;
            return Ok(MetaReply::Done);
        }
        if name.is_empty() || name.starts_with("amq.") {
            let text = format!("exchange name '{name}' contains reserved prefix 'amq.*'");
            return Err(Refusal { code: 403, text });
        }
        if let Some(value) = info.arguments.get(ALTERNATE).filter(|value| !matches!(value, Value::LongString(_))) {
            let text = format!(
                "invalid arg '{ALTERNATE}' for exchange '{name}' in vhost '{vhost}': {{unacceptable_type,{}}}",
                value.type_name()
            );
            return Err(Refusal { code: 406, text });
        }
        let exchanges = &mut self.vhost_mut(vhost)?.exchanges;
        exchanges.insert(name.to_owned(), info.clone());
        self.router.add_exchange(vhost, name, &info);
        Ok(MetaReply::Done)
    }

    pub(super) fn delete_exchange(&mut self, vhost: &str, name: &str, if_unused: bool) -> Outcome {
        if name.is_empty() || name.starts_with("amq.") {
            let text = format!("deletion of system exchange '{name}' in vhost '{vhost}' not allowed");
            return Err(Refusal { code: 403, text });
        }
        if self.exchange(vhost, name).is_err() {
            return Ok(MetaReply::Done);
        }
        if if_unused && self.router.is_source(vhost, name) {
            return Err(Refusal { code: 406, text: format!("exchange '{name}' in vhost '{vhost}' in use") });
        }
        self.drop_exchange(vhost, name);
        Ok(MetaReply::Done)
    }

    fn drop_exchange(&mut self, vhost: &str, name: &str) {
        let Some(state) = self.vhosts.get_mut(vhost) else { return };
        state.exchanges.remove(name);
        for bindings in state.bindings.values_mut() {
            bindings.retain(|binding| binding.source != name);
        }
        state.bindings.retain(|_, bindings| !bindings.is_empty());
        let destination = Destination::Exchange { name: name.to_owned() };
        self.drop_bindings_to(vhost, &destination);
        self.router.remove_exchange(vhost, name);
    }

    /// Removes all bindings that lead somewhere, and the auto-delete exchanges that lose their last one by it.
    pub(super) fn drop_bindings_to(&mut self, vhost: &str, destination: &Destination) {
        let Some(state) = self.vhosts.get_mut(vhost) else { return };
        for binding in state.bindings.remove(destination).unwrap_or_default() {
            self.unroute(vhost, &binding);
        }
    }

    pub(super) fn bind(&mut self, vhost: &str, mut binding: Binding, session: SessionId) -> Outcome {
        let target = self.ends_of(vhost, &binding, session)?;
        if binding.source.is_empty()
            || matches!(&binding.destination, Destination::Exchange { name } if name.is_empty())
        {
            return Err(default_exchange_refusal());
        }
        if self.exchange(vhost, &binding.source)?.kind == ExchangeKind::Headers {
            check_match_argument(&binding)?;
        }
        binding.arguments.0.sort();
        let bindings = self.vhost_mut(vhost)?.bindings.entry(binding.destination.clone()).or_default();
        if bindings.insert(binding.clone()) {
            self.router.add_binding(vhost, &binding, target);
        }
        Ok(MetaReply::Done)
    }

    pub(super) fn unbind(&mut self, vhost: &str, mut binding: Binding, session: SessionId) -> Outcome {
        // As in RabbitMQ, neither a missing end nor a missing binding is an error here.
        if let Err(refusal) = self.ends_of(vhost, &binding, session) {
            return if refusal.code == 404 { Ok(MetaReply::Done) } else { Err(refusal) };
        }
        if binding.source.is_empty() {
            return Err(default_exchange_refusal());
        }
        binding.arguments.0.sort();
        let all = &mut self.vhost_mut(vhost)?.bindings;
        let Some(bindings) = all.get_mut(&binding.destination) else { return Ok(MetaReply::Done) };
        let removed = bindings.remove(&binding);
        if bindings.is_empty() {
            all.remove(&binding.destination);
        }
        if removed {
            self.unroute(vhost, &binding);
        }
        Ok(MetaReply::Done)
    }

    /// What a binding's destination is to the router, after checking that both ends are there and may be touched.
    fn ends_of(&self, vhost: &str, binding: &Binding, session: SessionId) -> Result<Target, Refusal> {
        let target = match &binding.destination {
            Destination::Queue { name } => Target::Queue(self.queue_named(vhost, name, session)?.0),
            Destination::Exchange { name } => {
                self.exchange(vhost, name)?;
                Target::Exchange(name.clone())
            }
        };
        self.exchange(vhost, &binding.source)?;
        Ok(target)
    }

    /// Tells the router that a binding is gone; its source goes too if it was the last one of an auto-delete exchange.
    fn unroute(&mut self, vhost: &str, binding: &Binding) {
        self.router.remove_binding(vhost, binding);
        let auto_delete = self.exchange(vhost, &binding.source).is_ok_and(|exchange| exchange.auto_delete);
        if auto_delete && !self.router.is_source(vhost, &binding.source) {
            self.drop_exchange(vhost, &binding.source);
        }
    }
}

fn default_exchange_refusal() -> Refusal {
    Refusal { code: 403, text: "operation not permitted on the default exchange".to_owned() }
}

fn check_match_argument(binding: &Binding) -> Result<(), Refusal> {
    let text = match binding.arguments.get("x-match") {
        None => return Ok(()),
        Some(value) => match value.as_text() {
            Some("all" | "any" | "all-with-x" | "any-with-x") => return Ok(()),
            Some(other) => {
                format!("Invalid x-match field value \"{other}\"; expected all, any, all-with-x, or any-with-x")
            }
            None => format!("Invalid x-match field type {} (value {value}); expected longstr", value.type_name()),
        },
    };
    Err(Refusal { code: 406, text })
}

fn check_equivalent(vhost: &str, name: &str, present: &ExchangeInfo, asked: &ExchangeInfo) -> Result<(), Refusal> {
    let what = format!("exchange '{name}' in vhost '{vhost}'");
    if present.kind != asked.kind {
        return Err(inequivalent("type", &what, &quoted(asked.kind), &quoted(present.kind)));
    }
    let flags = [
        ("durable", asked.durable, present.durable),
        ("auto_delete", asked.auto_delete, present.auto_delete),
        ("internal", asked.internal, present.internal),
    ];
    for (flag, asked, present) in flags {
        if asked != present {
            return Err(inequivalent(flag, &what, &boolean(asked), &boolean(present)));
        }
    }
    inequivalent_arguments(&what, &[ALTERNATE], &asked.arguments, &present.arguments)
}

fn quoted(kind: ExchangeKind) -> String {
    format!("'{}'", kind.name())
}
