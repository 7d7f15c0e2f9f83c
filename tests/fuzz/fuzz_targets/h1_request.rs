//! libFuzzer's entry to the target `h1_request` of `nuncio_fuzz_targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nuncio_fuzz_targets::run("h1_request", data));
