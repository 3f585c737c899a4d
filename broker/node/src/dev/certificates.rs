//! Certificates for a cluster on one machine: an authority of its own in the data directory, and leaves made from it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use crate::config::TlsFiles;
use crate::failure::{ExitKind, Failure};

/// A certificate authority whose files are in a directory.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Takes the authority in `dir`, or makes one there.
    pub fn load_or_create(dir: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(dir).map_err(|error| cannot(dir, &error))?;
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let issuer = if cert_path.exists() && key_path.exists() {
            let key = std::fs::read_to_string(&key_path).map_err(|error| cannot(&key_path, &error))?;
            let key = KeyPair::from_pem(&key).map_err(|error| cannot(&key_path, &error))?;
            Issuer::new(authority_params().map_err(|error| cannot(dir, &error))?, key)
        } else {
            let make = || -> Result<_, rcgen::Error> {
                let (key, params) = (KeyPair::generate()?, authority_params()?);
                let pem = params.self_signed(&key)?.pem();
                Ok((key, params, pem))
            };
            let (key, params, pem) = make().map_err(|error| cannot(dir, &error))?;
            write_private(&key_path, &key.serialize_pem())?;
            std::fs::write(&cert_path, pem).map_err(|error| cannot(&cert_path, &error))?;
            Issuer::new(params, key)
        };
        Ok(Self { dir: dir.to_path_buf(), issuer })
    }

    /// Writes a fresh certificate and key for `hosts` (names and addresses) as `NAME.crt` and `NAME.key`.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Result<TlsFiles, Failure> {
        let files = TlsFiles {
            ca: self.dir.join("ca.crt"),
            cert: self.dir.join(format!("{name}.crt")),
            key: self.dir.join(format!("{name}.key")),
        };
        let make = || -> Result<(String, String), rcgen::Error> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(hosts.iter().map(ToString::to_string).collect::<Vec<_>>())?;
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
        };
        let (cert, key) = make().map_err(|error| cannot(&files.cert, &error))?;
        write_private(&files.key, &key)?;
        std::fs::write(&files.cert, cert).map_err(|error| cannot(&files.cert, &error))?;
        Ok(files)
    }
}

/// The same at each start: what leaves take from their issuer is its name and its key.
fn authority_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, "holdfast-broker dev");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn write_private(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| cannot(path, &error))
}

fn cannot(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        ExitKind::Io,
        format!("cannot make or read certificates at {}: {error}", path.display()),
        "check that the data directory can be written",
    )
}
