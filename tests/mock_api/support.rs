//! An API server in memory, behind a mock of the client's transport: it stores objects, keeps a log of every write, and
//! fails where a test says so. What kubelet, the scheduler and the StatefulSet controller would do, it does when asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::{Client, client::Body};
use serde_json::{Value, json};

/// Zones by node.
pub const NODES: [(&str, &str); 3] = [("n1", "zone-1"), ("n2", "zone-2"), ("n3", "zone-3")];

#[derive(Clone, Default)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    writes: Vec<String>,
    refusals: Vec<Refusal>,
    meanwhile: Vec<Meanwhile>,
    events: Vec<String>,
    version: u64,
}

/// Something that happens just before a request is handled.
struct Meanwhile {
    method: Method,
    path_part: String,
    path: String,
    change: Box<dyn FnOnce(&mut Value) + Send>,
}

struct Refusal {
    method: Method,
    path_part: String,
    status: u16,
    message: String,
    times: u32,
}

impl FakeApi {
    /// A server with three nodes and a default storage class, and a client for it.
    pub fn start() -> (Self, Client) {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let api = Self::default();
        for (node, zone) in NODES {
            api.put(
                &format!("/api/v1/nodes/{node}"),
                json!({
                    "apiVersion": "v1", "kind": "Node",
                    "metadata": { "name": node, "labels": { "topology.kubernetes.io/zone": zone } }, "spec": {},
                }),
            );
        }
        api.put("/apis/storage.k8s.io/v1/storageclasses/local", json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "x",
            "metadata": { "name": "local", "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } },
        }));
        let server = api.clone();
        tokio::spawn(async move {
            while let Some((request, send)) = handle.next_request().await {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.expect("a body").to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let (status, answer) =
                    server.handle(&parts.method, parts.uri.path(), parts.uri.query().unwrap_or(""), body);
                let response = Response::builder().status(status).body(Body::from(answer.to_string().into_bytes()));
                send.send_response(response.expect("a response"));
            }
        });
        (api, Client::new(service, "default"))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds this")
    }

    /// The next `times` requests of that method whose path contains `path_part` fail.
    pub fn refuse(&self, method: Method, path_part: &str, status: u16, message: &str, times: u32) {
        let (path_part, message) = (path_part.into(), message.into());
        self.lock().refusals.push(Refusal { method, path_part, status, message, times });
    }

    /// Just before the next request of that method whose path contains `path_part`, the object at `path` changes.
    pub fn meanwhile(
        &self,
        method: Method,
        path_part: &str,
        path: &str,
        change: impl FnOnce(&mut Value) + Send + 'static,
    ) {
        let (path_part, path) = (path_part.into(), path.into());
        self.lock().meanwhile.push(Meanwhile { method, path_part, path, change: Box::new(change) });
    }

    /// Every write so far, as `PATCH /path`, and forgets them.
    pub fn take_writes(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().writes)
    }

    /// The reasons of all Events that were published.
    pub fn events(&self) -> Vec<String> {
        self.lock().events.clone()
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.lock().objects.get(path).cloned()
    }

    pub fn put(&self, path: &str, object: Value) {
        self.lock().store(path, object);
    }

    /// Changes an object in place.
    pub fn change(&self, path: &str, with: impl FnOnce(&mut Value)) {
        let mut object = self.get(path).unwrap_or_else(|| panic!("{path} does not exist"));
        with(&mut object);
        self.put(path, object);
    }

    /// The paths of all objects below a path.
    pub fn below(&self, prefix: &str) -> Vec<String> {
        self.lock().objects.keys().filter(|path| path.starts_with(prefix)).cloned().collect()
    }

    /// What the garbage collector does: everything goes whose owner is not there (any more).
    pub fn collect_garbage(&self) {
        let mut state = self.lock();
        loop {
            let uids: Vec<Value> = state.objects.values().map(|object| object["metadata"]["uid"].clone()).collect();
            let before = state.objects.len();
            state.objects.retain(|_, object| {
                let owners = object["metadata"]["ownerReferences"].as_array();
                owners.is_none_or(|all| all.is_empty() || all.iter().any(|owner| uids.contains(&owner["uid"])))
            });
            if state.objects.len() == before {
                return;
            }
        }
    }

    pub fn remove(&self, path: &str) {
        self.lock().objects.remove(path);
    }

    fn handle(&self, method: &Method, path: &str, query: &str, body: Value) -> (u16, Value) {
        let mut state = self.lock();
        let is_due = |m: &Meanwhile| m.method == *method && path.contains(&m.path_part);
        while let Some(at) = state.meanwhile.iter().position(is_due) {
            let Meanwhile { path, change, .. } = state.meanwhile.remove(at);
            let mut object = state.objects.get(&path).cloned().unwrap_or_else(|| panic!("{path} does not exist"));
            change(&mut object);
            state.store(&path, object);
        }
        if method != Method::GET && !path.contains("/events") {
            state.writes.push(format!("{method} {path}"));
        }
        if *method == Method::POST && path.contains("/events") {
            state.events.extend(body["reason"].as_str().map(str::to_owned));
        }
        let refusal =
            state.refusals.iter_mut().find(|r| r.times > 0 && r.method == *method && path.contains(&r.path_part));
        if let Some(refusal) = refusal {
            refusal.times -= 1;
            return failure(refusal.status, &refusal.message);
        }
        match (method, path) {
            (&Method::GET, path) if is_collection(path) => state.list(path, query),
            (&Method::GET, path) => match state.objects.get(path) {
                Some(object) => (200, object.clone()),
                None => failure(404, "not found"),
            },
            (&Method::POST, path) if path.ends_with("/eviction") => {
                let pod = path.trim_end_matches("/eviction");
                let wanted = &body["deleteOptions"]["preconditions"]["uid"];
                match state.objects.get(pod) {
                    Some(present) if present["metadata"]["uid"] == *wanted => {
                        state.objects.remove(pod);
                        (201, json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
                    }
                    Some(_) => failure(409, "the UID differs"),
                    None => failure(404, "not found"),
                }
            }
            (&Method::POST, path) if path.contains("/events") => (201, body),
            (&Method::POST, path) => {
                let at = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap_or_default());
                match state.objects.contains_key(&at) {
                    true => failure(409, "already exists"),
                    false => (201, state.store(&at, body)),
                }
            }
            (&Method::DELETE, path) => match state.objects.remove(path) {
                Some(object) => (200, object),
                None => failure(404, "not found"),
            },
            (&Method::PATCH, path) => state.patch(path, body),
            _ => failure(405, "this fake does not do that"),
        }
    }

    /// What the StatefulSet controller, the scheduler and kubelet do: a volume and a running pod for each set with a
    /// replica. Names of new pods are returned.
    pub fn run_pods(&self) -> Vec<String> {
        let mut started = Vec::new();
        let prefix = "/apis/apps/v1/namespaces/shop/statefulsets/";
        for path in self.below(prefix) {
            let set = self.get(&path).expect("listed");
            let name = format!("{}-0", set["metadata"]["name"].as_str().expect("a name"));
            let pod_path = format!("/api/v1/namespaces/shop/pods/{name}");
            if set["spec"]["replicas"] == json!(0) {
                self.remove(&pod_path);
                continue;
            }
            self.run_volume(&name, &set);
            if self.get(&pod_path).is_none() {
                self.put(&pod_path, pod(&name, &set));
                started.push(name);
            }
        }
        started
    }

    fn run_volume(&self, pod: &str, set: &Value) {
        let path = format!("/api/v1/namespaces/shop/persistentvolumeclaims/data-{pod}");
        if self.get(&path).is_none() {
            let claim = &set["spec"]["volumeClaimTemplates"][0]["spec"];
            self.put(&path, json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": { "name": format!("data-{pod}"), "namespace": "shop", "labels": set["spec"]["selector"]["matchLabels"] },
                "spec": claim,
                "status": { "phase": "Bound", "capacity": claim["resources"]["requests"] },
            }));
        }
    }
}

fn pod(name: &str, set: &Value) -> Value {
    let number: usize = name.split('-').nth(1).and_then(|n| n.parse().ok()).expect("demo-N-0");
    let mut metadata = set["spec"]["template"]["metadata"].clone();
    metadata["name"] = json!(name);
    metadata["namespace"] = json!("shop");
    metadata["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "StatefulSet", "controller": true,
        "name": set["metadata"]["name"], "uid": set["metadata"]["uid"],
    }]);
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "nodeName": NODES[number % 3].0, "containers": [{ "name": "broker" }],
            "tolerations": set["spec"]["template"]["spec"]["tolerations"],
        },
        "status": {
            "podIP": format!("10.0.0.{number}"),
            "conditions": [{ "type": "Ready", "status": "True" }],
            "containerStatuses": [{
                "name": "broker", "image": "x", "imageID": "", "ready": true, "restartCount": 0,
                "state": { "running": {} },
            }],
        },
    })
}

impl State {
    fn store(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let meta = &mut object["metadata"];
        if meta["uid"].is_null() {
            meta["uid"] = json!(format!("uid-{}", self.version));
        }
        meta["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn patch(&mut self, path: &str, body: Value) -> (u16, Value) {
        if let Some(parent) = path.strip_suffix("/status") {
            let Some(mut object) = self.objects.get(parent).cloned() else { return failure(404, "not found") };
            object["status"] = body["status"].clone();
            return (200, self.store(parent, object));
        }
        let mut object = self.objects.get(path).cloned().unwrap_or_else(|| json!({}));
        let expected = &body["metadata"]["resourceVersion"];
        if !expected.is_null() && *expected != object["metadata"]["resourceVersion"] {
            return failure(409, "the object has been modified");
        }
        let before = object.clone();
        merge(&mut object, &body);
        match object == before {
            true => (200, object),
            false => (200, self.store(path, object)),
        }
    }

    fn list(&self, path: &str, query: &str) -> (u16, Value) {
        let selector = query
            .split('&')
            .find_map(|part| part.strip_prefix("labelSelector="))
            .map(|text| text.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/").replace("%2f", "/"))
            .unwrap_or_default();
        let wanted: Vec<(&str, &str)> = selector.split(',').filter_map(|pair| pair.split_once('=')).collect();
        let prefix = format!("{path}/");
        let fits = |object: &&Value| {
            wanted.iter().all(|(key, value)| object["metadata"]["labels"][*key].as_str() == Some(*value))
        };
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(at, _)| at.starts_with(&prefix))
            .map(|(_, object)| object)
            .filter(fits)
            .collect();
        (200, json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": items }))
    }
}

fn is_collection(path: &str) -> bool {
    [
        "pods",
        "statefulsets",
        "configmaps",
        "persistentvolumeclaims",
        "storageclasses",
        "messagequeuebackups",
        "messagequeuebackupschedules",
        "volumesnapshots",
        "volumesnapshotclasses",
        "jobs",
    ]
    .iter()
    .any(|plural| path.ends_with(&format!("/{plural}")))
}

fn failure(code: u16, message: &str) -> (u16, Value) {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    (
        code,
        json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
            "code": code, "reason": reason, "message": message,
        }),
    )
}

fn merge(base: &mut Value, patch: &Value) {
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => {
            for (key, value) in patch {
                match value {
                    Value::Null => {
                        base.remove(key);
                    }
                    value => merge(base.entry(key.clone()).or_insert(Value::Null), value),
                }
            }
        }
        (base, patch) => *base = patch.clone(),
    }
}
