//! Certificates, the generated user, and the record of the cluster's identity.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use rand::{Rng, distr::Alphanumeric};
use serde_json::{Value, json};

use super::{
    super::{
        super::Error,
        observe::{Observed, text},
        plan::{LEAF_ANNOTATION, Latch, Leaf, NAMES_ANNOTATION, Plan, RENEW_ANNOTATION, certified},
        validate::ValidatedCluster,
    },
    Object, shared,
};
use crate::{
    broker_admin::Credentials,
    certificates::{self, KeyedCertificate},
};

const USER: &str = "holdfast";
const PASSWORD_LENGTH: usize = 24;

/// The secret parts of a cluster: those that exist, and fresh ones for those that do not.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// None while brokers run that trust one that is lost.
    pub authority: Option<KeyedCertificate>,
    pub user: Credentials,
    /// None keeps the Secret as it is.
    fresh_leaf: Option<certificates::Leaf>,
}

/// Keeps what there is, makes what is missing.
pub fn settle(cluster: &ValidatedCluster, observed: &Observed, plan: &Plan, now: Timestamp) -> Result<Secrets, Error> {
    let authority = match observed.secrets.usable_authority() {
        _ if observed.authority_lost().is_some() => None,
        Some(authority) => Some(authority),
        None => Some(certificates::new_authority(&cluster.authority_name, now)?),
    };
    let fresh_leaf = match (&plan.leaf, &authority) {
        (Leaf::Issue { .. }, Some(authority)) => {
            let sans = cluster.certificate_names();
            Some(certificates::new_leaf(authority, &cluster.authority_name, &cluster.names.cluster, &sans, now)?)
        }
        _ => None,
    };
    let existing = observed.secrets.user.as_ref();
    let field = |key: &str| existing.and_then(|secret| text(secret, key)).filter(|value| !value.is_empty());
    let user = Credentials {
        name: field("username").unwrap_or_else(|| USER.into()),
        password: field("password").unwrap_or_else(fresh_password),
    };
    Ok(Secrets { authority, user, fresh_leaf })
}

fn fresh_password() -> String {
    rand::rng().sample_iter(Alphanumeric).take(PASSWORD_LENGTH).map(char::from).collect()
}

impl Secrets {
    /// The Secrets to apply. A kept leaf is not written again: the one in place is the truth.
    pub fn objects(&self, cluster: &ValidatedCluster, plan: &Plan) -> Vec<Object> {
        let mut objects = Vec::new();
        if let Some(authority) = &self.authority {
            let data = [("tls.crt", authority.certificate.clone()), ("tls.key", authority.key.clone())];
            objects.push(secret(cluster, cluster.names.authority_secret(), "kubernetes.io/tls", data));
            objects.push(self.connection(cluster, authority));
            objects.extend(self.fresh_leaf.as_ref().map(|leaf| self.leaf(cluster, plan, authority, leaf)));
        }
        objects.extend(identity(cluster, &plan.latch));
        objects
    }

    fn leaf(
        &self,
        cluster: &ValidatedCluster,
        plan: &Plan,
        authority: &KeyedCertificate,
        leaf: &certificates::Leaf,
    ) -> Object {
        let data = [
            ("ca.crt", authority.certificate.clone()),
            ("tls.crt", leaf.pair.certificate.clone()),
            ("tls.key", leaf.pair.key.clone()),
        ];
        secret(cluster, cluster.names.tls_secret(), "kubernetes.io/tls", data).annotated(json!({
            LEAF_ANNOTATION: plan.leaf.id(),
            RENEW_ANNOTATION: leaf.renew_after.to_string(),
            NAMES_ANNOTATION: certified(cluster, &authority.certificate),
        }))
    }

    /// What clients connect with, as servicebinding.io lays it out.
    fn connection(&self, cluster: &ValidatedCluster, authority: &KeyedCertificate) -> Object {
        let (host, port, scheme) = cluster.client_address();
        let Credentials { name, password } = &self.user;
        secret(
            cluster,
            cluster.names.user_secret(),
            "servicebinding.io/amqp",
            [
                ("type", "amqp".into()),
                ("provider", "holdfast".into()),
                ("host", host.clone()),
                ("port", port.to_string()),
                ("username", name.clone()),
                ("password", password.clone()),
                ("uri", format!("{scheme}://{}:{}@{host}:{port}", percent_encoded(name), percent_encoded(password))),
                ("ca.crt", authority.certificate.clone()),
            ],
        )
    }
}

/// Written with the volumes' annotations, before the status and before any broker hears of it.
fn identity(cluster: &ValidatedCluster, latch: &Latch) -> Option<Object> {
    let id = latch.cluster_id()?;
    Some(secret(cluster, cluster.names.identity_secret(), "Opaque", [("clusterId", id.to_owned())]))
}

fn secret<const N: usize>(
    cluster: &ValidatedCluster,
    name: String,
    type_: &str,
    fields: [(&str, String); N],
) -> Object {
    let data: BTreeMap<&str, Value> =
        fields.into_iter().map(|(key, value)| (key, json!(ByteString(value.into_bytes())))).collect();
    shared::<Secret>(cluster, name, json!({ "type": type_, "data": data }))
}

/// RFC 3986: all but unreserved characters.
fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_that_a_user_chose_does_not_break_the_uri() {
        assert_eq!(percent_encoded("a/b@c d"), "a%2Fb%40c%20d");
    }
}
