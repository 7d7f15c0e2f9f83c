//! The nuncio binary: puts the filters and factories together and hands over to the control thread.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's options, read once before `main`; `_RJEM_MALLOC_CONF` in the environment overrides them. By default a thread gives
/// free memory back only while it allocates: what a burst of connections or a large update needed would stay with an idle process.
/// One thread in the background does it instead, a second after memory became free.
#[allow(unsafe_code)]
// SAFETY: jemalloc looks for this symbol, a pointer to a string that ends with a zero; this is one, and nothing else has the name.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8; 68] = b"background_thread:true,max_background_threads:1,dirty_decay_ms:1000\0";

fn main() -> std::process::ExitCode {
    nuncio::main(std::env::args_os())
}
