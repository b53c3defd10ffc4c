//! The program `bowline`.

mod config;
mod ipc;
mod gate;
mod inherited;
mod keeper;

fn main() {}
