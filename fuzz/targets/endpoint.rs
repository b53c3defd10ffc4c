//! Hands `library::endpoint_target` to libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bowline_fuzz::library::endpoint_target(data));
