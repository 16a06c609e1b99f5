//! The built-in demo origin: an in-process HTTP server to try an edge node against.
