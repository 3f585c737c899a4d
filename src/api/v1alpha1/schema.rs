//! What schemars cannot say: free-form objects, quantities, and the default of a status.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps,
};
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::json;

use super::{ConditionType, MessageQueueBackup, MessageQueueBackupSchedule, MessageQueueCluster, Reason};

/// An object whose fields the API server keeps as they are.
pub fn free_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// Resource name to quantity: `cpu: 2`, `cpu: 500m`, `memory: 1Gi`.
pub fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 20,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
        }
    })
}

/// Labels: at most 50, with keys and values as Kubernetes has them.
pub fn labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 50,
        "additionalProperties": { "type": "string", "maxLength": 63 }
    })
}

/// Every CRD of this version, as it is installed.
pub fn custom_resource_definitions() -> Vec<CustomResourceDefinition> {
    let kinds = [MessageQueueCluster::crd(), MessageQueueBackup::crd(), MessageQueueBackupSchedule::crd()];
    kinds.map(with_status_default).into()
}

/// `Ready=Unknown` from the first moment, so that `kubectl wait` and kstatus never mistake a new object for a finished one.
fn with_status_default(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let waiting = json!({ "conditions": [{
        "type": ConditionType::Ready.to_string(),
        "status": "Unknown",
        "reason": Reason::Pending.to_string(),
        "message": "Waiting for the operator",
        "lastTransitionTime": "1970-01-01T00:00:00Z",
    }]});
    for version in &mut crd.spec.versions {
        if let Some(status) = status_schema(version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut())) {
            status.default = Some(JSON(waiting.clone()));
        }
    }
    crd
}

fn status_schema(root: Option<&mut JSONSchemaProps>) -> Option<&mut JSONSchemaProps> {
    root?.properties.as_mut()?.get_mut("status")
}

/// The CRDs as a Helm template: toggled by `crds.enabled`, and kept when the release is removed, since deleting a CRD
/// deletes every cluster. `documents` are (file name, YAML).
pub fn chart_template(documents: &[(String, String)]) -> String {
    let mut text =
        String::from("{{- /* Generated from ../../../crds by `make crds`. */ -}}\n{{- if .Values.crds.enabled }}\n");
    for (_, document) in documents {
        let annotated = document.replacen(
            "metadata:\n",
            "metadata:\n  annotations:\n    {{- if .Values.crds.keep }}\n    helm.sh/resource-policy: keep\n    {{- end }}\n    holdfast.dev/chart: {{ .Chart.Version | quote }}\n",
            1,
        );
        text.push_str("---\n");
        text.push_str(&annotated);
    }
    text.push_str("{{- end }}\n");
    text
}
