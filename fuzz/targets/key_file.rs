//! Hands `library::key_file_target` to libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bowline_fuzz::library::key_file_target(data));
