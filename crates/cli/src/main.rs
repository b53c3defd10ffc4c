//! The program `bowline`.

mod config;
mod ipc;
mod keeper;

fn main() {}
