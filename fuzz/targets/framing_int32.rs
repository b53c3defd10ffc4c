//! Hands `targets::framing_int32_target` to libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bowline_fuzz::targets::framing_int32_target(data));
