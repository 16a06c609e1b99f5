//! HTTP caching: keys, RFC 9111 rules, the memory tier, collapsing, Cache-Status.
