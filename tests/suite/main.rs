//! The suite: one binary, real sockets, real guests.

mod door;

mod first;

mod pause;

mod story;

mod cli;

mod tour;

mod http;

mod misbehave;

mod cache;

mod bundled;
