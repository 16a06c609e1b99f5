//! What the node offers to its filters: upstreams to call, shared data and metrics that outlive a reload, and functions beyond the ABI.

use std::sync::Arc;

use futures::future::BoxFuture;
use selvedge_geoip::Geo;
use selvedge_wasm::{
    Caller, Callout, CalloutFailure, CalloutResponse, ForeignError, GrpcEvents, GrpcMessages, GrpcRequest, GrpcStatus,
    Host, Metrics, PluginStats, SharedData, SharedQueues,
};

use crate::chain::foreign::{self, declared::Declared};
use crate::telemetry::counters::Counters;
use crate::upstream::Upstreams;
use crate::{callout, grpc};

/// The host side of every plugin of one plan.
pub(super) struct NodeHost {
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) shared: Arc<SharedData>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) queues: Arc<SharedQueues>,
    pub(super) counters: Arc<Counters>,
    pub(super) geo: Option<Arc<Geo>>,
    pub(super) declared: Arc<Declared>,
}

impl Host for NodeHost {
    fn has_upstream(&self, name: &str) -> bool {
        self.upstreams.get(name).is_some()
    }

    fn call(&self, callout: Callout) -> BoxFuture<'static, Result<CalloutResponse, CalloutFailure>> {
        callout::send(Arc::clone(&self.upstreams), callout)
    }

    fn grpc(&self, request: GrpcRequest, messages: GrpcMessages, events: GrpcEvents) -> BoxFuture<'static, GrpcStatus> {
        grpc::run(Arc::clone(&self.upstreams), request, messages, events)
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

    fn stats(&self, plugin: &str) -> Arc<PluginStats> {
        self.counters.filter(plugin)
    }

    /// Those that act on an exchange are in `chain/foreign.rs`.
    fn foreign(&self, caller: Caller<'_>, name: &str, args: &[u8]) -> Option<Result<Vec<u8>, ForeignError>> {
        if let Some(function) = name.strip_prefix("selvedge.shared.") {
            return foreign::shared::call(&self.shared, caller.vm_id, function, args);
        }
        Some(match name {
            "compress" => foreign::zlib::compress(args),
            "uncompress" => foreign::zlib::uncompress(args),
            "verify_signature" => foreign::signature::verify(args),
            "sign" => foreign::signature::sign(args),
            "declare_property" => self.declared.declare(caller.plugin, args),
            "selvedge.geo_lookup" => foreign::geo::lookup(self.geo.as_deref(), args),
            // A route is chosen once, before the first filter: there is nothing to clear, and no reason to refuse.
            "clear_route_cache" => Ok(Vec::new()),
            _ => return None,
        })
    }
}
