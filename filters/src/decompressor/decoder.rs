//! The three libraries behind one type, each yielding its output in bounded pieces: a few bytes of input may stand for gigabytes.

use bytes::{Buf, Bytes};
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::TypedExtensionConfig;
use nuncio_proto::envoy::extensions::compression::brotli::decompressor::v3::Brotli;
use nuncio_proto::envoy::extensions::compression::gzip::decompressor::v3::Gzip;
use nuncio_proto::envoy::extensions::compression::zstd::decompressor::v3::Zstd;
use nuncio_proto::typed;
use std::io::Write;
use std::sync::Arc;
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

/// Most output of one step of brotli and zstd.
const OUTPUT: usize = 16 * 1024;
/// Input of one step of gzip, which makes at most 1032 bytes of each.
const GZIP_INPUT: usize = 256;
/// Envoy's limit of output to input, where no other is configured.
const RATIO: u32 = 100;
/// Larger windows of zstd are refused, as RFC 9659 asks of HTTP: 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;

/// A compiled library.
#[derive(Debug)]
pub struct Library {
    /// As in `content-encoding`.
    pub encoding: &'static str,
    /// In the names of stats.
    pub stats: &'static str,
    /// Counter of broken input.
    pub error: &'static str,
    /// Most bytes of output for one of input.
    pub ratio: u32,
    dictionary: Option<Arc<[u8]>>,
}

impl Library {
    /// Compiles `decompressor_library`.
    pub fn compile(extension: &TypedExtensionConfig, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let at = at.field("typed_config");
        let unpacked = match extension.typed_config.as_ref().map(typed::unpack) {
            Some(Ok(unpacked)) => unpacked,
            other => {
                let why = other.and_then(Result::err).unwrap_or_else(|| "nothing".to_string());
                report.error(&at, why, "configure gzip, brotli or zstd");
                return None;
            }
        };
        let config = &*unpacked.value;
        let chunk_size = |size: Option<u32>, report: &mut Report| match size {
            Some(size) if !(4096..=65536).contains(&size) => {
                report.error(&at.field("chunk_size"), size.to_string(), "give a number from 4096 to 65536");
                None
            }
            _ => Some(()),
        };
        match unpacked.name.as_str() {
            "envoy.extensions.compression.gzip.decompressor.v3.Gzip" => {
                let gzip: Gzip = crate::config::decode(config, &at, report)?;
                chunk_size(gzip.chunk_size, report)?;
                if let Some(bits) = gzip.window_bits.filter(|bits| !(9..=15).contains(bits)) {
                    report.error(&at.field("window_bits"), bits.to_string(), "give a number from 9 to 15");
                    return None;
                }
                let ratio = gzip.max_inflate_ratio.unwrap_or(RATIO);
                if !(1..=1032).contains(&ratio) {
                    report.error(&at.field("max_inflate_ratio"), ratio.to_string(), "give a number from 1 to 1032");
                    return None;
                }
                Some(Self { encoding: "gzip", stats: "gzip", error: "zlib_data_error", ratio, dictionary: None })
            }
            "envoy.extensions.compression.brotli.decompressor.v3.Brotli" => {
                let brotli: Brotli = crate::config::decode(config, &at, report)?;
                chunk_size(brotli.chunk_size, report)?;
                if brotli.disable_ring_buffer_reallocation {
                    report.warning(&at.field("disable_ring_buffer_reallocation"), "true", "it tunes Envoy's library; ignored");
                }
                Some(Self { encoding: "br", stats: "brotli", error: "brotli_error", ratio: RATIO, dictionary: None })
            }
            "envoy.extensions.compression.zstd.decompressor.v3.Zstd" => {
                let zstd: Zstd = crate::config::decode(config, &at, report)?;
                chunk_size(zstd.chunk_size, report)?;
                let list = at.field("dictionaries");
                let dictionary = match zstd.dictionaries.as_slice() {
                    [] => None,
                    [one] => Some(crate::config::read_source(one, &list.index(0), report)?.into()),
                    all => {
                        report.unsupported(&list, format_args!("choosing among {} dictionaries", all.len()));
                        return None;
                    }
                };
                let library = Self { encoding: "zstd", stats: "zstd", error: "zstd_generic_error", ratio: RATIO, dictionary };
                if library.decoder().is_none() {
                    report.error(&list, "a dictionary that zstd refuses", "give one that zstd has made");
                    return None;
                }
                Some(library)
            }
            other => {
                report.unsupported(&at, format_args!("decompressor library {other}"));
                None
            }
        }
    }
    /// A new decoder; none if the library refuses its settings, which `compile` has tried.
    pub fn decoder(&self) -> Option<Decoder> {
        Some(match self.encoding {
            "gzip" => Decoder::Gzip(Box::new(flate2::write::MultiGzDecoder::new(Vec::new())), false),
            "br" => {
                let alloc = brotli::enc::StandardAlloc::default;
                Decoder::Brotli(Box::new(brotli::BrotliState::new(alloc(), alloc(), alloc())), false)
            }
            _ => {
                let mut decoder = match &self.dictionary {
                    Some(dictionary) => ZstdDecoder::with_dictionary(dictionary).ok()?,
                    None => ZstdDecoder::new().ok()?,
                };
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).ok()?;
                Decoder::Zstd(Box::new(decoder), false)
            }
        })
    }
}

type BrotliState = brotli::BrotliState<brotli::enc::StandardAlloc, brotli::enc::StandardAlloc, brotli::enc::StandardAlloc>;

/// A running decoder.
pub enum Decoder {
    /// Whether there was any input.
    Gzip(Box<flate2::write::MultiGzDecoder<Vec<u8>>>, bool),
    /// Whether there was any input.
    Brotli(Box<BrotliState>, bool),
    /// Whether a frame is incomplete.
    Zstd(Box<ZstdDecoder<'static>>, bool),
}

/// The input is broken.
#[derive(Debug)]
pub struct Broken;

impl Decoder {
    /// Takes some of `input` and gives some output; both may be nothing. Called again while input is left or output came.
    pub fn step(&mut self, input: &mut Bytes) -> Result<Vec<u8>, Broken> {
        match self {
            Self::Gzip(decoder, begun) => {
                let piece = input.split_to(input.len().min(GZIP_INPUT));
                *begun |= !piece.is_empty();
                // Flushed, because what has come of a stream must not wait for more.
                decoder.write_all(&piece).and_then(|()| decoder.flush()).map_err(|_| Broken)?;
                Ok(std::mem::take(decoder.get_mut()))
            }
            Self::Brotli(state, begun) => {
                *begun |= !input.is_empty();
                let mut out = vec![0; OUTPUT];
                let (mut available_in, mut read, mut available_out, mut written) = (input.len(), 0, OUTPUT, 0);
                let mut total = 0;
                let result = brotli::BrotliDecompressStream(
                    &mut available_in,
                    &mut read,
                    input,
                    &mut available_out,
                    &mut written,
                    &mut out,
                    &mut total,
                    state,
                );
                input.advance(read.min(input.len()));
                out.truncate(written);
                match result {
                    brotli::BrotliResult::ResultFailure => Err(Broken),
                    // What follows the end belongs to no stream.
                    brotli::BrotliResult::ResultSuccess if !input.is_empty() => Err(Broken),
                    _ => Ok(out),
                }
            }
            Self::Zstd(decoder, open) => {
                let mut out = vec![0; OUTPUT];
                let mut from = InBuffer::around(input);
                let mut to = OutBuffer::around(out.as_mut_slice());
                let left = decoder.run(&mut from, &mut to).map_err(|_| Broken)?;
                let (read, written) = (from.pos(), to.pos());
                if read > 0 || written > 0 {
                    *open = left != 0;
                }
                input.advance(read);
                out.truncate(written);
                Ok(out)
            }
        }
    }
    /// What is left when the input has ended; broken if it ended too early.
    pub fn finish(self) -> Result<Vec<u8>, Broken> {
        match self {
            // Nothing at all is an empty body.
            Self::Gzip(_, false) | Self::Brotli(_, false) => Ok(Vec::new()),
            Self::Gzip(decoder, true) => decoder.finish().map_err(|_| Broken),
            Self::Brotli(mut state, true) => {
                match brotli::BrotliDecompressStream(&mut 0, &mut 0, &[], &mut 0, &mut 0, &mut [], &mut 0, &mut state) {
                    brotli::BrotliResult::ResultSuccess => Ok(Vec::new()),
                    _ => Err(Broken),
                }
            }
            Self::Zstd(_, open) if open => Err(Broken),
            Self::Zstd(..) => Ok(Vec::new()),
        }
    }
}
