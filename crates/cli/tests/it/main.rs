//! Tests of the program as a whole: real processes, real sockets, real peers.

mod openssh;
mod run;
mod scenarios;
mod server;
mod terminal;
