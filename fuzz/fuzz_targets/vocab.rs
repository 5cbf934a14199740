#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unicorn_fuzz::vocab(data));
