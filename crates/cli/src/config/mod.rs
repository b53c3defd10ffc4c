//! What a server is configured with: the TOML file, the command line over it,
//! and the part of it that the gate is told.

mod gate;

pub use gate::GateConfig;
