//! Certificates of TLS listeners: from files, chosen by SNI and replaced by a reload, or self-signed for development.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use selvedge_config::{Certificates, Protocol, Tls, TlsVersion};
use webpki::EndEntityCert;

/// Why a listener has no usable certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read, or is no PEM of the expected kind.
    #[error("{path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The file holds no certificate.
    #[error("{0} holds no certificate")]
    Empty(PathBuf),
    /// Key and certificate do not fit, or the key is of a kind that cannot sign.
    #[error("{path} does not go with its certificate")]
    Key {
        /// The key file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The development certificate could not be made.
    #[error("the development certificate cannot be made")]
    Development(#[source] rcgen::Error),
    /// TLS itself could not be set up.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// The certificates of one listener; the first is the default.
pub struct CertificateStore {
    current: ArcSwap<Vec<Arc<CertifiedKey>>>,
}

impl CertificateStore {
    /// Loads what the configuration names. `names` are what a development certificate is made out to.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn load(certificates: &Certificates, names: &[String]) -> Result<Arc<Self>, CertificateError> {
        Ok(Arc::new(Self { current: ArcSwap::from_pointee(load(certificates, names)?) }))
    }

    /// Loads again, to be swapped in once everything else of a reload is in order. A development certificate is kept.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn renew(&self, certificates: &Certificates) -> Result<Renewed, CertificateError> {
        match certificates {
            Certificates::Development => Ok(Renewed(self.current.load_full())),
            Certificates::Files(_) => Ok(Renewed(Arc::new(load(certificates, &[])?))),
        }
    }

    /// Puts renewed certificates in force; connections that exist keep theirs.
    pub fn swap(&self, renewed: Renewed) {
        self.current.store(renewed.0);
    }
}

/// Certificates that are loaded and checked, but not in force.
pub struct Renewed(Arc<Vec<Arc<CertifiedKey>>>);

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateStore").field("certificates", &self.current.load().len()).finish()
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let certificates = self.current.load();
        let wanted = hello.server_name().and_then(|name| ServerName::try_from(name.to_owned()).ok());
        let fits = |key: &&Arc<CertifiedKey>| {
            let (Some(wanted), Some(certificate)) = (&wanted, key.cert.first()) else { return false };
            EndEntityCert::try_from(certificate).is_ok_and(|end| end.verify_is_valid_for_subject_name(wanted).is_ok())
        };
        certificates.iter().find(fits).or_else(|| certificates.first()).cloned()
    }
}

/// The TLS side of a listener.
///
/// # Errors
/// The version list is refused by rustls.
pub fn server_config(
    tls: &Tls,
    protocols: &[Protocol],
    store: Arc<CertificateStore>,
) -> Result<Arc<ServerConfig>, CertificateError> {
    let versions: &[&rustls::SupportedProtocolVersion] = match tls.min {
        TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(CertificateError::Setup)?
        .with_no_client_auth()
        .with_cert_resolver(store);
    for protocol in [Protocol::H2, Protocol::H1] {
        if protocols.contains(&protocol) {
            config.alpn_protocols.push(if protocol == Protocol::H2 { b"h2".to_vec() } else { b"http/1.1".to_vec() });
        }
    }
    Ok(Arc::new(config))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn load(certificates: &Certificates, names: &[String]) -> Result<Vec<Arc<CertifiedKey>>, CertificateError> {
    match certificates {
        Certificates::Development => Ok(vec![Arc::new(self_signed(names)?)]),
        Certificates::Files(files) => {
            files.iter().map(|pair| from_files(&pair.cert, &pair.key).map(Arc::new)).collect()
        }
    }
}

fn from_files(cert: &Path, key: &Path) -> Result<CertifiedKey, CertificateError> {
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| CertificateError::Read { path, source }
    };
    let chain =
        CertificateDer::pem_file_iter(cert).map_err(read(cert))?.collect::<Result<Vec<_>, _>>().map_err(read(cert))?;
    if chain.is_empty() {
        return Err(CertificateError::Empty(cert.to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(read(key))?;
    CertifiedKey::from_der(chain, private, &provider())
        .map_err(|source| CertificateError::Key { path: key.to_owned(), source })
}

fn self_signed(names: &[String]) -> Result<CertifiedKey, CertificateError> {
    let made = rcgen::generate_simple_self_signed(names.to_vec()).map_err(CertificateError::Development)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider()).map_err(CertificateError::Setup)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_development_certificate_is_made_out_to_its_names() {
        let key = self_signed(&["localhost".into(), "127.0.0.1".into()]).unwrap();
        let end = EndEntityCert::try_from(&key.cert[0]).unwrap();
        for name in ["localhost", "127.0.0.1"] {
            end.verify_is_valid_for_subject_name(&ServerName::try_from(name).unwrap()).unwrap();
        }
        end.verify_is_valid_for_subject_name(&ServerName::try_from("example.com").unwrap()).unwrap_err();
    }
}
