//! A cluster's own certificate authority and the certificates it signs.
//!
//! The authority (10 years) is in a Secret that no pod mounts. The brokers share one leaf (1 year, renewed at two
//! thirds) for peers, admin and AMQP over TLS. The operator's own client leaf lives in memory only.

use std::{net::IpAddr, str::FromStr, sync::Arc};

use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use thiserror::Error;

/// A date in rcgen's own time type; a macro, so that the crate it comes from need not be named.
macro_rules! midnight {
    ($date:expr) => {{
        let date: Date = $date;
        date_time_ymd(date.year().into(), date.month() as u8, date.day() as u8)
    }};
}

const AUTHORITY_YEARS: i16 = 10;
const LEAF_DAYS: i32 = 365;
const RENEW_AFTER_DAYS: i32 = LEAF_DAYS * 2 / 3;

/// A certificate and its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedCertificate {
    pub certificate: String,
    pub key: String,
}

impl KeyedCertificate {
    /// Can both be read?
    pub fn is_usable(&self) -> bool {
        KeyPair::from_pem(&self.key).is_ok() && CertificateDer::from_pem_slice(self.certificate.as_bytes()).is_ok()
    }
}

/// A leaf, and when to replace it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub pair: KeyedCertificate,
    pub renew_after: Timestamp,
}

/// Keys could not be made or read.
#[derive(Debug, Error)]
pub enum CertificateError {
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    #[error("'{0}' is neither a host name nor an IP address")]
    Name(String),
    #[error("the PEM text of a certificate or key cannot be read: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the certificate does not fit TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A new certificate authority for the cluster `name` (namespace/name).
pub fn new_authority(name: &str, now: Timestamp) -> Result<KeyedCertificate, CertificateError> {
    let key = KeyPair::generate()?;
    let mut params = authority_params(name);
    let today = utc_date(now);
    params.not_before = midnight!(today.saturating_sub(1.day()));
    params.not_after = midnight!(today.saturating_add(AUTHORITY_YEARS.years()));
    Ok(KeyedCertificate { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() })
}

/// A leaf for `sans`, signed by `authority`, for both ends of a connection. `name` is what the authority was made with.
pub fn new_leaf(
    authority: &KeyedCertificate,
    name: &str,
    common_name: &str,
    sans: &[String],
    now: Timestamp,
) -> Result<Leaf, CertificateError> {
    let issuer = Issuer::new(authority_params(name), KeyPair::from_pem(&authority.key)?);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name_only(common_name);
    params.subject_alt_names = sans.iter().map(|san| alternative_name(san)).collect::<Result<_, _>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let today = utc_date(now);
    params.not_before = midnight!(today.saturating_sub(1.day()));
    params.not_after = midnight!(today.saturating_add(LEAF_DAYS.days()));
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer)?.pem();
    let renew_after = now.saturating_add((i64::from(RENEW_AFTER_DAYS) * 24).hours()).unwrap_or(Timestamp::MAX);
    Ok(Leaf { pair: KeyedCertificate { certificate, key: key.serialize_pem() }, renew_after })
}

/// What the operator dials brokers with: trusts the authority only, and shows a leaf of its own.
pub fn client_config(
    authority: &KeyedCertificate,
    name: &str,
    now: Timestamp,
) -> Result<Arc<ClientConfig>, CertificateError> {
    let leaf = new_leaf(authority, name, "holdfast-operator", &["holdfast-operator".into()], now)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes())?)?;
    let chain = vec![CertificateDer::from_pem_slice(leaf.pair.certificate.as_bytes())?];
    let key = PrivateKeyDer::from_pem_slice(leaf.pair.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// The parameters that signer and signed must agree on; the name alone decides them, so a key in PEM is enough to sign.
fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name_only(&format!("Holdfast {name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn common_name_only(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    // RFC 5280 allows 64 characters in a common name.
    names.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    names
}

fn alternative_name(san: &str) -> Result<SanType, CertificateError> {
    match IpAddr::from_str(san) {
        Ok(ip) => Ok(SanType::IpAddress(ip)),
        Err(_) => Ok(SanType::DnsName(san.try_into().map_err(|_| CertificateError::Name(san.into()))?)),
    }
}

fn utc_date(now: Timestamp) -> Date {
    now.to_zoned(TimeZone::UTC).date()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-22T10:00:00Z".parse().expect("a time")
    }

    #[test]
    fn a_leaf_signed_later_from_the_stored_key_is_trusted_for_its_names() {
        let authority = new_authority("ns/demo", now()).expect("authority");
        let later = now() + (24 * 300).hours();
        let leaf = new_leaf(&authority, "ns/demo", "demo", &["*.demo-nodes.ns.svc".into(), "10.0.0.1".into()], later)
            .expect("leaf");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.certificate.as_bytes()).expect("pem")).expect("a root");
        let der = CertificateDer::from_pem_slice(leaf.pair.certificate.as_bytes()).expect("pem");
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::new(rustls::crypto::ring::default_provider()),
        )
        .build()
        .expect("verifier");
        let at =
            rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(later.as_second() as u64));
        for (name, trusted) in [("demo-0-0.demo-nodes.ns.svc", true), ("10.0.0.1", true), ("other.ns.svc", false)] {
            use rustls::client::danger::ServerCertVerifier;
            let verdict =
                verifier.verify_server_cert(&der, &[], &name.to_string().try_into().expect("a name"), &[], at);
            assert_eq!(verdict.is_ok(), trusted, "{name}: {verdict:?}");
        }
        client_config(&authority, "ns/demo", later).expect("a client");
    }

    #[test]
    fn a_leaf_is_renewed_at_two_thirds_of_its_year() {
        let authority = new_authority("ns/demo", now()).expect("authority");
        let leaf = new_leaf(&authority, "ns/demo", "demo", &["a".into()], now()).expect("leaf");
        assert_eq!(leaf.renew_after, now() + (24 * 243).hours());
    }

    #[test]
    fn a_name_that_no_certificate_can_hold_is_refused_by_name() {
        let authority = new_authority("ns/demo", now()).expect("authority");
        let error = new_leaf(&authority, "ns/demo", "demo", &["ümlaut".into()], now()).expect_err("refused");
        assert!(error.to_string().contains("ümlaut"), "{error}");
    }
}
