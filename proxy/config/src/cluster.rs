//! `cluster`: nodes that share one cache.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use schemars::JsonSchema;

use crate::redis::Redis;
use crate::{
    decode::{At, Cx, Fields, NAME_HELP, check_name, duration, filled_list, parsed, path, whole},
    report::{Fault, Position},
    tree::Data,
    upstreams::{Dns, EndpointAddr, read_addr},
    values::DurationText,
};

/// Nodes that share one cache: each key has one node that fetches it from the origin, its owner, and the others ask that one. They speak
/// HTTP/2 with each other, over TLS with certificates on both sides. Routes and their `cache` have to be the same on all of them; a node
/// that knows a route otherwise is not asked for it. With `redis` alone they share no responses, and only tell each other what is purged.
/// Absent: the node is alone.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Cluster {
    /// What this node is called in `peers`. Different on every node. Default: `node.name`.
    pub name: Option<String>,

    /// The address and port that the other nodes reach this one at, such as `10.0.0.1:7443`. Only nodes with a certificate of `tls.ca` are
    /// let in. Port 0 takes a free port, which only `peers` elsewhere could not know. Required, but with `redis` alone.
    #[schemars(with = "Option<String>", extend("examples" = ["10.0.0.1:7443"]))]
    pub listen: SocketAddr,

    /// How nodes know each other. Required, but with `redis` alone.
    #[schemars(with = "Option<ClusterTls>")]
    pub tls: ClusterTls,

    /// The nodes that keys are shared out to: a list, the same on all nodes and with this one in it; or one `host:port` with the addresses
    /// of all of them, looked up again and again. A node that is not in it owns nothing, and asks the others. Absent: this node owns
    /// every key.
    #[schemars(with = "Option<PeersForm>")]
    pub peers: Option<Peers>,

    /// Nodes that are asked in place of the origin by who owns a key: a second, smaller circle near the origin. They ask the origin
    /// themselves, whatever their own `region` is. Absent: the origin is asked.
    pub region: Option<Region>,

    /// How the names of nodes become addresses.
    #[schemars(with = "Option<Dns>", extend("default" = {}))]
    pub dns: Dns,

    /// How long a node waits for others.
    #[schemars(with = "Option<ClusterDeadlines>", extend("default" = {}))]
    pub deadlines: ClusterDeadlines,

    /// How long a response that another node owns is kept here at most, in memory, before the owner is asked again whether it still holds.
    /// Long spares the owner, short lets go of it sooner. Above zero. Default `60s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "60s"))]
    pub hot: Duration,

    /// Over what nodes tell each other what is purged. Absent: over the connections between them, to the other nodes in `peers`.
    #[schemars(with = "Option<Redis>")]
    #[doc(hidden)] // `Config::redis`, because it may stand alone
    pub redis: (),

    /// Where it is written.
    #[schemars(skip)]
    pub position: Position,
}

/// How nodes know each other. Files are watched, and read again when they change.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ClusterTls {
    /// PEM file with this node's certificate, then its intermediates. It is shown to nodes that connect to this one, and to those this one
    /// connects to: where it names usages, both `serverAuth` and `clientAuth` have to be among them. It has to be for the name that stands
    /// in the others' `peers` (or for `server_name`). Required.
    pub certificate: PathBuf,

    /// PEM file with its private key. Required.
    pub key: PathBuf,

    /// PEM file with the authorities that vouch for nodes. Whoever has a certificate of theirs is a node of the cluster, and is believed:
    /// they should sign for nothing else. Required.
    pub ca: PathBuf,

    /// The name that the certificates of all other nodes are for, in place of the name each has in `peers`. Absent: that name, or the host
    /// where `peers` is one.
    pub server_name: Option<String>,

    /// Where it is written.
    #[schemars(skip)]
    pub position: Position,
}

/// The nodes of a circle.
#[derive(Debug, Clone, PartialEq)]
pub enum Peers {
    /// These.
    Listed(Vec<ClusterPeer>),
    /// All addresses of this host.
    Resolved(EndpointAddr, Position),
}

#[derive(JsonSchema)]
#[schemars(untagged, rename = "Peers")]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum PeersForm {
    Listed(#[schemars(length(min = 1))] Vec<ClusterPeer>),
    Resolved(String),
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ClusterPeer {
    /// Its name, 1 to 64 letters, digits, `-`, `_`, `.`: what it is called in its own `cluster.name`. Required.
    pub name: String,

    /// Where it listens: `IP:port` or `host:port`. The same on all nodes, because keys are shared out by it. Required.
    #[schemars(with = "String")]
    pub address: EndpointAddr,

    /// Its share of the keys against the others' weights, 1 to 1000. Default 1.
    #[schemars(with = "Option<u16>", range(min = 1, max = 1000), extend("default" = 1))]
    pub weight: u16,

    /// Where it is written.
    #[schemars(skip)]
    pub position: Position,
}

/// Nodes that are asked in place of the origin.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Region {
    /// Those nodes, written as `cluster.peers`. Their certificates are of the same authorities. Required.
    #[schemars(with = "PeersForm")]
    pub peers: Peers,
}

/// How long a node waits for others. What is not there in time is asked of the next owner or the origin, and the client does not notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ClusterDeadlines {
    /// To connect, TLS included. Above zero. Default `50ms`.
    #[schemars(with = "Option<DurationText>", extend("default" = "50ms"))]
    pub connect: Duration,

    /// Until a node's response begins. It contains how long the origin takes that the node asks: shorter than that, and every node asks the
    /// origin itself. Above zero. Default `3s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "3s"))]
    pub first_byte: Duration,

    /// The same for all nodes that are tried for one request together. Not below `first_byte`. Default `4s`, or `first_byte` if that is
    /// more.
    #[schemars(with = "Option<DurationText>", extend("default" = "4s"))]
    pub budget: Duration,
}

impl Default for ClusterDeadlines {
    fn default() -> Self {
        Self { connect: Duration::from_millis(50), first_byte: Duration::from_secs(3), budget: Duration::from_secs(4) }
    }
}

/// The default of `cluster.hot`.
const HOT: Duration = Duration::from_secs(60);

impl Cluster {
    /// Reads the section: the nodes that share their caches, and the server over which they tell each other what is purged.
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> (Option<Self>, Option<Redis>) {
        let Some(mut fields) = Fields::open(cx, at, "Cluster") else { return (None, None) };
        let redis_at = fields.get("redis");
        let redis = redis_at.as_ref().and_then(|at| Redis::read(cx, at));
        let is_alone = matches!(&at.node.data, Data::Map(entries) if entries.iter().all(|entry| entry.key == "redis" || entry.key == "name"));
        if redis_at.is_some() && is_alone {
            // What else there could be is known to the test of the schema, and to whoever misspells it.
            for key in ["listen", "tls", "peers", "region", "dns", "deadlines", "hot"] {
                fields.get(key);
            }
            let name = fields.read(cx, "name", name);
            fields.close(cx);
            return (None, redis.map(|redis| Redis { node: name, ..redis }));
        }
        let (cluster, name) = Self::read_nodes(cx, at, fields);
        (cluster, redis.map(|redis| Redis { node: name, ..redis }))
    }

    fn read_nodes(cx: &mut Cx<'_>, at: &At<'_>, mut fields: Fields<'_>) -> (Option<Self>, Option<String>) {
        let name = fields.read(cx, "name", name);
        let listen = fields.need(cx, "listen", |cx, at| {
            parsed(cx, at, "an address and a port: `10.0.0.1:7443`", |text| {
                text.parse::<SocketAddr>().map_err(|_| ("is not an address and a port".into(), None))
            })
        });
        let tls = fields.need(cx, "tls", ClusterTls::read);
        let peers = fields.read(cx, "peers", Peers::read);
        let region = fields.read(cx, "region", Region::read);
        let dns = fields.read(cx, "dns", Dns::read).unwrap_or_default();
        let deadlines = fields.read(cx, "deadlines", ClusterDeadlines::read).unwrap_or_default();
        let hot = fields.read(cx, "hot", duration).unwrap_or(HOT);
        fields.close(cx);
        let position = at.name_position().clone();
        let cluster = listen.zip(tls).map(|(listen, tls)| Self {
            name: name.clone(),
            listen,
            tls,
            peers,
            region,
            dns,
            deadlines,
            hot,
            redis: (),
            position,
        });
        (cluster, name)
    }
}

impl ClusterTls {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "ClusterTls")?;
        let certificate = fields.need(cx, "certificate", path);
        let key = fields.need(cx, "key", path);
        let ca = fields.need(cx, "ca", path);
        let server_name =
            fields.read(cx, "server_name", |cx, at| parsed(cx, at, "a host name", crate::decode::host_name));
        fields.close(cx);
        Some(Self { certificate: certificate?, key: key?, ca: ca?, server_name, position: at.name_position().clone() })
    }
}

impl Peers {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        if !matches!(at.node.data, Data::List(_)) {
            let address = address(cx, at)?;
            if matches!(address, EndpointAddr::Ip(_)) {
                let fault = at.fault("one address is no circle of nodes");
                return cx.refuse(fault.with_help("write a list of `{ name, address }`, or a host name and a port"));
            }
            return Some(Self::Resolved(address, at.node.position.clone()));
        }
        let mut names: BTreeMap<String, Position> = BTreeMap::new();
        let mut addresses: BTreeMap<String, Position> = BTreeMap::new();
        let peers = filled_list(cx, at, |cx, at| {
            let peer = ClusterPeer::read(cx, at)?;
            for (seen, what, word) in
                [(&mut names, peer.name.clone(), "name"), (&mut addresses, peer.address.to_string(), "address")]
            {
                if let Some(first) = seen.get(&what) {
                    let fault = at.fault(format!("another node has the same `{word}`"));
                    return cx.refuse(fault.with_related("first here", first));
                }
                seen.insert(what, peer.position.clone());
            }
            Some(peer)
        })?;
        Some(Self::Listed(peers))
    }
}

impl ClusterPeer {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "ClusterPeer")?;
        let name = fields.need(cx, "name", name);
        let address = fields.need(cx, "address", address);
        let weight = fields.read(cx, "weight", |cx, at| whole(cx, at, 1, 1000));
        fields.close(cx);
        let position = at.node.position.clone();
        Some(Self { name: name?, address: address?, weight: weight.unwrap_or(1), position })
    }
}

impl Region {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Region")?;
        let peers = fields.need(cx, "peers", Peers::read);
        fields.close(cx);
        Some(Self { peers: peers? })
    }
}

impl ClusterDeadlines {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let default = Self::default();
        let mut fields = Fields::open(cx, at, "ClusterDeadlines")?;
        let connect = fields.read(cx, "connect", duration).unwrap_or(default.connect);
        let first_byte = fields.read(cx, "first_byte", duration).unwrap_or(default.first_byte);
        let budget = fields.read(cx, "budget", |cx, at| {
            let budget = duration(cx, at)?;
            if budget < first_byte {
                return cx.refuse(at.fault("`budget` is below `first_byte`"));
            }
            Some(budget)
        });
        fields.close(cx);
        Some(Self { connect, first_byte, budget: budget.unwrap_or(default.budget.max(first_byte)) })
    }
}

fn name(cx: &mut Cx<'_>, at: &At<'_>) -> Option<String> {
    parsed(cx, at, "a name", |text| {
        check_name(text).map(|()| text.to_owned()).map_err(|why| (why, Some(NAME_HELP.into())))
    })
}

/// An endpoint that other machines reach.
fn address(cx: &mut Cx<'_>, at: &At<'_>) -> Option<EndpointAddr> {
    match read_addr(cx, at)? {
        EndpointAddr::Unix(_) => {
            cx.refuse(Fault::at(&at.node.position, "a node is not reached by a Unix socket").with_key(at.path.clone()))
        }
        address => Some(address),
    }
}
