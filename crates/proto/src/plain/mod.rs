//! What the plain services say on the wire: bytes in, messages out, and no IO.

pub mod ntp;
pub mod text;
