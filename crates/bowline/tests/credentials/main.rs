//! Keys and trust against the real programs: everything here is made or checked by `ssh-keygen`, `ssh-agent`
//! and `ssh-add`, in folders of the test's own.

mod agent;
mod authorize;
mod host_key;
mod identities;
mod keygen;
mod real;
mod secret;
mod signatures;
mod ssh_config;
mod trust;
