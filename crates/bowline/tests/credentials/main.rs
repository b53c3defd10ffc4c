//! Keys and trust against the real programs: everything here is made or checked by `ssh-keygen`, `ssh-agent`
//! and `ssh-add`, in folders of the test's own.

mod host_key;
mod real;
mod signatures;
