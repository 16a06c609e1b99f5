//! What the node offers to its filters: upstreams to call, shared data and metrics that outlive a reload, and functions beyond the ABI.

use std::sync::Arc;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use selvedge_geoip::Geo;
use selvedge_wasm::{
    Caller, Callout, CalloutFailure, CalloutResponse, ForeignError, GrpcEvents, GrpcMessages, GrpcRequest, GrpcStatus,
    Host, Metrics, PluginStats, SharedData, SharedQueues, Trace,
};

use crate::chain::foreign::{self, declared::Declared};
use crate::telemetry::counters::{Counters, Observed};
use crate::upstream::Upstreams;
use crate::{callout, grpc};

/// The host side of one plugin. It lives as long as the plugin, which may be longer than the plan that started it.
pub(crate) struct NodeHost {
    /// The plan in force, or the one that is being made and for which the plugin was started.
    view: ArcSwap<View>,
    shared: Arc<SharedData>,
    metrics: Arc<Metrics>,
    queues: Arc<SharedQueues>,
    counters: Arc<Counters>,
    declared: Declared,
    start_trace: Option<Arc<Trace>>,
}

/// What a plugin is given of a plan. It changes with the plan, all of it at once.
pub(super) struct View {
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) geo: Option<Arc<Geo>>,
}

impl NodeHost {
    /// The host of a plugin that is about to start, for a plan that is about to be in force.
    pub(super) fn new(observed: &Observed, view: &Arc<View>) -> Self {
        Self {
            view: ArcSwap::new(Arc::clone(view)),
            shared: Arc::clone(&observed.shared),
            metrics: Arc::clone(&observed.metrics),
            queues: Arc::clone(&observed.queues),
            counters: Arc::clone(&observed.counters),
            declared: Declared::default(),
            start_trace: observed.start_trace.clone(),
        }
    }

    /// From now on this is the plan in force.
    pub(super) fn look_at(&self, view: &Arc<View>) {
        self.view.store(Arc::clone(view));
    }

    /// Which properties the plugin may set once only.
    pub(crate) fn declared(&self) -> &Declared {
        &self.declared
    }

    fn upstreams(&self) -> Arc<Upstreams> {
        Arc::clone(&self.view.load().upstreams)
    }
}

impl Host for NodeHost {
    fn has_upstream(&self, name: &str) -> bool {
        self.view.load().upstreams.get(name).is_some()
    }

    fn call(&self, callout: Callout) -> BoxFuture<'static, Result<CalloutResponse, CalloutFailure>> {
        callout::send(self.upstreams(), callout)
    }

    fn grpc(&self, request: GrpcRequest, messages: GrpcMessages, events: GrpcEvents) -> BoxFuture<'static, GrpcStatus> {
        grpc::run(self.upstreams(), request, messages, events)
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

    fn start_trace(&self) -> Option<Arc<Trace>> {
        self.start_trace.clone()
    }

    /// Those that act on an exchange are in `chain/foreign.rs`.
    fn foreign(&self, caller: Caller<'_>, name: &str, args: &[u8]) -> Option<Result<Vec<u8>, ForeignError>> {
        if let Some(answer) = selvedge_wasm::foreign::call(self, caller, name, args) {
            return Some(answer);
        }
        Some(match name {
            "compress" => foreign::zlib::compress(args),
            "uncompress" => foreign::zlib::uncompress(args),
            "verify_signature" => foreign::signature::verify(args),
            "sign" => foreign::signature::sign(args),
            "declare_property" => self.declared.declare(args),
            "selvedge.geo_lookup" => foreign::geo::lookup(self.view.load().geo.as_deref(), args),
            // A route is chosen once, before the first filter: there is nothing to clear, and no reason to refuse.
            "clear_route_cache" => Ok(Vec::new()),
            _ => return None,
        })
    }
}
