//! The suite: one binary, real sockets, real guests.

mod first;

mod story;
