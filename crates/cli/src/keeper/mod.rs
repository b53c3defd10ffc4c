//! The keeper: one thread that spawns and reaps, holds the jobs' descriptors
//! and the host key, and decides who may start what. It never reads the
//! network and never sees tokio, TLS or the gate's code.

pub(crate) mod policy;
