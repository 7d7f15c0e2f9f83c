#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| nuncio_fuzz_targets::run("grpc_web", data));
