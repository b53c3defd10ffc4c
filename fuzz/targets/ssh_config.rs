//! Hands `library::ssh_config_target` to libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bowline_fuzz::library::ssh_config_target(data));
