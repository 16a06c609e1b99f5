//! Purges as operators order them: read, resolved against the plan in force, carried out on this node.

mod order;

use selvedge_cache::purge::LogError;
use selvedge_cache::{Cache, Purged};
use tracing::info;

pub(crate) use self::order::{BadOrder, Order, Url};
use crate::plan::Plan;

/// Why a purge was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PurgeError {
    #[error("this node has no cache")]
    NoCache,
    #[error(transparent)]
    Order(#[from] BadOrder),
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Carries out a purge; when it returns, nothing of what it reaches is handed out any more, and it is on disk if there is a log.
pub(crate) async fn carry_out(plan: &Plan, order: &Order) -> Result<Purged, PurgeError> {
    let cache: &'static Cache = plan.cache.ok_or(PurgeError::NoCache)?;
    let scopes = order.scopes(plan)?;
    let purged = cache.purge_for_good(&scopes, order.kind(), None).await?;
    info!(%order, epoch = purged.epoch, durable = purged.durable, "purged");
    Ok(purged)
}
