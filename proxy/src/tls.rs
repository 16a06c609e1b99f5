//! TLS towards clients: certificates from files, chosen by SNI and replaced by a reload, or self-signed for development.

mod certificate;

mod clients;

mod client;

mod counts;

mod hello;

mod names;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ServerConfig, SignatureScheme};
use selvedge_config::{CertificateFiles, Certificates, Fault, Protocol, Tls, TlsVersion, UnknownNames};

pub use self::certificate::Certificate;
pub(crate) use self::certificate::hex;
pub(crate) use self::client::{CLIENT_CERT, CLIENT_CERT_CHAIN, Handshake, Shown};
use self::clients::Authorities;
pub(crate) use self::counts::{End, HandshakeCounts};
pub(crate) use self::hello::{greet, greet_any};
use self::names::{Names, Overlap};

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
    /// What the file holds cannot be read as a certificate.
    #[error("{path} holds no valid certificate: {why}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Key and certificate do not fit, or the key is of a kind that cannot sign.
    #[error("{path} does not go with its certificate")]
    Key {
        /// The key file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// An authority for clients cannot be used as such.
    #[error("an authority in {path} is not valid")]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A revocation list cannot be used.
    #[error("{path} holds no valid revocation list: {why}")]
    List {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The development certificate could not be made.
    #[error("the development certificate cannot be made")]
    Development(#[source] rcgen::Error),
    /// TLS itself could not be set up.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// A certificate that can be shown.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Where it was read from; `None` = it was made for development.
    pub(crate) file: Option<PathBuf>,
    pub(crate) facts: Certificate,
    key: Arc<CertifiedKey>,
}

/// The certificates of one listener, as they are in force.
struct Set {
    /// In the order they are written.
    all: Vec<Loaded>,
    names: Names,
    overlaps: Vec<Overlap>,
}

impl Set {
    fn of(all: Vec<Loaded>) -> Self {
        let (names, overlaps) = Names::of(&all);
        Self { all, names, overlaps }
    }

    /// The certificate for a name, or without one; of several kinds of keys the first that the client can verify.
    fn choose(&self, name: Option<&str>, offered: &[SignatureScheme], unknown: UnknownNames) -> Option<&Loaded> {
        let mut places = name.and_then(|name| self.names.find(name));
        if places.is_none() && unknown == UnknownNames::First {
            // The first, and what is for the same name with another kind of key.
            let title = self.all.first()?.facts.dns.first();
            places = title.and_then(|title| self.names.written(title)).filter(|places| places.first() == Some(&0));
            places = places.or(Some(&[0][..]));
        }
        let mut candidates = places?.iter().filter_map(|place| self.all.get(*place)).peekable();
        let first = *candidates.peek()?;
        // Mostly there is one: nothing to ask.
        if places?.len() == 1 {
            return Some(first);
        }
        candidates.find(|loaded| loaded.key.key.choose_scheme(offered).is_some()).or(Some(first))
    }

    /// What is odd about them, though they can be used.
    fn oddities(&self, now: i64) -> Vec<String> {
        let called = |loaded: &Loaded| match &loaded.file {
            Some(file) => file.display().to_string(),
            None => "the development certificate".into(),
        };
        let mut oddities = Vec::new();
        for (place, loaded) in self.all.iter().enumerate() {
            let called = called(loaded);
            if loaded.facts.not_after < now {
                oddities.push(format!("{called} has expired on {}", when(loaded.facts.not_after)));
            }
            if loaded.facts.not_before > now {
                oddities.push(format!("{called} is not valid before {}", when(loaded.facts.not_before)));
            }
            if loaded.facts.dns.is_empty() && place > 0 {
                oddities.push(format!("{called} is for no DNS name: it is never shown"));
            }
        }
        for overlap in &self.overlaps {
            let [hidden, shown] = [overlap.hidden, overlap.shown].map(|place| self.all.get(place).map(called));
            if let (Some(hidden), Some(shown)) = (hidden, shown) {
                oddities
                    .push(format!("{hidden} is not shown for {}: {shown} is, which stands before it", overlap.name));
            }
        }
        oddities
    }
}

/// A time in seconds since 1970 (RFC 3339), as far as that can be written.
pub(crate) fn when(seconds: i64) -> String {
    const LAST: u64 = 253_402_300_799; // of the year 9999
    let seconds = u64::try_from(seconds).unwrap_or(0).min(LAST);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + std::time::Duration::from_secs(seconds)).to_string()
}

/// Now, in seconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The certificates of one listener, and for whom they are.
pub struct CertificateStore {
    current: ArcSwap<Set>,
    unknown: UnknownNames,
    counts: Arc<HandshakeCounts>,
}

impl CertificateStore {
    fn load(tls: &Tls, names: &[String], counts: Arc<HandshakeCounts>) -> Result<Arc<Self>, Vec<Fault>> {
        let set = Set::of(load(tls, names)?);
        Ok(Arc::new(Self { current: ArcSwap::from_pointee(set), unknown: tls.unknown_names, counts }))
    }

    /// Loads again, to be swapped in once everything else of a reload is in order. A development certificate is kept.
    ///
    /// # Errors
    /// What cannot be used, each at its place.
    pub fn renew(&self, tls: &Tls) -> Result<Renewed, Vec<Fault>> {
        match tls.certificates {
            Certificates::Development => Ok(Renewed(self.current.load_full())),
            Certificates::Files(_) => Ok(Renewed(Arc::new(Set::of(load(tls, &[])?)))),
        }
    }

    /// Puts renewed certificates in force; connections that exist keep theirs.
    pub fn swap(&self, renewed: Renewed) {
        self.current.store(renewed.0);
    }

    /// The certificates in force, in the order they are written.
    pub(crate) fn each(&self, mut visit: impl FnMut(&Loaded)) {
        self.current.load().all.iter().for_each(&mut visit);
    }

    /// Whether some names are refused, so that a handshake has to be looked at before it begins.
    pub(crate) fn refuses(&self) -> bool {
        self.unknown == UnknownNames::Refuse
    }

    /// The alert that a client is refused with that asks for this name.
    fn refusal(&self, name: Option<&str>) -> Option<AlertDescription> {
        if !self.refuses() {
            return None;
        }
        let Some(name) = name else { return Some(AlertDescription::MissingExtension) }; // RFC 8446, 9.2
        match self.current.load().names.find(name) {
            Some(_) => None,
            None => Some(AlertDescription::UnrecognisedName), // RFC 6066, 3
        }
    }
}

/// Certificates that are loaded and checked, but not in force.
pub struct Renewed(Arc<Set>);

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateStore").field("certificates", &self.current.load().all.len()).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let set = self.current.load();
        set.choose(hello.server_name(), hello.signature_schemes(), self.unknown).map(|loaded| Arc::clone(&loaded.key))
    }
}

/// The TLS side of a listener.
#[derive(Clone)]
pub struct ListenerTls {
    /// What connections are set up with.
    pub config: Arc<ServerConfig>,
    /// Its certificates.
    pub certificates: Arc<CertificateStore>,
    /// The digest of the authorities for clients' certificates, where they are asked for any.
    authorities: Option<[u8; 32]>,
    /// Of those: what ends when.
    ends: Arc<[(String, i64)]>,
}

impl ListenerTls {
    /// Loads what the configuration names. `names` are what a development certificate is made out to.
    ///
    /// # Errors
    /// What cannot be used, each at its place.
    pub(crate) fn load(
        tls: &Tls,
        protocols: &[Protocol],
        names: &[String],
        counts: &Arc<HandshakeCounts>,
    ) -> Result<Self, Vec<Fault>> {
        let fault = |position, error: CertificateError| Fault::at(position, crate::error_chain(&error));
        let authorities = tls
            .clients
            .as_ref()
            .map(|clients| Authorities::load(clients).map_err(|error| vec![fault(&clients.position, error)]));
        let (certificates, authorities) =
            match (CertificateStore::load(tls, names, Arc::clone(counts)), authorities.transpose()) {
                (Ok(certificates), Ok(authorities)) => (certificates, authorities),
                (one, other) => return Err(one.err().into_iter().chain(other.err()).flatten().collect()),
            };
        let digest = authorities.as_ref().map(|authorities| authorities.digest);
        let ends = authorities.iter().flat_map(|authorities| authorities.ends.iter().cloned()).collect();
        let config = server_config(tls, protocols, Arc::clone(&certificates), authorities)
            .map_err(|error| vec![fault(&tls.position, error)])?;
        Ok(Self { config, certificates, authorities: digest, ends })
    }

    /// What an operator should know about it, though it is served so.
    pub(crate) fn oddities(&self) -> Vec<String> {
        let now = now();
        let mut oddities = self.certificates.current.load().oddities(now);
        let ended = self.ends.iter().filter(|(_, end)| *end < now);
        oddities
            .extend(ended.map(|(what, end)| format!("{what} has expired on {}, and holds all the same", when(*end))));
        oddities
    }

    /// Whether it trusts the authorities that are in the file now.
    pub(crate) fn trusts_as(&self, tls: &Tls) -> bool {
        let now = tls.clients.as_ref().map(|clients| Authorities::load(clients).map(|now| now.digest));
        match (self.authorities, now) {
            (None, None) => true,
            (Some(then), Some(Ok(now))) => then == now,
            _ => false,
        }
    }
}

fn server_config(
    tls: &Tls,
    protocols: &[Protocol],
    store: Arc<CertificateStore>,
    authorities: Option<Authorities>,
) -> Result<Arc<ServerConfig>, CertificateError> {
    let versions: &[&rustls::SupportedProtocolVersion] = match tls.min {
        TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
    };
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(CertificateError::Setup)?;
    let mut config = match tls.clients.as_ref().zip(authorities) {
        None => {
            let mut config = config.with_no_client_auth().with_cert_resolver(store);
            // Clients keep their sessions themselves, so that any number of them can come back without a whole handshake.
            config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(CertificateError::Setup)?;
            config
        }
        Some((clients, authorities)) => {
            let counts = Arc::clone(&store.counts);
            let verifier = clients::verifier(clients, authorities, counts)?;
            let mut config = config.with_client_cert_verifier(verifier).with_cert_resolver(store);
            // A resumed session is not verified again: a certificate would be good for as long as its session.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            config
        }
    };
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

fn load(tls: &Tls, names: &[String]) -> Result<Vec<Loaded>, Vec<Fault>> {
    let at = |position, error: &CertificateError| Fault::at(position, crate::error_chain(error));
    match &tls.certificates {
        Certificates::Development => {
            let made = self_signed(names).and_then(|key| loaded(None, key));
            Ok(vec![made.map_err(|error| vec![at(&tls.position, &error)])?])
        }
        Certificates::Files(files) => {
            let (mut all, mut faults) = (Vec::new(), Vec::new());
            for pair in files {
                match pair_of(pair) {
                    Ok(one) => all.push(one),
                    Err(error) => faults.push(at(&pair.position, &error)),
                }
            }
            if faults.is_empty() { Ok(all) } else { Err(faults) }
        }
    }
}

fn pair_of(pair: &CertificateFiles) -> Result<Loaded, CertificateError> {
    loaded(Some(&pair.cert), from_files(&pair.cert, &pair.key)?)
}

fn loaded(file: Option<&Path>, key: CertifiedKey) -> Result<Loaded, CertificateError> {
    let path = file.unwrap_or(Path::new("the development certificate"));
    let first = key.cert.first().ok_or_else(|| CertificateError::Empty(path.to_owned()))?;
    let facts = Certificate::of(first).map_err(|why| CertificateError::Malformed { path: path.to_owned(), why })?;
    Ok(Loaded { file: file.map(Path::to_owned), facts, key: Arc::new(key) })
}

fn from_files(cert: &Path, key: &Path) -> Result<CertifiedKey, CertificateError> {
    let chain = certificates_in(cert)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key))?;
    CertifiedKey::from_der(chain, private, &provider())
        .map_err(|source| CertificateError::Key { path: key.to_owned(), source })
}

fn certificates_in(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let all = CertificateDer::pem_file_iter(path).map_err(unreadable(path))?;
    let all = all.collect::<Result<Vec<_>, _>>().map_err(unreadable(path))?;
    if all.is_empty() { Err(CertificateError::Empty(path.to_owned())) } else { Ok(all) }
}

fn unreadable(path: &Path) -> impl FnOnce(rustls::pki_types::pem::Error) -> CertificateError {
    let path = path.to_owned();
    move |source| CertificateError::Read { path, source }
}

fn self_signed(names: &[String]) -> Result<CertifiedKey, CertificateError> {
    let made = rcgen::generate_simple_self_signed(names.to_vec()).map_err(CertificateError::Development)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider()).map_err(CertificateError::Setup)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;

    /// A certificate for these names, with a key of this kind.
    pub(super) fn loaded(names: &[&str], kind: &'static rcgen::SignatureAlgorithm) -> Loaded {
        let key = rcgen::KeyPair::generate_for(kind).unwrap();
        let params = rcgen::CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let made = params.unwrap().self_signed(&key).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = CertifiedKey::from_der(vec![made.der().clone()], key, &provider()).unwrap();
        super::loaded(Some(Path::new(names.first().unwrap_or(&"none"))), key).unwrap()
    }

    #[test]
    fn a_development_certificate_is_made_out_to_its_names() {
        let key = self_signed(&["localhost".into(), "127.0.0.1".into()]).unwrap();
        let end = webpki::EndEntityCert::try_from(&key.cert[0]).unwrap();
        for name in ["localhost", "127.0.0.1"] {
            end.verify_is_valid_for_subject_name(&ServerName::try_from(name).unwrap()).unwrap();
        }
        end.verify_is_valid_for_subject_name(&ServerName::try_from("example.com").unwrap()).unwrap_err();
    }

    #[test]
    fn of_several_kinds_of_keys_the_first_is_shown_that_the_client_can_verify() {
        let (ec, ed) = (&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ED25519);
        let set = Set::of(vec![loaded(&["a.test"], ed), loaded(&["b.test"], ec), loaded(&["b.test", "a.test"], ed)]);
        let (both, only_ec) = (
            &[SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256][..],
            &[SignatureScheme::ECDSA_NISTP256_SHA256][..],
        );
        let place = |name, offered, unknown| {
            let found = set.choose(name, offered, unknown)?;
            set.all.iter().position(|loaded| std::ptr::eq(loaded, found))
        };
        use UnknownNames::{First, Refuse};
        for (name, offered, unknown, expected) in [
            (Some("b.test"), both, First, Some(1)),
            (Some("b.test"), &[SignatureScheme::ED25519][..], First, Some(2)),
            (Some("b.test"), only_ec, Refuse, Some(1)),
            (Some("a.test"), both, First, Some(0)),
            (Some("a.test"), only_ec, First, Some(0)), // it will fail, and say so
            (Some("c.test"), both, First, Some(0)),
            (None, both, First, Some(0)),
            (Some("c.test"), both, Refuse, None),
            (None, both, Refuse, None),
        ] {
            assert_eq!(place(name, offered, unknown), expected, "{name:?} {offered:?} {unknown:?}");
        }
    }

    #[test]
    fn what_is_odd_is_told() {
        let ec = &rcgen::PKCS_ECDSA_P256_SHA256;
        let set = Set::of(vec![loaded(&["a.test"], ec), loaded(&["*.b.test", "a.test"], ec), loaded(&[], ec)]);
        let end = set.all[0].facts.not_after;
        assert_eq!(
            set.oddities(end),
            [
                "none is for no DNS name: it is never shown",
                "*.b.test is not shown for a.test: a.test is, which stands before it"
            ]
        );
        let later = set.oddities(end + 1);
        assert_eq!(
            later.iter().filter(|oddity| oddity.contains(" has expired on 4096-01-01T00:00:00Z")).count(),
            3,
            "{later:?}"
        );
        let before = set.oddities(set.all[0].facts.not_before - 1);
        assert_eq!(
            before.iter().filter(|oddity| oddity.contains(" is not valid before 1975-01-01T00:00:00Z")).count(),
            3,
            "{before:?}"
        );
    }
}
