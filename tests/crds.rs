//! What is in `crds/`, in the Helm chart and in `charts/install.yaml` is what the code says.

use holdfast::api::v1alpha1::{chart_template, custom_resource_definitions};

const TOO_LARGE_FOR_CLIENT_SIDE_APPLY_BYTES: usize = 200_000;

const REGENERATE: &str = "run `cargo run -p holdfast -- crds --output crds --chart charts/holdfast`";

fn documents() -> Vec<(String, String)> {
    custom_resource_definitions()
        .iter()
        .map(|crd| {
            let name = format!("{}.{}.yaml", crd.spec.group, crd.spec.names.plural);
            (name, serde_saphyr::to_string(crd).expect("YAML"))
        })
        .collect()
}

fn read(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}; {REGENERATE}", path.display()))
}

#[test]
fn the_files_in_crds_are_what_the_code_generates() {
    for (name, text) in documents() {
        assert!(read(&format!("crds/{name}")) == text, "crds/{name} is stale; {REGENERATE}");
    }
}

#[test]
fn the_chart_installs_the_same_crds() {
    let expected = chart_template(&documents());
    assert!(read("charts/holdfast/templates/crds.yaml") == expected, "the chart's CRDs are stale; {REGENERATE}");
}

#[test]
fn each_crd_is_small_enough_for_plain_kubectl_apply() {
    for (name, text) in documents() {
        assert!(text.len() < TOO_LARGE_FOR_CLIENT_SIDE_APPLY_BYTES, "{name} has {} bytes", text.len());
    }
}

#[test]
fn a_new_object_is_not_ready_before_the_operator_saw_it() {
    for (name, text) in documents() {
        let at = text.find("          status:\n            default:").unwrap_or_else(|| panic!("{name}: no default"));
        assert!(text[at..].contains("reason: Pending"), "{name}");
    }
}

/// Every list, map and string of a spec is bounded: CEL's cost is estimated from the bounds, and the API server refuses
/// rules over unbounded ones.
#[test]
fn everything_in_a_spec_has_a_maximum() {
    for crd in custom_resource_definitions() {
        for version in &crd.spec.versions {
            let schema = serde_json::to_value(version.schema.as_ref().expect("a schema")).expect("JSON");
            let mut unbounded = Vec::new();
            collect(&schema["openAPIV3Schema"]["properties"]["spec"], "spec", &mut unbounded);
            // Kubernetes' own type: a name, checked where it is used.
            unbounded.retain(|path| {
                path != "spec.imagePullSecrets[].name" && path != "spec.listeners.service.annotations{}"
            });
            assert_eq!(unbounded, Vec::<String>::new());
        }
    }
}

fn collect(schema: &serde_json::Value, path: &str, unbounded: &mut Vec<String>) {
    let has = |key: &str| !schema[key].is_null();
    match schema["type"].as_str() {
        Some("string") if !has("maxLength") && !has("enum") => unbounded.push(path.into()),
        Some("array") if !has("maxItems") => unbounded.push(path.into()),
        Some("integer") if !has("maximum") => unbounded.push(path.into()),
        _ => {}
    }
    if let Some(items) = schema.get("items") {
        collect(items, &format!("{path}[]"), unbounded);
    }
    if let Some(values) = schema.get("additionalProperties").filter(|v| v.is_object()) {
        if !has("maxProperties") {
            unbounded.push(path.into());
        }
        collect(values, &format!("{path}{{}}"), unbounded);
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        collect(property, &format!("{path}.{name}"), unbounded);
    }
}

/// `charts/install.yaml` is for those without Helm. `HOLDFAST_REGENERATE=1` writes it anew.
#[test]
fn the_plain_manifest_is_what_the_chart_renders_where_helm_is_installed() {
    let Some(rendered) = rendered_chart() else {
        assert!(std::env::var_os("HOLDFAST_REQUIRE_HELM").is_none(), "no helm here: run tests/cluster/build helm");
        eprintln!("skipped: no helm here; `make test-chart` has one");
        return;
    };
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/install.yaml");
    if std::env::var_os("HOLDFAST_REGENERATE").is_some() {
        std::fs::write(&path, &rendered).expect("written");
    }
    assert!(
        read("charts/install.yaml") == rendered,
        "charts/install.yaml is stale; HOLDFAST_REGENERATE=1 cargo test -p holdfast --test crds"
    );
}

fn rendered_chart() -> Option<String> {
    let cache = std::env::var("HOLDFAST_CACHE")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cache/holdfast")))
        .ok();
    let programs = [cache.map(|c| format!("{c}/bin/helm")), Some("helm".into())];
    let args = ["template", "holdfast", "charts/holdfast", "--namespace=holdfast-system"];
    let run = |program: String| {
        std::process::Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()
    };
    let output = programs.into_iter().flatten().find_map(run)?;
    assert!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
    let head = "# Generated by `helm template` from charts/holdfast: the operator and its CRDs, for kubectl apply -f.\n\
                apiVersion: v1\nkind: Namespace\nmetadata:\n  name: holdfast-system\n";
    Some(format!("{head}{}", String::from_utf8_lossy(&output.stdout)))
}
