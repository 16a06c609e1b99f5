//! The edge proxy: configuration, listeners, request path, upstreams, telemetry, command line.
