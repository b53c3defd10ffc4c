//! Hands `targets::copy_matcher_target` to libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bowline_fuzz::targets::copy_matcher_target(data));
