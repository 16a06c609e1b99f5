//! Names of endpoints, and the addresses they have.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use hickory_resolver::proto::rr::rdata::SRV;
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
    /// It is a service: its SRV records are asked for.
    pub(super) service: bool,
    pub(super) dns: Arc<Dns>,
}

/// One address that a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) address: IpAddr,
    /// What its SRV record says, where it is a service.
    pub(super) service: Option<Service>,
}

/// Of an SRV record (RFC 2782).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Service {
    /// The lower the better.
    pub(super) priority: u16,
    /// Against the others of its priority; 1 to 1000.
    pub(super) weight: u16,
    pub(super) port: u16,
}

/// What a name stands for.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// In order, so that two answers can be compared.
    pub(super) targets: Vec<Target>,
    /// When it is to be looked up again.
    until: Instant,
}

impl Answer {
    /// One that nobody has given, for now.
    pub(super) fn fixed(address: IpAddr, name: &Name) -> Self {
        let service = name.service.then_some(Service { priority: 0, weight: 1, port: 80 });
        Self { targets: vec![Target { address, service }], until: Instant::now() }
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
    let limit = name.dns.timeout * 2;
    let asked = tokio::time::timeout(limit, async {
        if name.service { services(resolver, &name.host).await } else { addresses(resolver, &name.host).await }
    });
    let (mut targets, until) = match asked.await {
        Ok(found) => found?,
        Err(_) => return Err(Unresolved { definite: false, why: format!("no answer in {limit:?}") }),
    };
    targets.sort_unstable();
    targets.dedup();
    if targets.is_empty() {
        return Err(Unresolved { definite: true, why: "it has no address".into() });
    }
    let ttl = until.saturating_duration_since(std::time::Instant::now());
    Ok(Answer { targets, until: Instant::now() + ttl.clamp(name.dns.ttl_min, name.dns.ttl_max) })
}

/// The targets, and until when they hold.
type Found = (Vec<Target>, std::time::Instant);

async fn addresses(resolver: &TokioResolver, host: &str) -> Result<Found, Unresolved> {
    let found = resolver.lookup_ip(host).await.map_err(unresolved)?;
    let targets = found.iter().map(|address| Target { address, service: None }).collect();
    Ok((targets, found.valid_until()))
}

/// How many hosts of a service are looked up.
const HOSTS_MAX: usize = 64;

/// The heaviest an endpoint can be.
const WEIGHT_MAX: u16 = 1000;

async fn services(resolver: &TokioResolver, name: &str) -> Result<Found, Unresolved> {
    let found = resolver.srv_lookup(name).await.map_err(unresolved)?;
    let records: Vec<&SRV> = found
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(service) => Some(service),
            _ => None,
        })
        // A single root is how a name says that it has no such service.
        .filter(|service| !service.target.is_root() && service.port != 0)
        .take(HOSTS_MAX)
        .collect();
    let heaviest = |priority| records.iter().filter(|one| one.priority == priority).map(|one| one.weight).max();
    let hosts = records.iter().map(|one| async move { (*one, resolver.lookup_ip(one.target.clone()).await) });
    let (mut targets, mut until, mut failed) = (Vec::new(), found.valid_until(), None);
    for (record, host) in futures::future::join_all(hosts).await {
        let host = match host {
            Ok(host) => host,
            Err(error) => {
                failed = Some(unresolved(error));
                continue; // The others are used.
            }
        };
        until = until.min(host.valid_until());
        let heaviest = u32::from(heaviest(record.priority).unwrap_or(1).max(WEIGHT_MAX));
        let share = u32::from(record.weight) * u32::from(WEIGHT_MAX) / heaviest;
        let weight = u16::try_from(share).unwrap_or(WEIGHT_MAX).max(1);
        let service = Service { priority: record.priority, weight, port: record.port };
        targets.extend(host.iter().map(|address| Target { address, service: Some(service) }));
    }
    match failed {
        Some(why) if targets.is_empty() => Err(why),
        _ => Ok((targets, until)),
    }
}

fn unresolved(error: NetError) -> Unresolved {
    Unresolved { definite: error.is_nx_domain() || error.is_no_records_found(), why: error.to_string() }
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
                let changed = keeper.answer(&name).is_none_or(|known| known.targets != answer.targets);
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
