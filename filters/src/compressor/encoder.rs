//! The three compression libraries behind one type.

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderValue;
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3::TypedExtensionConfig;
use nuncio_proto::envoy::extensions::compression::brotli::compressor::v3::{Brotli, brotli::EncoderMode};
use nuncio_proto::envoy::extensions::compression::gzip::compressor::v3::Gzip;
use nuncio_proto::envoy::extensions::compression::zstd::compressor::v3::{Zstd, zstd::Strategy};
use nuncio_proto::typed;
use std::io::{self, Write};
use std::sync::Arc;
use zstd::zstd_safe::{CParameter, Strategy as Native};

/// A compiled library.
#[derive(Debug)]
pub struct Library {
    /// Value of `content-encoding`.
    pub encoding: HeaderValue,
    settings: Settings,
}

#[derive(Debug)]
enum Settings {
    Gzip(u32),
    Brotli { quality: u32, window: u32 },
    Zstd { level: i32, checksum: bool, strategy: Option<Strategy>, dictionary: Option<Arc<[u8]>> },
}

impl Library {
    pub fn compile(extension: &TypedExtensionConfig, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let at = at.field("typed_config");
        let Some(any) = &extension.typed_config else {
            report.error(&at, "nothing", "configure gzip, brotli or zstd");
            return None;
        };
        let unpacked = match typed::unpack(any) {
            Ok(unpacked) => unpacked,
            Err(e) => {
                report.error(&at, e, "configure gzip, brotli or zstd");
                return None;
            }
        };
        let config = &*unpacked.value;
        match unpacked.name.as_str() {
            "envoy.extensions.compression.gzip.compressor.v3.Gzip" => gzip(&crate::config::decode(config, &at, report)?, &at, report),
            "envoy.extensions.compression.brotli.compressor.v3.Brotli" => brotli(&crate::config::decode(config, &at, report)?, &at, report),
            "envoy.extensions.compression.zstd.compressor.v3.Zstd" => zstd(&crate::config::decode(config, &at, report)?, &at, report),
            other => {
                report.unsupported(&at, format_args!("compressor library {other}"));
                None
            }
        }
    }
    /// A new encoder; none if the library refuses its settings, which `compile` has tried.
    pub fn encoder(&self) -> Option<Encoder> {
        Some(match &self.settings {
            Settings::Gzip(level) => Encoder::Gzip(GzEncoder::new(Vec::new(), Compression::new(*level))),
            Settings::Brotli { quality, window } => {
                Encoder::Brotli(Box::new(brotli::CompressorWriter::new(Vec::new(), 4096, *quality, *window)))
            }
            Settings::Zstd { level, checksum, strategy, dictionary } => {
                let mut encoder = match dictionary {
                    Some(dictionary) => zstd::Encoder::with_dictionary(Vec::new(), *level, dictionary).ok()?,
                    None => zstd::Encoder::new(Vec::new(), *level).ok()?,
                };
                encoder.include_checksum(*checksum).ok()?;
                if let Some(native) = strategy.and_then(native) {
                    encoder.set_parameter(CParameter::Strategy(native)).ok()?;
                }
                Encoder::Zstd(Box::new(encoder))
            }
        })
    }
}

fn range(value: Option<u32>, default: u32, allowed: std::ops::RangeInclusive<u32>, at: &At<'_>, report: &mut Report) -> Option<u32> {
    let value = value.unwrap_or(default);
    if !allowed.contains(&value) {
        report.error(at, value.to_string(), format!("give a number from {} to {}", allowed.start(), allowed.end()));
        return None;
    }
    Some(value)
}

fn gzip(p: &Gzip, at: &At<'_>, report: &mut Report) -> Option<Library> {
    range(p.memory_level, 5, 1..=9, &at.field("memory_level"), report)?;
    range(p.window_bits, 12, 9..=15, &at.field("window_bits"), report)?;
    range(p.chunk_size, 4096, 4096..=65536, &at.field("chunk_size"), report)?;
    // These change how the same stream is found, not what it means to the receiver.
    for (name, set) in [
        ("memory_level", p.memory_level.is_some()),
        ("window_bits", p.window_bits.is_some()),
        ("compression_strategy", p.compression_strategy != 0),
    ] {
        if set {
            report.warning(
                &at.field(name),
                "a value",
                "Nuncio's gzip has one memory layout, a window of 15 bits and one strategy; ignored",
            );
        }
    }
    // The enum's numbers are zlib's levels; 0 is its default.
    let level = match p.compression_level {
        0 => 6,
        level @ 1..=9 => level.unsigned_abs(),
        level => {
            report.error(&at.field("compression_level"), level.to_string(), "use a level that gzip has");
            return None;
        }
    };
    Some(Library { encoding: HeaderValue::from_static("gzip"), settings: Settings::Gzip(level) })
}

fn brotli(p: &Brotli, at: &At<'_>, report: &mut Report) -> Option<Library> {
    let quality = range(p.quality, 3, 0..=11, &at.field("quality"), report)?;
    let window = range(p.window_bits, 18, 10..=24, &at.field("window_bits"), report)?;
    range(p.input_block_bits, 24, 16..=24, &at.field("input_block_bits"), report)?;
    range(p.chunk_size, 4096, 4096..=65536, &at.field("chunk_size"), report)?;
    let mode = EncoderMode::try_from(p.encoder_mode).unwrap_or_default();
    let tuned = !matches!(mode, EncoderMode::Default | EncoderMode::Generic);
    for (name, set) in [
        ("encoder_mode", tuned),
        ("input_block_bits", p.input_block_bits.is_some()),
        ("disable_literal_context_modeling", p.disable_literal_context_modeling),
    ] {
        if set {
            report.warning(&at.field(name), "a value", "it tunes the encoder, not what the receiver reads; ignored");
        }
    }
    Some(Library { encoding: HeaderValue::from_static("br"), settings: Settings::Brotli { quality, window } })
}

fn zstd(p: &Zstd, at: &At<'_>, report: &mut Report) -> Option<Library> {
    let level = range(p.compression_level, 3, 0..=22, &at.field("compression_level"), report)?;
    range(p.chunk_size, 4096, 4096..=65536, &at.field("chunk_size"), report)?;
    let Ok(strategy) = Strategy::try_from(p.strategy) else {
        report.error(&at.field("strategy"), p.strategy.to_string(), "use a strategy that zstd has");
        return None;
    };
    let dictionary = match &p.dictionary {
        None => None,
        Some(source) => Some(crate::config::read_source(source, &at.field("dictionary"), report)?.into()),
    };
    let settings = Settings::Zstd {
        level: i32::try_from(level).unwrap_or(3),
        checksum: p.enable_checksum,
        strategy: (strategy != Strategy::Default).then_some(strategy),
        dictionary,
    };
    let library = Library { encoding: HeaderValue::from_static("zstd"), settings };
    if library.encoder().is_none() {
        report.error(at, "settings that zstd refuses", "check level, strategy and dictionary");
        return None;
    }
    Some(library)
}

fn native(strategy: Strategy) -> Option<Native> {
    Some(match strategy {
        Strategy::Default => return None,
        Strategy::Fast => Native::ZSTD_fast,
        Strategy::Dfast => Native::ZSTD_dfast,
        Strategy::Greedy => Native::ZSTD_greedy,
        Strategy::Lazy => Native::ZSTD_lazy,
        Strategy::Lazy2 => Native::ZSTD_lazy2,
        Strategy::Btlazy2 => Native::ZSTD_btlazy2,
        Strategy::Btopt => Native::ZSTD_btopt,
        Strategy::Btultra => Native::ZSTD_btultra,
        Strategy::Btultra2 => Native::ZSTD_btultra2,
    })
}

/// A running encoder.
pub enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(Box<zstd::Encoder<'static, Vec<u8>>>),
}

impl Encoder {
    pub fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(e) => e.write_all(data),
            Self::Brotli(e) => e.write_all(data),
            Self::Zstd(e) => e.write_all(data),
        }
    }
    /// Makes everything written so far readable for the receiver.
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(e) => e.flush(),
            Self::Brotli(e) => e.flush(),
            Self::Zstd(e) => e.flush(),
        }
    }
    /// Bytes that are ready.
    pub fn ready(&self) -> usize {
        match self {
            Self::Gzip(e) => e.get_ref().len(),
            Self::Brotli(e) => e.get_ref().len(),
            Self::Zstd(e) => e.get_ref().len(),
        }
    }
    /// Takes what is ready.
    pub fn take(&mut self) -> Bytes {
        let out = match self {
            Self::Gzip(e) => e.get_mut(),
            Self::Brotli(e) => e.get_mut(),
            Self::Zstd(e) => e.get_mut(),
        };
        std::mem::take(out).into()
    }
    /// Ends the stream; gives the rest.
    pub fn finish(self) -> io::Result<Bytes> {
        Ok(match self {
            Self::Gzip(e) => e.finish()?,
            Self::Brotli(e) => e.into_inner(),
            Self::Zstd(e) => e.finish()?,
        }
        .into())
    }
}
