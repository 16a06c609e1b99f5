//! Certificates of clients: whose are valid, and which of them may come in.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use selvedge_config::{ClientCertificates, ClientMode, Pin};
use sha2::{Digest, Sha256};
use webpki::BorrowedCertRevocationList;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

use super::certificate::{Certificate, distinguished};
use super::counts::{HandshakeCounts, Refusal};
use super::{CertificateError, provider};

/// Whom clients' certificates are believed of: the authorities, and what they have revoked.
pub(super) struct Authorities {
    roots: RootCertStore,
    lists: Vec<CertificateRevocationListDer<'static>>,
    /// Of all of it: if anything changes, it does.
    pub(super) digest: [u8; 32],
    /// What ends when, in seconds since 1970.
    pub(super) ends: Vec<(String, i64)>,
}

impl Authorities {
    /// Reads them.
    pub(super) fn load(settings: &ClientCertificates) -> Result<Self, CertificateError> {
        let path = &settings.ca;
        let (mut roots, mut ends) = (RootCertStore::empty(), Vec::new());
        let mut digest = Sha256::new();
        for certificate in super::certificates_in(path)? {
            digest.update(&certificate);
            let facts = Certificate::of(&certificate);
            let facts = facts.map_err(|why| CertificateError::Malformed { path: path.clone(), why })?;
            ends.push((format!("the authority {} in {}", facts.subject, path.display()), facts.not_after));
            roots.add(certificate).map_err(|source| CertificateError::Authority { path: path.clone(), source })?;
        }
        let mut lists = Vec::new();
        if let Some(path) = &settings.crl {
            digest.update(b"lists");
            let malformed = |why: String| CertificateError::List { path: path.clone(), why };
            for list in CertificateRevocationListDer::pem_file_iter(path).map_err(super::unreadable(path))? {
                let list = list.map_err(super::unreadable(path))?;
                digest.update(&list);
                let (_, parsed) =
                    CertificateRevocationList::from_der(&list).map_err(|error| malformed(error.to_string()))?;
                // What the verifier cannot use is told now, and in which file it is.
                BorrowedCertRevocationList::from_der(&list).map_err(|error| malformed(error.to_string()))?;
                if let Some(next) = parsed.next_update() {
                    let issuer = distinguished(parsed.issuer());
                    ends.push((format!("the list of {issuer} in {}", path.display()), next.timestamp()));
                }
                lists.push(list);
            }
            if lists.is_empty() {
                return Err(malformed("there is none".into()));
            }
        }
        Ok(Self { roots, lists, digest: digest.finalize().into(), ends })
    }
}

/// What verifies clients as the configuration says, by these authorities.
pub(super) fn verifier(
    settings: &ClientCertificates,
    authorities: Authorities,
    counts: Arc<HandshakeCounts>,
) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities.roots), provider());
    let builder = builder.with_crls(authorities.lists);
    let builder = match settings.mode {
        ClientMode::Request => builder.allow_unauthenticated(),
        ClientMode::Require => builder,
    };
    let by_authority =
        builder.build().map_err(|source| CertificateError::Setup(rustls::Error::General(source.to_string())))?;
    Ok(Arc::new(Verifier { by_authority, pins: settings.pins.clone(), counts }))
}

/// Takes the certificates that the authorities vouch for, if their keys are known.
#[derive(Debug)]
struct Verifier {
    by_authority: Arc<dyn ClientCertVerifier>,
    /// None: any key.
    pins: Vec<Pin>,
    counts: Arc<HandshakeCounts>,
}

impl Verifier {
    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.by_authority.verify_client_cert(certificate, intermediates, now)?;
        if self.pins.is_empty() {
            return Ok(verified);
        }
        let parsed = webpki::EndEntityCert::try_from(certificate)
            .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
        let key = Pin(Sha256::digest(&*parsed.subject_public_key_info()).into());
        if self.pins.contains(&key) {
            return Ok(verified);
        }
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure))
    }
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        self.by_authority.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.by_authority.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.by_authority.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verdict = self.verify(end_entity, intermediates, now);
        verdict.inspect_err(|error| self.counts.refused(Refusal::of(error)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authority.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_authority.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_authority.supported_verify_schemes()
    }
}
