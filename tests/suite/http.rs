//! HTTP as clients and origins speak it, with and without a chain of filters.
