//! libFuzzer's entry to the target `format_json` of `nuncio_fuzz_targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nuncio_fuzz_targets::run("format_json", data));
