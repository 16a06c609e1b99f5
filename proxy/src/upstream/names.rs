//! Names of endpoints, and the addresses they have.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{TokioResolver, system_conf};
use selvedge_config::Dns;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Upstream;
use super::keeper::Keeper;

/// A name, and how it is looked up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name {
    pub(super) host: Arc<str>,
    pub(super) dns: Arc<Dns>,
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// In order, so that two answers can be compared.
    pub(super) addresses: Vec<IpAddr>,
    /// When it is to be looked up again.
    until: Instant,
}

impl Answer {
    /// One that nobody has given, for now.
    pub(super) fn fixed(addresses: Vec<IpAddr>) -> Self {
        Self { addresses, until: Instant::now() }
    }
}

/// Why a name stands for nothing.
#[derive(Debug, Clone)]
pub(super) struct Unresolved {
    /// Whether that is an answer: there is no such name, or it has no address. Else nobody could be asked.
    pub(super) definite: bool,
    pub(super) why: String,
}

/// What asks for names, as `dns` says. Without servers, as the system does (resolv.conf(5)): where there is no such file, the one on this
/// machine.
pub(super) fn resolver(dns: &Dns) -> Result<TokioResolver, String> {
    let (config, mut options) = if dns.resolver.is_empty() {
        system_conf::read_system_conf().unwrap_or_else(|error| {
            debug!(%error, "no resolv.conf");
            (servers(&[SocketAddr::from((Ipv4Addr::LOCALHOST, 53))]), ResolverOpts::default())
        })
    } else {
        let mut options = ResolverOpts::default();
        options.use_hosts_file = ResolveHosts::Never;
        (servers(&dns.resolver), options)
    };
    if dns.resolver.is_empty() {
        options.use_hosts_file = ResolveHosts::Always;
    }
    options.timeout = dns.timeout;
    options.attempts = 1;
    options.cache_size = 0; // When it is asked again is decided here.
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().map_err(|error| error.to_string())
}

fn servers(addresses: &[SocketAddr]) -> ResolverConfig {
    let server = |address: &SocketAddr| {
        let mut server = NameServerConfig::udp_and_tcp(address.ip());
        server.connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
        for connection in &mut server.connections {
            connection.port = address.port();
        }
        server
    };
    ResolverConfig::from_parts(None, Vec::new(), addresses.iter().map(server).collect())
}

/// Asks once.
pub(super) async fn look_up(resolver: &TokioResolver, name: &Name) -> Result<Answer, Unresolved> {
    // A resolver may ask several servers one after the other.
    let asked = tokio::time::timeout(name.dns.timeout * 2, resolver.lookup_ip(&*name.host)).await;
    let found = match asked {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            let definite = error.is_nx_domain() || error.is_no_records_found();
            return Err(Unresolved { definite, why: error.to_string() });
        }
        Err(_) => return Err(Unresolved { definite: false, why: format!("no answer in {:?}", name.dns.timeout * 2) }),
    };
    let mut addresses: Vec<IpAddr> = found.iter().collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(Unresolved { definite: true, why: "it has no address".into() });
    }
    let ttl = found.valid_until().saturating_duration_since(std::time::Instant::now());
    Ok(Answer { addresses, until: Instant::now() + ttl.clamp(name.dns.ttl_min, name.dns.ttl_max) })
}

/// Looks a name up whenever its answer has had its time, and tells the upstreams that use it, until the last of them is gone.
pub(super) async fn follow(keeper: Weak<Keeper>, name: Name, upstreams: Vec<Weak<Upstream>>) {
    let mut failing = false;
    loop {
        let due = match keeper.upgrade() {
            None => return,
            Some(keeper) => keeper.answer(&name).map(|answer| answer.until),
        };
        match due {
            Some(due) if !failing => tokio::time::sleep_until(due).await,
            _ => tokio::time::sleep(wait_after_failure(&name.dns)).await,
        }

        let Some(resolver) = keeper.upgrade().and_then(|keeper| keeper.resolver(&name.dns).ok()) else { return };
        let found = look_up(&resolver, &name).await;
        let Some(keeper) = keeper.upgrade() else { return };
        match found {
            Ok(answer) => {
                if failing {
                    info!(name = %name.host, "resolves again");
                }
                failing = false;
                let changed = keeper.answer(&name).is_none_or(|known| known.addresses != answer.addresses);
                keeper.remember(&name, answer);
                if changed {
                    upstreams.iter().filter_map(Weak::upgrade).for_each(|upstream| upstream.readdress(&keeper));
                }
            }
            Err(Unresolved { why, .. }) => {
                keeper.count_failed_lookup();
                if !failing {
                    warn!(name = %name.host, %why, "does not resolve; the last answer stays in use");
                }
                failing = true;
            }
        }
        if upstreams.iter().all(|upstream| upstream.strong_count() == 0) {
            return;
        }
    }
}

fn wait_after_failure(dns: &Dns) -> Duration {
    dns.ttl_min
}
