//! The suite: a real proxy on port 0, in-process origins, real sockets.
