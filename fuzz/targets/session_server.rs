//! Hands `targets::session_server_target` to libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bowline_fuzz::targets::session_server_target(data));
