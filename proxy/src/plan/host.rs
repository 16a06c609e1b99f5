//! What the node offers to its filters: upstreams to call, shared data and metrics that outlive a reload.

use std::sync::Arc;

use futures::future::BoxFuture;
use selvedge_wasm::{Callout, CalloutFailure, CalloutResponse, Host, Metrics, SharedData, SharedQueues};

use crate::callout;
use crate::upstream::Upstreams;

/// The host side of every plugin of one plan.
pub(super) struct NodeHost {
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) shared: Arc<SharedData>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) queues: Arc<SharedQueues>,
}

impl Host for NodeHost {
    fn has_upstream(&self, name: &str) -> bool {
        self.upstreams.get(name).is_some()
    }

    fn call(&self, callout: Callout) -> BoxFuture<'static, Result<CalloutResponse, CalloutFailure>> {
        callout::send(Arc::clone(&self.upstreams), callout)
    }

    fn shared(&self) -> &SharedData {
        &self.shared
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn queues(&self) -> &SharedQueues {
        &self.queues
    }
}
