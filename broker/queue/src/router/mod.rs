//! From an exchange and a routing key to queues.

mod headers;
mod targets;
mod topic;

pub(crate) use targets::Target;

use crate::arguments::{Arguments, Value};
use crate::ids::QueueId;
use crate::meta::{Binding, Destination, ExchangeInfo, ExchangeKind, Refusal, Vhost};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use targets::Targets;
use topic::TopicTrie;

/// Routes of all virtual hosts. Derived from the metadata and kept up with it, so that a publish looks nothing up but
/// its exchange and key.
#[derive(Clone, Debug, Default)]
pub struct Router {
    vhosts: BTreeMap<String, Routes>,
}

#[derive(Clone, Debug, Default)]
struct Routes {
    exchanges: BTreeMap<String, Exchange>,
    queues: BTreeMap<String, QueueId>,
}

#[derive(Clone, Debug)]
struct Exchange {
    rules: Rules,
    /// How many bindings lead from it.
    bindings: usize,
    internal: bool,
    /// Where what it cannot route goes (`alternate-exchange`).
    alternate: Option<String>,
}

#[derive(Clone, Debug)]
enum Rules {
    Direct(BTreeMap<Bytes, Targets>),
    Fanout(Targets),
    Topic(TopicTrie),
    Headers(Vec<(Arguments, Target)>),
}

/// What routing looks at in a publish.
pub struct Publication<'a> {
    /// The connection's virtual host.
    pub vhost: &'a str,
    /// The exchange's name; empty for the default one.
    pub exchange: &'a str,
    /// The routing key, and those of the `CC` and `BCC` headers.
    pub routing_keys: &'a [&'a [u8]],
    /// The message's headers, asked for only when a headers exchange is on the way.
    pub headers: &'a dyn Fn() -> Arguments,
}

/// Why a message cannot be routed at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteError {
    /// The exchange is not there.
    NoSuchExchange,
    /// The exchange takes messages from other exchanges only.
    Internal,
}

impl RouteError {
    /// The channel error, in RabbitMQ's words.
    pub fn refusal(self, vhost: &str, exchange: &str) -> Refusal {
        match self {
            RouteError::NoSuchExchange => {
                Refusal { code: 404, text: format!("no exchange '{exchange}' in vhost '{vhost}'") }
            }
            RouteError::Internal => {
                let text = format!("cannot publish to internal exchange '{exchange}' in vhost '{vhost}'");
                Refusal { code: 403, text }
            }
        }
    }
}

impl Router {
    /// Appends the queues that a message goes to, each once, in order of their ids. None is no error: the message is
    /// unroutable.
    ///
    /// # Errors
    /// When clients cannot publish to the exchange.
    pub fn route(&self, publication: &Publication<'_>, queues: &mut Vec<QueueId>) -> Result<(), RouteError> {
        let routes = self.vhosts.get(publication.vhost).ok_or(RouteError::NoSuchExchange)?;
        let first = routes.exchanges.get(publication.exchange).ok_or(RouteError::NoSuchExchange)?;
        if first.internal {
            return Err(RouteError::Internal);
        }
        let start = queues.len();
        let mut walk = Walk { routes, publication, headers: None, onward: Vec::new(), queues };
        walk.visit(publication.exchange, first);
        walk.follow();
        if queues.len() > start + 1 {
            let mut found = queues.split_off(start);
            found.sort_unstable();
            found.dedup();
            queues.append(&mut found);
        }
        Ok(())
    }

    /// Routes of metadata as it stands.
    pub(crate) fn of(vhosts: &BTreeMap<String, Vhost>) -> Router {
        let mut router = Router::default();
        for (vhost, state) in vhosts {
            for (name, info) in &state.exchanges {
                router.add_exchange(vhost, name, info);
            }
            for (name, id) in &state.queues {
                router.add_queue(vhost, name, *id);
            }
            for binding in state.bindings.values().flatten() {
                if let Some(target) = router.target(vhost, &binding.destination) {
                    router.add_binding(vhost, binding, target);
                }
            }
        }
        router
    }

    pub(crate) fn add_exchange(&mut self, vhost: &str, name: &str, info: &ExchangeInfo) {
        let rules = match info.kind {
            ExchangeKind::Direct => Rules::Direct(BTreeMap::new()),
            ExchangeKind::Fanout => Rules::Fanout(Targets::default()),
            ExchangeKind::Topic => Rules::Topic(TopicTrie::default()),
            ExchangeKind::Headers => Rules::Headers(Vec::new()),
        };
        let alternate = info.arguments.get("alternate-exchange").and_then(Value::as_text).map(str::to_owned);
        let exchange = Exchange { rules, bindings: 0, internal: info.internal, alternate };
        self.vhosts.entry(vhost.to_owned()).or_default().exchanges.insert(name.to_owned(), exchange);
    }

    pub(crate) fn remove_exchange(&mut self, vhost: &str, name: &str) {
        if let Some(routes) = self.vhosts.get_mut(vhost) {
            routes.exchanges.remove(name);
        }
    }

    pub(crate) fn add_queue(&mut self, vhost: &str, name: &str, id: QueueId) {
        self.vhosts.entry(vhost.to_owned()).or_default().queues.insert(name.to_owned(), id);
    }

    /// The queue's bindings must be gone before.
    pub(crate) fn remove_queue(&mut self, vhost: &str, name: &str) {
        if let Some(routes) = self.vhosts.get_mut(vhost) {
            routes.queues.remove(name);
        }
    }

    pub(crate) fn remove_vhost(&mut self, vhost: &str) {
        self.vhosts.remove(vhost);
    }

    pub(crate) fn add_binding(&mut self, vhost: &str, binding: &Binding, target: Target) {
        let Some(exchange) = self.exchange_mut(vhost, &binding.source) else { return };
        exchange.bindings += 1;
        match &mut exchange.rules {
            Rules::Direct(keys) => keys.entry(binding.routing_key.clone()).or_default().add(target),
            Rules::Fanout(targets) => targets.add(target),
            Rules::Topic(trie) => trie.add(&binding.routing_key, target),
            Rules::Headers(rules) => rules.push((binding.arguments.clone(), target)),
        }
    }

    pub(crate) fn remove_binding(&mut self, vhost: &str, binding: &Binding) {
        let Some(target) = self.target(vhost, &binding.destination) else { return };
        let Some(exchange) = self.exchange_mut(vhost, &binding.source) else { return };
        exchange.bindings = exchange.bindings.saturating_sub(1);
        match &mut exchange.rules {
            Rules::Direct(keys) => {
                if let Some(targets) = keys.get_mut(&binding.routing_key) {
                    targets.remove(&target);
                    if targets.is_empty() {
                        keys.remove(&binding.routing_key);
                    }
                }
            }
            Rules::Fanout(targets) => targets.remove(&target),
            Rules::Topic(trie) => trie.remove(&binding.routing_key, &target),
            Rules::Headers(rules) => {
                let at =
                    rules.iter().position(|(arguments, other)| *arguments == binding.arguments && *other == target);
                at.map(|at| rules.remove(at));
            }
        }
    }

    /// Whether a binding leads from the exchange.
    pub(crate) fn is_source(&self, vhost: &str, name: &str) -> bool {
        self.vhosts
            .get(vhost)
            .and_then(|routes| routes.exchanges.get(name))
            .is_some_and(|exchange| exchange.bindings > 0)
    }

    fn exchange_mut(&mut self, vhost: &str, name: &str) -> Option<&mut Exchange> {
        self.vhosts.get_mut(vhost)?.exchanges.get_mut(name)
    }

    fn target(&self, vhost: &str, destination: &Destination) -> Option<Target> {
        match destination {
            Destination::Queue { name } => self.vhosts.get(vhost)?.queues.get(name).copied().map(Target::Queue),
            Destination::Exchange { name } => Some(Target::Exchange(name.clone())),
        }
    }
}

/// One message's way through the exchanges.
struct Walk<'a, 'b> {
    routes: &'a Routes,
    publication: &'a Publication<'a>,
    headers: Option<Arguments>,
    /// Exchanges that it was passed on to.
    onward: Vec<&'a str>,
    queues: &'b mut Vec<QueueId>,
}

impl<'a> Walk<'a, '_> {
    /// Visits the exchanges that the message was passed on to, each once: bindings may form a cycle.
    fn follow(&mut self) {
        if self.onward.is_empty() {
            return;
        }
        let mut seen = BTreeSet::from([self.publication.exchange]);
        while let Some(name) = self.onward.pop() {
            if let Some(exchange) = self.routes.exchanges.get(name).filter(|_| seen.insert(name)) {
                self.visit(name, exchange);
            }
        }
    }

    /// Applies an exchange's rules; what none of them takes goes to its alternate exchange.
    fn visit(&mut self, name: &str, exchange: &'a Exchange) {
        let before = (self.queues.len(), self.onward.len());
        if name.is_empty() {
            self.name_queues();
        } else {
            self.by_rules(&exchange.rules);
        }
        if (self.queues.len(), self.onward.len()) == before {
            self.onward.extend(exchange.alternate.as_deref());
        }
    }

    /// The default exchange: every queue is bound to it under its own name.
    fn name_queues(&mut self) {
        for key in self.publication.routing_keys {
            let queue = std::str::from_utf8(key).ok().and_then(|name| self.routes.queues.get(name));
            self.queues.extend(queue);
        }
    }

    fn by_rules(&mut self, rules: &'a Rules) {
        let keys = self.publication.routing_keys;
        match rules {
            Rules::Direct(bound) => {
                for target in keys.iter().filter_map(|key| bound.get(*key)).flat_map(Targets::iter) {
                    self.go(target);
                }
            }
            Rules::Fanout(targets) => targets.iter().for_each(|target| self.go(target)),
            Rules::Topic(trie) => {
                for key in keys {
                    trie.matches(key, |target| self.go(target));
                }
            }
            Rules::Headers(rules) => {
                let headers = self.headers.take().unwrap_or_else(self.publication.headers);
                for (_, target) in rules.iter().filter(|(binding, _)| headers::matches(binding, &headers)) {
                    self.go(target);
                }
                self.headers = Some(headers);
            }
        }
    }

    fn go(&mut self, target: &'a Target) {
        match target {
            Target::Queue(id) => self.queues.push(*id),
            Target::Exchange(name) => self.onward.push(name),
        }
    }
}
