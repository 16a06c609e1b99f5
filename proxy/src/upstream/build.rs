//! From the configuration as written to upstreams: certificates are read and names looked up.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pingora::protocols::tls::CaType;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use selvedge_config::{Config, Dns, EndpointAddr, Fault, PreferBy, Servers, UpstreamProtocol};
use tracing::warn;

use super::keeper::Dial;
use super::names::{Name, Unresolved};
use super::{Keeper, PeerTls, Rules, Source, Speech, Upstream, Upstreams, balance};

/// Nodes of the cluster, as an upstream.
pub(crate) struct Circle {
    pub(crate) name: &'static str,
    pub(crate) upstream: selvedge_config::Upstream,
    /// What the endpoints are called, in their order.
    pub(crate) nodes: Vec<Arc<str>>,
}

/// Every upstream of a configuration. Blocks while names are looked up that are not known yet.
///
/// A name that does not resolve is a warning: the upstream does without it, and asks again. Only an upstream of which nothing at all
/// resolves, because a name is said not to exist or to have no address, is at fault: most likely it is a slip of the pen. When nobody can be
/// asked, the node starts all the same, and requests are answered 503 until names resolve.
pub(crate) fn all(
    config: &Config,
    circles: &[Circle],
    keeper: &Arc<Keeper>,
    demo: impl Fn() -> std::io::Result<SocketAddr>,
    files: &mut Vec<PathBuf>,
    faults: &mut Vec<Fault>,
) -> Upstreams {
    let mut shared: HashMap<&Dns, Arc<Dns>> = HashMap::new();
    let mut drafts = Vec::new();
    let written = config.upstreams.iter().map(|(name, upstream)| (name.as_str(), upstream, &[][..]));
    let circles = circles.iter().map(|circle| (circle.name, &circle.upstream, circle.nodes.as_slice()));
    for (name, upstream, nodes) in written.chain(circles) {
        let dns = Arc::clone(shared.entry(&upstream.dns).or_insert_with(|| Arc::new(upstream.dns.clone())));
        let sources = match sources(upstream, nodes, &dns, &demo) {
            Ok(sources) => sources,
            Err(error) => {
                faults.push(Fault::at(&upstream.position, format!("the demo origin does not start: {error}")));
                continue;
            }
        };
        let nearest = upstream.prefer.as_ref().is_some_and(|prefer| prefer.by == PreferBy::Nearest);
        if nearest && config.geo.is_none() {
            faults.push(Fault::at(&upstream.position, "`prefer: { by: nearest }` needs `geo`, which is not written"));
        }
        match speech(upstream, keeper.dial(name), files) {
            Ok(speech) => drafts.push((name, upstream, speech, sources)),
            Err(message) => faults.push(Fault::at(&upstream.position, message)),
        }
    }

    let offline = keeper.dial("").is_some();
    let named = drafts.iter().flat_map(|(.., sources)| sources.iter().filter_map(|source| source.name.clone()));
    let unresolved = match keeper.look_up(named.collect()).and_then(|unresolved| {
        let works = drafts.iter().any(|(_, upstream, _, sources)| {
            upstream.health_check.is_some() || sources.iter().any(|source| source.name.is_some())
        });
        if works && !offline { keeper.handle().map(|_| unresolved) } else { Ok(unresolved) }
    }) {
        Ok(unresolved) => unresolved,
        Err(error) => {
            if let Some((_, upstream, ..)) = drafts.first() {
                faults.push(Fault::at(&upstream.position, format!("the upstreams' thread does not start: {error}")));
            }
            return Upstreams::default();
        }
    };

    let mut upstreams = Upstreams::default();
    for (name, upstream, speech, sources) in drafts {
        let lost = lost(upstream, &sources, &unresolved);
        let nothing = lost.len() == sources.len();
        for (fault, definite) in lost {
            if nothing && definite {
                faults.push(fault);
            } else {
                warn!(upstream = %name, why = %fault.message, "an endpoint is left out until it resolves");
            }
        }
        let mut rules = Rules::of(name, upstream);
        if offline {
            // Nobody asks endpoints how they are, and what one request met is not for the next.
            (rules.health, rules.outlier) = (None, None);
        }
        let is_circle = sources.iter().any(|source| source.node.is_some());
        let made = Upstream::new(rules, speech, sources, keeper);
        if is_circle { upstreams.insert_circle(made) } else { upstreams.insert(made) }
    }
    upstreams
}

fn sources(
    upstream: &selvedge_config::Upstream,
    nodes: &[Arc<str>],
    dns: &Arc<Dns>,
    demo: impl Fn() -> std::io::Result<SocketAddr>,
) -> std::io::Result<Vec<Source>> {
    match &upstream.servers {
        Servers::Builtin(selvedge_config::Builtin::Demo) => {
            let place = Arc::default();
            Ok(vec![Source { written: EndpointAddr::Ip(demo()?), weight: 1, place, name: None, node: None }])
        }
        Servers::Endpoints(endpoints) => Ok(endpoints
            .iter()
            .enumerate()
            .map(|(index, endpoint)| Source {
                node: nodes.get(index).cloned(),
                written: endpoint.addr.clone(),
                weight: endpoint.weight,
                place: Arc::new(endpoint.place.clone()),
                name: match &endpoint.addr {
                    EndpointAddr::Host { host: name, .. } | EndpointAddr::Srv { name } => Some(Name {
                        host: name.as_str().into(),
                        service: matches!(endpoint.addr, EndpointAddr::Srv { .. }),
                        dns: Arc::clone(dns),
                    }),
                    EndpointAddr::Ip(_) | EndpointAddr::Unix(_) => None,
                },
            })
            .collect()),
    }
}

/// A fault for each source that does not resolve, and whether that is certain.
fn lost(
    upstream: &selvedge_config::Upstream,
    sources: &[Source],
    unresolved: &HashMap<Name, Unresolved>,
) -> Vec<(Fault, bool)> {
    let Servers::Endpoints(endpoints) = &upstream.servers else { return Vec::new() };
    let named = endpoints.iter().zip(sources);
    named
        .filter_map(|(endpoint, source)| {
            let name = source.name.as_ref()?;
            let why = unresolved.get(name)?;
            let message = format!("{} does not resolve: {}", name.host, why.why);
            Some((Fault::at(&endpoint.position, message), why.definite))
        })
        .collect()
}

fn speech(
    upstream: &selvedge_config::Upstream,
    dial: Option<Dial>,
    files: &mut Vec<PathBuf>,
) -> Result<Speech, String> {
    let http2 = upstream.protocol == UpstreamProtocol::H2;
    let Some(tls) = &upstream.tls else { return Ok(Speech { tls: None, http2, dial }) };
    let ca = tls.ca.as_deref().map(|path| certificates(path, files)).transpose()?;
    let trust =
        ca.iter().flatten().fold(0, |trust, certificate| balance::key::mix(trust ^ balance::key::hash(certificate)));
    let client = match tls.cert.as_deref().zip(tls.key.as_deref()) {
        Some((cert, key)) => Some(client_certificate(cert, key, files)?),
        None => None,
    };
    let tls = PeerTls { sni: tls.sni.clone(), ca: ca.map(authorities).transpose()?, client, trust, verify: tls.verify };
    Ok(Speech { tls: Some(tls), http2, dial })
}

fn certificates(path: &Path, files: &mut Vec<PathBuf>) -> Result<Vec<CertificateDer<'static>>, String> {
    files.push(path.to_owned());
    let unreadable = |error| format!("{}: {error}", path.display());
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect();
    let certificates = certificates.map_err(unreadable)?;
    if certificates.is_empty() { Err(format!("{} holds no certificate", path.display())) } else { Ok(certificates) }
}

fn authorities(certificates: Vec<CertificateDer<'static>>) -> Result<Arc<CaType>, String> {
    let mut roots = rustls::RootCertStore::empty();
    let mut authorities = Vec::new();
    for certificate in certificates {
        // Checked here because the wrapper parses without a way to fail.
        roots.add(certificate.clone()).map_err(|error| format!("an authority in `tls.ca` is not valid: {error}"))?;
        authorities.push(WrappedX509::new(certificate.to_vec(), parse_x509));
    }
    Ok(authorities.into())
}

fn client_certificate(cert: &Path, key: &Path, files: &mut Vec<PathBuf>) -> Result<Arc<CertKey>, String> {
    let chain = certificates(cert, files)?;
    files.push(key.to_owned());
    // The error of a key file says nothing of what is in it.
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
    // Pingora finds out with the first connection; we, now.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let usable = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().and_then(
        |builder| {
            let builder = builder.with_root_certificates(rustls::RootCertStore::empty());
            builder.with_client_auth_cert(chain.clone(), private.clone_key())
        },
    );
    usable.map_err(|error| format!("{} and {} do not go together: {error}", cert.display(), key.display()))?;
    for certificate in &chain {
        let parsed = webpki::EndEntityCert::try_from(certificate);
        parsed.map_err(|error| format!("{}: {error}", cert.display()))?;
    }
    Ok(Arc::new(CertKey::new(chain.iter().map(|part| part.to_vec()).collect(), private.secret_der().to_vec())))
}
