//! TLS clients that shake hands as a test wants them to, and authorities that issue certificates.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    RevokedCertParams, SerialNumber,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::soon;

/// A client that trusts anybody.
pub struct Caller {
    /// The name it asks for; without SNI if empty.
    pub name: String,
    /// What it offers to speak.
    pub alpn: Vec<Vec<u8>>,
    /// The versions it speaks.
    pub versions: Vec<&'static SupportedProtocolVersion>,
    /// The signatures it can verify; empty = all.
    pub schemes: Vec<SignatureScheme>,
    /// What it shows when asked for a certificate.
    pub identity: Option<Issued>,
}

impl Caller {
    /// A usual client that asks for this name.
    #[must_use]
    pub fn new(name: &str, alpn: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            alpn: alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect(),
            versions: rustls::ALL_VERSIONS.to_vec(),
            schemes: Vec::new(),
            identity: None,
        }
    }

    /// The same, showing this certificate.
    #[must_use]
    pub fn showing(mut self, identity: &Issued) -> Self {
        self.identity = Some(identity.clone());
        self
    }

    /// Connects and shakes hands.
    ///
    /// # Panics
    /// When that fails.
    pub async fn call(&self, address: SocketAddr) -> TlsStream<TcpStream> {
        self.try_call(address).await.expect("handshake")
    }

    /// Connects and tries to shake hands.
    ///
    /// # Errors
    /// The handshake failed.
    ///
    /// # Panics
    /// When nobody listens, or the client makes no sense.
    pub async fn try_call(&self, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        self.call_with(&self.connector(), address).await
    }

    /// What connects as this client does, and remembers its sessions.
    ///
    /// # Panics
    /// When the client makes no sense.
    #[must_use]
    pub fn connector(&self) -> TlsConnector {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let anybody = Anybody { provider: Arc::clone(&provider), schemes: self.schemes.clone() };
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&self.versions)
            .expect("versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(anybody));
        let mut config = match &self.identity {
            None => config.with_no_client_auth(),
            Some(issued) => config.with_client_auth_cert(issued.shown(), issued.private()).expect("an identity"),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        config.enable_sni = !self.name.is_empty();
        TlsConnector::from(Arc::new(config))
    }

    /// Connects and tries to shake hands, with the memory of this connector.
    ///
    /// # Errors
    /// The handshake failed.
    ///
    /// # Panics
    /// When nobody listens.
    pub async fn call_with(&self, connector: &TlsConnector, address: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let name = if self.name.is_empty() { "localhost" } else { &self.name };
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let stream = soon("connect", TcpStream::connect(address)).await.expect("connects");
        stream.set_nodelay(true).expect("nodelay");
        soon("handshake", connector.connect(name, stream)).await
    }
}

/// The alert that ended a connection, if one did.
#[must_use]
pub fn alert(error: &io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// The certificate a server has shown.
///
/// # Panics
/// When it has shown none.
#[must_use]
pub fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].clone().into_owned()
}

/// Somebody who issues certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, in PEM.
    pub pem: String,
}

/// A certificate and its key.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The certificate, in PEM.
    pub pem: String,
    /// The key, in PEM.
    pub key: String,
    private: Vec<u8>,
    /// The public key, as a SubjectPublicKeyInfo.
    pub public: Vec<u8>,
    /// What is shown behind it: the authorities between.
    pub chain: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// One of this name.
    ///
    /// # Panics
    /// When certificates cannot be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("an authority").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for these names.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn issue(&self, names: &[&str]) -> Issued {
        self.issue_with(names, &rcgen::PKCS_ECDSA_P256_SHA256, |_| ())
    }

    /// A certificate for these names, with this kind of key, and whatever else it is to say.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn issue_with(
        &self,
        names: &[&str],
        kind: &'static rcgen::SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        change(&mut params);
        let key = KeyPair::generate_for(kind).expect("a key");
        let made = params.signed_by(&key, &self.issuer).expect("a certificate");
        Issued {
            der: made.der().clone(),
            pem: made.pem(),
            key: key.serialize_pem(),
            private: key.serialize_der(),
            chain: Vec::new(),
            public: rcgen::PublicKeyData::subject_public_key_info(&key),
        }
    }
}

impl Authority {
    /// An authority below this one, and its certificate.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn below(&self, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.signed_by(&key, &self.issuer).expect("an authority").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A list of the certificates with these serial numbers, in PEM, which is to be replaced in that year.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn revoked(&self, serials: &[u8], year: i32) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&[*serial]),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from_slice(&[1]),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("a list").pem().expect("in PEM")
    }
}

impl Issued {
    /// The same, shown with the certificate of the authority that has issued it.
    #[must_use]
    pub fn behind(mut self, authority: &Authority) -> Self {
        self.chain.extend(CertificateDer::from_pem_slice(authority.pem.as_bytes()));
        self
    }

    fn shown(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.der).chain(&self.chain).cloned().collect()
    }

    fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.private.clone()).expect("a key")
    }

    /// Writes certificate and key into a folder; says how the configuration names them.
    ///
    /// # Panics
    /// When they cannot be written.
    #[must_use]
    pub fn write(&self, folder: &Path, name: &str) -> String {
        let [cert, key] = [("pem", &self.pem), ("key", &self.key)].map(|(kind, text)| -> PathBuf {
            let path = folder.join(format!("{name}.{kind}"));
            std::fs::write(&path, text).expect("written");
            path
        });
        format!("{{ cert: \"{}\", key: \"{}\" }}", cert.display(), key.display())
    }
}

#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        match self.schemes.is_empty() {
            true => self.provider.signature_verification_algorithms.supported_schemes(),
            false => self.schemes.clone(),
        }
    }
}
