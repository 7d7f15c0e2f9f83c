//! Status codes of gRPC and what they are in HTTP, and its timeouts. Used on workers by the connection manager and by calls of the proxy's own.

use std::time::Duration;

/// The most that fits into the eight digits of `grpc-timeout`.
const MOST: u64 = 99_999_999;

/// A value of `grpc-timeout` in the finest unit, from milliseconds on, that holds it (Envoy's `toGrpcTimeout`).
pub fn grpc_timeout_value(timeout: Duration) -> String {
    let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let (seconds, minutes, hours) = (millis / 1000, millis / 60_000, millis / 3_600_000);
    match () {
        () if millis <= MOST => format!("{millis}m"),
        () if seconds <= MOST => format!("{seconds}S"),
        () if minutes <= MOST => format!("{minutes}M"),
        () => format!("{}H", hours.min(MOST)),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_take_the_finest_unit_that_fits() {
        for (millis, said) in [
            (0, "0m"),
            (250, "250m"),
            (99_999_999, "99999999m"),
            (100_000_000, "100000S"),
            (99_999_999_999, "99999999S"),
            (100_000_000_000, "1666666M"),
            (u64::MAX, "99999999H"),
        ] {
            assert_eq!(grpc_timeout_value(Duration::from_millis(millis)), said);
        }
    }
}
