//! What the programs are told from outside: files, flags, defaults.

mod gate;
mod server;

pub use gate::GateConfig;
pub(crate) use server::ServerConfig;
