//! TLS: certificates from files, and the four configurations made of them.
//!
//! Members and administrators have certificates of the cluster's own authority, checked on both sides. AMQP clients check
//! the broker's certificate and log in with a password.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::config::TlsFiles;
use crate::failure::{ExitKind, Failure};

/// What the certificate files hold.
pub struct Certificates {
    authorities: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Certificates {
    /// Reads the files; each complaint names the file.
    pub fn load(files: &TlsFiles) -> Result<Self, Failure> {
        let mut authorities = RootCertStore::empty();
        for certificate in certificates(&files.ca)? {
            authorities.add(certificate).map_err(|error| bad(&files.ca, &error.to_string()))?;
        }
        let chain = certificates(&files.cert)?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| bad(&files.key, &error.to_string()))?;
        Ok(Self { authorities: Arc::new(authorities), chain, key })
    }

    /// For listeners that only members and administrators may use. `protocol` is offered by ALPN, if given.
    pub fn server_for_members(&self, protocol: Option<&[u8]>) -> Result<Arc<ServerConfig>, Failure> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.authorities.clone(), provider())
            .build()
            .map_err(|error| mismatch(&error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| mismatch(&error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| mismatch(&error.to_string()))?;
        config.alpn_protocols = protocol.into_iter().map(<[u8]>::to_vec).collect();
        Ok(Arc::new(config))
    }

    /// For AMQP clients: no certificate is asked of them.
    pub fn server_for_clients(&self) -> Result<Arc<ServerConfig>, Failure> {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| mismatch(&error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| mismatch(&error.to_string()))?;
        Ok(Arc::new(config))
    }

    /// For connections to other members and to admin APIs: shows our certificate, and checks that the other side's is valid
    /// for the host that was dialled.
    pub fn client(&self) -> Result<Arc<ClientConfig>, Failure> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| mismatch(&error.to_string()))?
            .with_root_certificates(self.authorities.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| mismatch(&error.to_string()))?;
        Ok(Arc::new(config))
    }
}

/// Is the first of these certificates valid for any of the hosts? The chain itself was checked in the handshake.
pub fn is_for_any_host<'a>(chain: &[CertificateDer<'_>], mut hosts: impl Iterator<Item = &'a str>) -> bool {
    let Some(certificate) = chain.first().and_then(|first| ParsedCertificate::try_from(first).ok()) else {
        return false;
    };
    hosts.any(|host| {
        ServerName::try_from(host).is_ok_and(|name| rustls::client::verify_server_name(&certificate, &name).is_ok())
    })
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let list: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| bad(path, &error.to_string()))?;
    if list.is_empty() {
        return Err(bad(path, "there is no certificate in it"));
    }
    Ok(list)
}

fn bad(path: &Path, why: &str) -> Failure {
    Failure::new(
        ExitKind::Config,
        format!("cannot use the certificate file {}: {why}", path.display()),
        "check the path under `tls` in the configuration, or after --ca, --cert and --key, and that the file is PEM and readable \
         by this user",
    )
}

fn mismatch(why: &str) -> Failure {
    Failure::new(
        ExitKind::Config,
        format!("the certificate, its key and the authorities do not fit together: {why}"),
        "check the three files under `tls` in the configuration",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::certificates::Authority;

    #[test]
    fn a_certificate_is_for_the_hosts_in_it_and_for_names_under_its_wildcard_only() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path()).unwrap();
        let files = authority.issue("m", &["*.demo-nodes.ns.svc", "127.0.0.1"]).unwrap();
        let chain = Certificates::load(&files).unwrap().chain;
        let is_for = |host: &str| is_for_any_host(&chain, [host].into_iter());
        assert!(is_for("demo-0-0.demo-nodes.ns.svc") && is_for("127.0.0.1"));
        assert!(!is_for("demo-0-0.other.ns.svc") && !is_for("127.0.0.2") && !is_for("bad host"));
        assert!(!is_for_any_host(&[], ["127.0.0.1"].into_iter()));
    }

    #[test]
    fn a_missing_or_empty_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let files = Authority::load_or_create(dir.path()).unwrap().issue("m", &["localhost"]).unwrap();
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        for path in [dir.path().join("absent.pem"), empty] {
            let failure = Certificates::load(&TlsFiles { ca: path.clone(), ..files.clone() }).err().unwrap();
            assert!(failure.problem.contains(path.to_str().unwrap()), "{failure}");
        }
    }
}
