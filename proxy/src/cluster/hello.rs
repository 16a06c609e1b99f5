//! What nodes tell each other about themselves, for operators: which of them answer, and which know routes otherwise.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::messages::{Handlers, Message, Peer, Reply};
use super::{Cluster, PEERS, REGION, wire};
use crate::error_chain;
use crate::node::Current;

/// Where it is asked.
const PATH: &str = "/v1/hello";

/// How long another node may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a node says of itself.
#[derive(Serialize, Deserialize)]
struct Hello {
    name: String,
    version: String,
    generation: u64,
    /// The routes that are cached, as nodes tell them apart.
    routes: BTreeSet<String>,
}

impl Hello {
    fn of(cluster: &Cluster, generation: u64) -> Self {
        Self {
            name: cluster.name.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            generation,
            routes: cluster.routes.keys().map(wire::hex).collect(),
        }
    }
}

/// The nodes of the cluster, as this one sees them.
#[derive(Serialize, JsonSchema)]
pub(crate) struct ClusterView {
    /// What this node is called.
    name: String,
    /// The others.
    nodes: Vec<NodeView>,
}

/// Another node.
#[derive(Serialize, JsonSchema)]
struct NodeView {
    /// Whether it is one of `peers` or of `region`.
    circle: &'static str,
    /// What it is called here: its name, or its address where `peers` is a host.
    node: String,
    /// Whether it is sent requests at the moment.
    in_use: bool,
    /// What it calls itself, if it has answered just now.
    name: Option<String>,
    /// Its version of Selvedge.
    version: Option<String>,
    /// Which configuration it has in force.
    generation: Option<u64>,
    /// How many cached routes it knows as this node does, so that they can answer for each other.
    shared_routes: Option<usize>,
    /// How many cached routes one of the two knows and the other does not, or otherwise.
    other_routes: Option<usize>,
    /// Why it has not answered.
    failure: Option<String>,
}

/// From now on other nodes are answered.
pub(crate) fn answer_others(handlers: &Handlers, current: &Arc<Current>) {
    let current: Weak<Current> = Arc::downgrade(current);
    let handler = move |message: Message| {
        tracing::debug!(from = %message.from, bytes = message.body.len(), "another node asks how this one is");
        let plan = current.upgrade().map(|current| current.plan());
        let hello = plan.and_then(|plan| {
            let hello = Hello::of(plan.cluster.as_ref()?, plan.generation);
            serde_json::to_vec(&hello).ok()
        });
        let reply = match hello {
            Some(body) => Reply { status: StatusCode::OK, body: body.into() },
            None => Reply { status: StatusCode::SERVICE_UNAVAILABLE, body: Bytes::new() },
        };
        Box::pin(std::future::ready(reply)) as futures::future::BoxFuture<'static, Reply>
    };
    handlers.register(PATH, Arc::new(handler));
}

/// Asks all other nodes at once.
pub(crate) async fn ask_others(cluster: &Cluster, generation: u64) -> ClusterView {
    let own = Hello::of(cluster, generation);
    let standing = cluster.standing();
    let circles = [(PEERS, "peers", cluster.others()), (REGION, "region", cluster.region())];
    let asked =
        circles.into_iter().flat_map(|(name, shown, nodes)| nodes.into_iter().map(move |node| (name, shown, node)));
    let asked = asked.map(|(name, circle, peer)| {
        let known = standing.iter().find(|(of, node, _)| *of == name && *node == peer.name);
        let in_use = known.is_none_or(|(.., in_use)| *in_use);
        ask(cluster, &own, circle, in_use, peer)
    });
    ClusterView { name: own.name.clone(), nodes: join_all(asked).await }
}

async fn ask(cluster: &Cluster, own: &Hello, circle: &'static str, in_use: bool, peer: Peer) -> NodeView {
    let mut view = NodeView {
        circle,
        node: peer.name.clone(),
        in_use,
        name: None,
        version: None,
        generation: None,
        shared_routes: None,
        other_routes: None,
        failure: None,
    };
    match cluster.post(&peer, PATH, Bytes::new(), PATIENCE).await {
        Ok(reply) if reply.status == StatusCode::OK => match serde_json::from_slice::<Hello>(&reply.body) {
            Ok(hello) => {
                view.shared_routes = Some(own.routes.intersection(&hello.routes).count());
                view.other_routes = Some(own.routes.symmetric_difference(&hello.routes).count());
                view.name = Some(hello.name);
                view.version = Some(hello.version);
                view.generation = Some(hello.generation);
            }
            Err(error) => view.failure = Some(format!("its answer is not what is expected: {error}")),
        },
        Ok(reply) => view.failure = Some(format!("it answers with status {}", reply.status)),
        Err(error) => view.failure = Some(error_chain(&error)),
    }
    view
}
