//! Generates Rust types for the protobuf messages that Nuncio compiles: from the descriptors of Envoy and Istio, and from our own
//! `.proto` files under `nuncio/`. The roots below name what the proxy reads; whatever they import comes with them. Both sets of
//! descriptors together are what JSON is read and written by.
#![allow(clippy::expect_used, clippy::panic)] // A build script can only stop.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

const ROOTS: &[&str] = &[
    "envoy/admin/v3/",
    "envoy/config/accesslog/v3/",
    "envoy/config/bootstrap/v3/",
    "envoy/config/cluster/v3/",
    "envoy/config/core/v3/",
    "envoy/config/endpoint/v3/",
    "envoy/config/listener/v3/",
    "envoy/config/metrics/v3/",
    "envoy/config/route/v3/",
    "envoy/config/trace/v3/http_tracer.proto",
    "envoy/config/trace/v3/opentelemetry.proto",
    "envoy/config/trace/v3/zipkin.proto",
    "envoy/config/rbac/v3/",
    "envoy/data/accesslog/v3/",
    "envoy/data/cluster/v3/",
    "envoy/extensions/access_loggers/file/",
    "envoy/extensions/access_loggers/stream/",
    "envoy/extensions/access_loggers/grpc/",
    "envoy/extensions/access_loggers/open_telemetry/",
    "envoy/extensions/access_loggers/filters/cel/",
    "envoy/extensions/clusters/",
    "envoy/extensions/common/",
    "envoy/extensions/compression/",
    "envoy/extensions/early_data/",
    "envoy/extensions/filters/common/",
    "envoy/extensions/filters/http/admission_control/",
    "envoy/extensions/filters/http/api_key_auth/",
    "envoy/extensions/filters/http/bandwidth_limit/",
    "envoy/extensions/filters/http/basic_auth/",
    "envoy/extensions/filters/http/buffer/",
    "envoy/extensions/filters/http/compressor/",
    "envoy/extensions/filters/http/cors/",
    "envoy/extensions/filters/http/csrf/",
    "envoy/extensions/filters/http/custom_response/",
    "envoy/extensions/filters/http/decompressor/",
    "envoy/extensions/filters/http/dynamic_forward_proxy/",
    "envoy/extensions/filters/http/ext_authz/",
    "envoy/extensions/filters/http/fault/",
    "envoy/extensions/filters/http/grpc_stats/",
    "envoy/extensions/filters/http/grpc_web/",
    "envoy/extensions/filters/http/header_mutation/",
    "envoy/extensions/filters/http/header_to_metadata/",
    "envoy/extensions/filters/http/health_check/",
    "envoy/extensions/filters/http/ip_tagging/",
    "envoy/extensions/filters/http/jwt_authn/",
    "envoy/extensions/filters/http/local_ratelimit/",
    "envoy/extensions/filters/http/lua/",
    "envoy/extensions/filters/http/on_demand/",
    "envoy/extensions/filters/http/original_src/",
    "envoy/extensions/filters/http/ratelimit/",
    "envoy/extensions/filters/http/rbac/",
    "envoy/extensions/filters/http/router/",
    "envoy/extensions/filters/http/set_filter_state/",
    "envoy/extensions/filters/http/set_metadata/",
    "envoy/extensions/filters/http/stateful_session/",
    "envoy/extensions/filters/listener/",
    "envoy/extensions/filters/network/connection_limit/",
    "envoy/extensions/filters/network/direct_response/",
    "envoy/extensions/filters/network/echo/",
    "envoy/extensions/filters/network/ext_authz/",
    "envoy/extensions/filters/network/http_connection_manager/",
    "envoy/extensions/filters/network/local_ratelimit/",
    "envoy/extensions/filters/network/mongo_proxy/",
    "envoy/extensions/filters/network/ratelimit/",
    "envoy/extensions/filters/network/rbac/",
    "envoy/extensions/filters/network/set_filter_state/",
    "envoy/extensions/filters/network/sni_cluster/",
    "envoy/extensions/filters/network/sni_dynamic_forward_proxy/",
    "envoy/extensions/filters/network/tcp_proxy/",
    "envoy/extensions/formatter/",
    "envoy/extensions/health_checkers/",
    "envoy/extensions/health_check/",
    "envoy/extensions/http/",
    "envoy/extensions/internal_redirect/",
    "envoy/extensions/load_balancing_policies/",
    "envoy/extensions/matching/",
    "envoy/extensions/network/",
    "envoy/extensions/path/",
    "envoy/extensions/rbac/",
    "envoy/extensions/request_id/",
    "envoy/extensions/resource_monitors/",
    "envoy/extensions/retry/",
    "envoy/extensions/router/cluster_specifiers/matcher/",
    "envoy/extensions/transport_sockets/",
    "envoy/extensions/upstreams/",
    "envoy/service/accesslog/v3/",
    "envoy/service/auth/v3/",
    "envoy/service/discovery/v3/",
    "envoy/service/load_stats/v3/",
    "envoy/service/ratelimit/v3/",
    "envoy/type/",
    "contrib/envoy/extensions/filters/http/peer_metadata/",
    "contrib/envoy/extensions/filters/network/metadata_exchange/",
    "contrib/envoy/extensions/filters/network/peer_metadata/",
    "envoy/config/filter/http/alpn/",
    "envoy/extensions/stats/",
    "extensions/stats/",
    "stats/",
    "udpa/type/v1/",
    "xds/type/",
    "xds/core/v3/",
    "google/rpc/status.proto",
    "nuncio/",
];

fn closure(set: FileDescriptorSet) -> FileDescriptorSet {
    let by_name: BTreeMap<String, FileDescriptorProto> = set.file.iter().map(|f| (f.name().to_string(), f.clone())).collect();
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    let mut stack: Vec<String> = by_name
        .values()
        .filter(|f| ROOTS.iter().any(|r| f.name().starts_with(r)) || f.package() == "stats")
        .map(|f| f.name().to_string())
        .collect();
    while let Some(name) = stack.pop() {
        if !wanted.insert(name.clone()) {
            continue;
        }
        if let Some(f) = by_name.get(&name) {
            stack.extend(f.dependency.iter().cloned());
        }
    }
    FileDescriptorSet { file: set.file.into_iter().filter(|f| wanted.contains(f.name())).collect() }
}

/// The descriptors of the files under `nuncio/`, which may import any of `known`.
fn compile_own(known: &[u8]) -> Vec<u8> {
    use protox::file::{ChainFileResolver, DescriptorSetFileResolver, GoogleFileResolver, IncludeFileResolver};
    let mut resolver = ChainFileResolver::new();
    resolver.add(IncludeFileResolver::new(PathBuf::from(".")));
    resolver.add(DescriptorSetFileResolver::decode(known).expect("read descriptors"));
    resolver.add(GoogleFileResolver::new());
    let mut compiler = protox::Compiler::with_file_resolver(resolver);
    let mut files = Vec::new();
    find(Path::new("nuncio"), &mut files);
    files.sort();
    for file in files {
        if let Err(e) = compiler.open_file(&file) {
            panic!("{}: {e:?}", file.display());
        }
    }
    compiler.encode_file_descriptor_set()
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("read folder of .proto files") {
        let path = entry.expect("read folder of .proto files").path();
        if path.is_dir() {
            find(&path, files);
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=xds-descriptors.binpb.gz");
    println!("cargo:rerun-if-changed=nuncio");
    let packed = std::fs::read("xds-descriptors.binpb.gz").expect("read descriptors");
    let mut raw = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut raw).expect("unpack descriptors");
    // Sets of descriptors are joined by laying their bytes end to end; options that prost does not know survive that.
    let own = compile_own(&raw);
    raw.extend_from_slice(&own);
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("OUT_DIR"));
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&raw).expect("pack descriptors");
    std::fs::write(out.join("descriptors.binpb.gz"), packed.finish().expect("pack descriptors")).expect("write descriptors");
    let set = closure(FileDescriptorSet::decode(raw.as_slice()).expect("decode descriptors"));
    let mut config = prost_build::Config::new();
    config
        .btree_map(["."])
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        .include_file("all.rs")
        .compile_fds(set)
        .expect("generate types");
    println!("cargo:rustc-env=NUNCIO_PROTO={}", out.join("all.rs").display());
}
