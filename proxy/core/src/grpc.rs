//! Status codes of gRPC and what they are in HTTP. Used on workers by the connection manager and by calls of the proxy's own.

/// Envoy's mapping of HTTP to gRPC status (gRPC's `http-grpc-status-mapping`).
pub fn grpc_from_http(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// HTTP status of a gRPC status, for `upstream_rq` stats of gRPC responses (Envoy's `grpcToHttpStatus`).
pub fn http_from_grpc(status: u32) -> u16 {
    match status {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}
