//! Tests of the program as a whole: real processes, real sockets, real peers.

mod openssh;
mod policy;
mod hostile;
mod readme;
mod run;
mod scenarios;
mod serve;
mod server;
mod terminal;
mod tidy;
mod units;
