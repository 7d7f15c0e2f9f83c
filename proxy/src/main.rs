//! The nuncio binary: puts the filters and factories together and hands over to the control thread.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    nuncio::main(std::env::args_os())
}
