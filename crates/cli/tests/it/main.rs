//! Tests of the program as a whole: real processes, real sockets, real peers.

mod readme;
mod run;
mod scenarios;
mod server;
mod units;
mod tidy;
mod openssh;
mod run;
mod scenarios;
mod secret;
mod server;
mod terminal;
