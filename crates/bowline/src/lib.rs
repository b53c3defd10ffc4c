//! The library.
pub mod credentials;
