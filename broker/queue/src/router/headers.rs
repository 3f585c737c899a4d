//! What the arguments of a binding to a headers exchange match (AMQP 0-9-1 §3.1.3.4, with RabbitMQ's `-with-x`).

use crate::arguments::{Arguments, Value};

/// Whether a message's headers match a binding's arguments.
pub(super) fn matches(binding: &Arguments, headers: &Arguments) -> bool {
    let mode = binding.get("x-match").and_then(Value::as_text).unwrap_or("all");
    let with_x = mode.ends_with("-with-x");
    let mut rules =
        binding.iter().filter(|(name, _)| if with_x { *name != "x-match" } else { !name.starts_with("x-") });
    let holds = |(name, wanted): (&str, &Value)| {
        headers.get(name).is_some_and(|value| *wanted == Value::Void || wanted.equivalent(value))
    };
    if mode.starts_with("any") { rules.any(holds) } else { rules.all(holds) }
}
