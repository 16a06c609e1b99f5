//! Purges as operators order them: read, resolved against the plan in force, carried out on this node, told to the others.

mod order;
mod peers;
pub(crate) mod related;
mod stream;

use selvedge_cache::purge::LogError;
use std::sync::Arc;

use selvedge_cache::{Cache, Purge, Scope};
use tracing::{info, warn};

pub(crate) use self::order::{BadOrder, Group, Order, Url, Wait};
pub(crate) use self::peers::Peers;
pub(crate) use self::stream::{Confirmation, Settings, Stream, StreamError, StreamUsage};
use crate::node::Current;
use crate::plan::Plan;

/// Why a purge was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PurgeError {
    #[error("this node has no cache")]
    NoCache,
    #[error(transparent)]
    Order(#[from] BadOrder),
    #[error("nodes of a cluster are waited for, and `cluster` is not configured")]
    Alone,
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What became of a purge.
pub(crate) struct Done {
    pub(crate) epoch: u64,
    /// Whether it survives the process.
    pub(crate) durable: bool,
    /// What the nodes of the cluster say, if they were waited for.
    pub(crate) nodes: Option<Result<Vec<Confirmation>, StreamError>>,
}

/// Carries out a purge; when it returns, nothing of what it reaches is handed out any more, and it is on disk if there is a log. The other
/// nodes are told, and waited for if the order says so.
pub(crate) async fn carry_out(current: &Current, plan: &Plan, order: &Order) -> Result<Done, PurgeError> {
    let cache: &'static Cache = plan.cache.ok_or(PurgeError::NoCache)?;
    let scopes = order.scopes(plan)?;
    let stream = current.stream();
    let peers = current.peers().zip(plan.cluster.as_ref());
    if order.wait == Wait::Cluster && stream.is_none() && peers.is_none() {
        return Err(PurgeError::Alone);
    }
    // Told whatever the disk says: it is in force here.
    let purged = cache.purge_for_good(&scopes, order.kind(), Vec::new()).await;
    let nodes = match &stream {
        Some(stream) if order.wait == Wait::Cluster => Some(stream.publish_and_wait(order).await),
        Some(stream) => {
            stream.publish(order);
            None
        }
        None => match peers {
            Some((peers, cluster)) => {
                let nodes = peers.tell(cluster, order).await;
                (order.wait == Wait::Cluster).then_some(Ok(nodes))
            }
            None => None,
        },
    };
    let purged = purged?;
    info!(%order, epoch = purged.epoch, durable = purged.durable, "purged");
    Ok(Done { epoch: purged.epoch, durable: purged.durable, nodes })
}

/// The same without waiting for anything: in force when it returns, on disk and told to the others soon.
///
/// # Errors
/// The order is wrong, or there is no cache.
pub(crate) fn carry_out_at_once(current: &Current, plan: &Arc<Plan>, order: &Order) -> Result<(), PurgeError> {
    let cache: &'static Cache = plan.cache.ok_or(PurgeError::NoCache)?;
    cache.purge_soon_durable(&order.scopes(plan)?, order.kind());
    if let Some(stream) = current.stream() {
        stream.publish(order);
    } else if let Some(peers) = current.peers() {
        peers.tell_soon(Arc::clone(plan), order);
    }
    Ok(())
}

/// What orders of other nodes reach under this plan: the hard ones, and the soft ones. What is not understood is everything: somebody
/// newer may mean something that is not known here.
fn scopes_of<'o>(plan: &Plan, orders: impl Iterator<Item = Option<&'o Order>>) -> (Vec<Scope>, Vec<Scope>) {
    let (mut hard, mut soft) = (Vec::new(), Vec::new());
    for order in orders {
        match order.map(|order| (order.scopes(plan), order.kind())) {
            Some((Ok(scopes), Purge::Hard)) => hard.extend(scopes),
            Some((Ok(scopes), Purge::Soft)) => soft.extend(scopes),
            Some((Err(_), _)) | None => {
                warn!("a purge of another node is not understood: everything is purged");
                hard.push(Scope::everything());
            }
        }
    }
    (hard, soft)
}
