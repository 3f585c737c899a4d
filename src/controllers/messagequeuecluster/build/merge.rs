//! The user's partial pod template, merged over the operator's.

use serde_json::{Map, Value};

/// Objects key by key; lists whose items have a `name` (containers, volumes, env) by that name, and `volumeMounts` by
/// `mountPath`; other lists as a whole; `null` removes a field.
pub fn merge(base: &mut Value, overrides: &Value) {
    match (base, overrides) {
        (Value::Object(base), Value::Object(overrides)) => merge_objects(base, overrides),
        (Value::Array(base), Value::Array(overrides)) => match list_key(base, overrides) {
            Some(key) => merge_lists(base, overrides, key),
            None => *base = overrides.clone(),
        },
        (base, overrides) => *base = overrides.clone(),
    }
}

fn merge_objects(base: &mut Map<String, Value>, overrides: &Map<String, Value>) {
    for (key, value) in overrides {
        match (value, base.get_mut(key)) {
            (Value::Null, _) => {
                base.remove(key);
            }
            (value, Some(present)) => merge(present, value),
            (value, None) => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

fn merge_lists(base: &mut Vec<Value>, overrides: &[Value], key: &str) {
    for item in overrides {
        match base.iter_mut().find(|present| present.get(key) == item.get(key)) {
            Some(present) => merge(present, item),
            None => base.push(item.clone()),
        }
    }
}

fn list_key(base: &[Value], overrides: &[Value]) -> Option<&'static str> {
    ["mountPath", "name"]
        .into_iter()
        .find(|key| base.iter().chain(overrides).all(|item| item.get(key).is_some_and(Value::is_string)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_partial_template_adds_changes_and_removes_by_name() {
        let mut base = json!({
            "securityContext": {"fsGroup": 1, "runAsNonRoot": true},
            "tolerations": [{"key": "a"}],
            "containers": [{"name": "broker", "image": "x", "env": [{"name": "A", "value": "1"}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        });
        merge(
            &mut base,
            &json!({
                "securityContext": {"fsGroup": null},
                "tolerations": [{"operator": "Exists"}],
                "containers": [
                    {"name": "broker", "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}],
                     "volumeMounts": [{"name": "data", "mountPath": "/also"}]},
                    {"name": "sidecar", "image": "y"},
                ],
            }),
        );
        assert_eq!(
            base,
            json!({
                "securityContext": {"runAsNonRoot": true},
                "tolerations": [{"operator": "Exists"}],
                "containers": [
                    {"name": "broker", "image": "x",
                     "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}],
                     "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "data", "mountPath": "/also"}]},
                    {"name": "sidecar", "image": "y"},
                ],
            })
        );
    }
}
