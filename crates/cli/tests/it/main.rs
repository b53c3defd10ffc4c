//! Tests of the program as a whole: real processes, real sockets, real peers.

mod openssh;
mod readme;
mod run;
mod scenarios;
mod secret;
mod server;
mod terminal;
mod tidy;
mod units;
