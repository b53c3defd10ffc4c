//! The program `bowline`.

mod config;
mod ipc;

fn main() {}
