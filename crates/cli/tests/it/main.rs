//! Tests of the program as a whole: real processes, real sockets, real peers.

mod cp;
mod faults;
mod hostile;
mod keeper_death;
mod lifecycle;
mod openssh;
mod plain;
mod policy;
mod producers;
mod readme;
mod resume;
mod retries;
mod run;
mod scenarios;
mod secret;
mod serve;
mod server;
mod session;
mod shell;
mod slow_line;
mod stderr;
mod stranger;
mod terminal;
mod tidy;
mod units;
mod upgrade;
