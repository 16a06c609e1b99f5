//! The suite: one binary, real sockets, real guests.

#![allow(clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod first;

mod http;

mod hygiene;

mod client_limits;
mod collapse;

mod compress;

mod listeners;

mod actions;

mod cuts;
mod door;

mod pause;

mod bodies;

mod replies;

mod cache;

mod cache_disk;

mod disk_faults;

mod cache_trailers;

mod cache_suite;

mod purge;

mod refresh;

mod cache_policy;

mod origin_filters;

mod cache_claims;

mod cluster;

mod callouts;

mod queues;

mod metrics;

mod admin;

mod life;

mod upgrade;

mod handles;
mod sdk;

mod grpc;

mod grpc_replies;

mod grpc_clients;

mod grpc_web;

mod properties;

mod bundled;

mod tcp;

mod targets;

mod upstreams;

mod upstream_health;

mod resilience;

mod ways;

mod retries;

mod blame;

mod attempts;

mod pools;

mod reload;

mod misbehave;

mod sdk_readme;
mod slices;
mod story;

mod cli;
mod filter_new;
mod filter_run;
mod filter_settings;
mod filter_tools;

mod tls;

mod explain;

mod mtls;

mod crowded;

mod curl;
mod tour;
mod unix_listeners;

mod conformance;

mod portable;

mod third_party;
