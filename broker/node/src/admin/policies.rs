//! Policies and queues in the admin API.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::{get, post, put};
use holdfast_engine::admin::{
    AdminAction, AdminErrorKind, AdminReply, PolicyReport as Listed, QueueAction, QueueReplica, QueueReport,
};
use holdfast_queue::arguments::{Arguments, Value};
use holdfast_queue::meta::{ApplyTo, NewPolicy, PolicyKind};
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::routes::{Admin, Answer, Refusal, Shared, done, limit_of, parse, surprise};

/// Queues in an answer, unless `limit` says otherwise.
const QUEUES_LIMIT: usize = 1000;

/// `PUT /v1/policies/{vhost}/{name}`, with the names that RabbitMQ gives the fields.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct PolicyBody {
    pattern: String,
    definition: Map<String, Json>,
    #[serde(default)]
    priority: i64,
    #[serde(default = "all")]
    apply_to: String,
}

/// `POST /v1/queues/{vhost}/{name}/actions`, as in RabbitMQ's management API.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionBody {
    action: String,
}

fn all() -> String {
    ApplyTo::All.name().to_owned()
}

/// The routes for policies and queues.
pub(super) fn router() -> Router<Arc<Admin>> {
    let of = |kind: PolicyKind| {
        put(move |admin: Shared, headers: HeaderMap, path: Path<(String, String)>, body: Bytes| {
            put_policy(kind, admin, headers, path, body)
        })
        .delete(move |admin: Shared, headers: HeaderMap, path: Path<(String, String)>| {
            delete_policy(kind, admin, headers, path)
        })
    };
    let list = |kind: PolicyKind| get(move |admin: Shared, headers: HeaderMap| get_policies(kind, admin, headers));
    Router::new()
        .route("/v1/policies", list(PolicyKind::User))
        .route("/v1/policies/{vhost}/{name}", of(PolicyKind::User))
        .route("/v1/operator-policies", list(PolicyKind::Operator))
        .route("/v1/operator-policies/{vhost}/{name}", of(PolicyKind::Operator))
        .route("/v1/queues", get(get_queues))
        .route("/v1/queues/{vhost}/{name}/actions", post(act_on_queue))
}

async fn put_policy(
    kind: PolicyKind,
    State(admin): Shared,
    headers: HeaderMap,
    Path((vhost, name)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    let body: PolicyBody = parse(&body)?;
    let bad = |error: String| Refusal::new(AdminErrorKind::BadRequest, error, "correct the policy and send it again");
    let apply_to = ApplyTo::from_name(&body.apply_to).map_err(bad)?;
    let definition = definition_of(&body.definition).map_err(bad)?;
    let policy = NewPolicy { pattern: body.pattern, apply_to, priority: body.priority, definition };
    admin.ask(&headers, AdminAction::PutPolicy { kind, vhost, name, policy }).await?;
    done()
}

async fn delete_policy(
    kind: PolicyKind,
    State(admin): Shared,
    headers: HeaderMap,
    Path((vhost, name)): Path<(String, String)>,
) -> Answer {
    admin.ask(&headers, AdminAction::DeletePolicy { kind, vhost, name }).await?;
    done()
}

async fn get_policies(kind: PolicyKind, State(admin): Shared, headers: HeaderMap) -> Answer {
    match admin.ask(&headers, AdminAction::Policies { kind }).await? {
        AdminReply::Policies(list) => {
            Ok(axum::Json(json!({ "policies": list.iter().map(policy).collect::<Vec<_>>() })).into_response())
        }
        _ => Err(surprise()),
    }
}

async fn get_queues(State(admin): Shared, headers: HeaderMap, RawQuery(query): RawQuery) -> Answer {
    let limit = limit_of(query.as_deref(), QUEUES_LIMIT)?;
    match admin.ask(&headers, AdminAction::Queues { limit }).await? {
        AdminReply::Queues(list) => {
            Ok(axum::Json(json!({ "queues": list.iter().map(queue).collect::<Vec<_>>() })).into_response())
        }
        _ => Err(surprise()),
    }
}

async fn act_on_queue(
    State(admin): Shared,
    headers: HeaderMap,
    Path((vhost, name)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    let ActionBody { action } = parse(&body)?;
    let action = match action.as_str() {
        "sync" => QueueAction::Sync,
        "cancel_sync" => QueueAction::CancelSync,
        other => {
            let error = format!("there is no action '{other}' on queues");
            return Err(Refusal::new(AdminErrorKind::BadRequest, error, "the actions are sync and cancel_sync"));
        }
    };
    admin.ask(&headers, AdminAction::QueueAction { vhost, name, action }).await?;
    done()
}

/// Values that policies have: numbers, texts, truth values, and lists of texts.
fn definition_of(body: &Map<String, Json>) -> Result<Arguments, String> {
    let value = |name: &str, value: &Json| match value {
        Json::Bool(flag) => Ok(Value::Bool(*flag)),
        Json::String(text) => Ok(Value::string(text.as_str())),
        Json::Number(number) => {
            number.as_i64().map(Value::I64).ok_or_else(|| format!("{name} must be a whole number, not {number}"))
        }
        Json::Array(items) => {
            let texts = items.iter().map(|item| item.as_str().map(Value::string));
            let texts: Option<Vec<Value>> = texts.collect();
            texts.map(Value::Array).ok_or_else(|| format!("{name} must be a list of texts"))
        }
        Json::Null | Json::Object(_) => Err(format!("{name} must be a number, a text or a list of texts")),
    };
    body.iter().map(|(name, json)| Ok((name.clone(), value(name, json)?))).collect::<Result<_, _>>().map(Arguments)
}

fn definition(arguments: &Arguments) -> Json {
    let value = |value: &Value| match (value, value.as_integer()) {
        (_, Some(number)) => json!(number),
        (Value::Bool(flag), _) => json!(flag),
        (Value::Array(items), _) => json!(items.iter().map(ToString::to_string).collect::<Vec<_>>()),
        (other, _) => json!(other.to_string()),
    };
    Json::Object(arguments.iter().map(|(name, it)| (name.to_owned(), value(it))).collect())
}

fn policy(listed: &Listed) -> Json {
    let NewPolicy { pattern, apply_to, priority, definition: of } = &listed.policy;
    json!({
        "vhost": listed.vhost,
        "name": listed.name,
        "pattern": pattern,
        "apply-to": apply_to.name(),
        "priority": priority,
        "definition": definition(of),
    })
}

fn queue(queue: &QueueReport) -> Json {
    let policy = queue.policy.as_ref();
    json!({
        "vhost": queue.vhost,
        "name": queue.name,
        "group": queue.group.map(|group| group.0),
        "policy": policy.and_then(|policy| policy.user.as_ref()),
        "operatorPolicy": policy.and_then(|policy| policy.operator.as_ref()),
        "effectivePolicy": policy.map(|policy| definition(&policy.definition)),
        "leader": queue.leader,
        "replicasWanted": queue.replicas_wanted,
        "minInSyncReplicas": queue.min_in_sync_replicas,
        "replicas": queue.replicas.iter().map(replica).collect::<Vec<_>>(),
        "movingTo": queue.moving_to,
        "unsynchronised": queue.unsynchronised,
    })
}

fn replica(replica: &QueueReplica) -> Json {
    json!({ "name": replica.name, "voter": replica.voter, "synchronised": replica.synchronised })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::routes::tests::call;

    #[tokio::test]
    async fn a_policy_reaches_the_engine_as_rabbitmq_writes_it() {
        let body = r#"{"pattern":"^a","apply-to":"queues","priority":3,
            "definition":{"ha-mode":"nodes","ha-params":["m1","m2"],"ha-promote-on-failure":"always"}}"#;
        let path = "/v1/policies/%2F/two%20words";
        let (status, answer, asked) = call("PUT", path, None, body, Ok(AdminReply::Done)).await;
        assert_eq!((status, answer), (200, json!({})));
        let definition = Arguments(vec![
            ("ha-mode".into(), Value::string("nodes")),
            ("ha-params".into(), Value::Array(vec![Value::string("m1"), Value::string("m2")])),
            ("ha-promote-on-failure".into(), Value::string("always")),
        ]);
        let policy = NewPolicy { pattern: "^a".into(), apply_to: ApplyTo::Queues, priority: 3, definition };
        let (kind, vhost, name) = (PolicyKind::User, "/".to_owned(), "two words".to_owned());
        assert_eq!(asked.unwrap().action, AdminAction::PutPolicy { kind, vhost, name, policy: policy.clone() });
        let listed = Listed { vhost: "/".into(), name: "p".into(), policy };
        let (_, list, asked) =
            call("GET", "/v1/operator-policies", None, "", Ok(AdminReply::Policies(vec![listed]))).await;
        assert_eq!(asked.unwrap().action, AdminAction::Policies { kind: PolicyKind::Operator });
        let expected = json!({"ha-mode": "nodes", "ha-params": ["m1", "m2"], "ha-promote-on-failure": "always"});
        assert_eq!(list["policies"][0]["definition"], expected);
        let (_, _, asked) = call("DELETE", "/v1/operator-policies/%2F/p", None, "", Ok(AdminReply::Done)).await;
        let (kind, vhost, name) = (PolicyKind::Operator, "/".to_owned(), "p".to_owned());
        assert_eq!(asked.unwrap().action, AdminAction::DeletePolicy { kind, vhost, name });
    }

    #[tokio::test]
    async fn a_queue_is_synchronised_by_the_actions_that_rabbitmq_has_and_no_others() {
        for (word, action) in [("sync", QueueAction::Sync), ("cancel_sync", QueueAction::CancelSync)] {
            let (path, body) = ("/v1/queues/%2F/two%20words/actions", json!({ "action": word }).to_string());
            let (status, _, asked) = call("POST", path, None, &body, Ok(AdminReply::Done)).await;
            let (vhost, name) = ("/".to_owned(), "two words".to_owned());
            assert_eq!((status, asked.unwrap().action), (200, AdminAction::QueueAction { vhost, name, action }));
        }
        let path = "/v1/queues/%2F/q/actions";
        let (status, answer, asked) = call("POST", path, None, r#"{"action":"purge"}"#, Ok(AdminReply::Done)).await;
        assert_eq!((status, asked), (400, None));
        assert!(answer["hint"].as_str().is_some_and(|hint| hint.contains("cancel_sync")));
    }

    #[tokio::test]
    async fn policies_that_make_no_sense_are_refused_before_they_are_asked_for() {
        for body in [
            r#"{"pattern":"a"}"#,
            r#"{"pattern":"a","definition":{},"apply-to":"topics"}"#,
            r#"{"pattern":"a","definition":{"max-length":1.5}}"#,
            r#"{"pattern":"a","definition":{"ha-params":[1]}}"#,
            r#"{"pattern":"a","definition":{"ha-mode":null}}"#,
            r#"{"pattern":"a","definition":{},"applyTo":"all"}"#,
        ] {
            let (status, answer, asked) = call("PUT", "/v1/policies/%2F/p", None, body, Ok(AdminReply::Done)).await;
            assert_eq!((status, asked), (400, None), "{body}: {answer}");
            assert!(answer["hint"].is_string());
        }
    }
}
