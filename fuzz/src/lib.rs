//! Fuzz targets: what they do is in the modules; each file in `targets/` hands one to libFuzzer.
//!
//! Bytes enter from libFuzzer; nothing leaves but a panic where a promise is broken.

pub mod targets;

#[cfg(feature = "library")]
pub mod library;
