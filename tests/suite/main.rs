//! The suite: one binary, real sockets, real guests.

mod door;

mod first;

mod story;

mod cli;

mod tour;

mod http;

mod misbehave;

mod cache;

mod bundled;
