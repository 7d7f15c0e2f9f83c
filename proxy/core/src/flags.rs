//! Response flags: why a stream ended as it did. Names and long names are those of Envoy's `%RESPONSE_FLAGS%` and
//! `%RESPONSE_FLAGS_LONG%` (`envoy/stream_info/stream_info.h`, `stream_info/utility.cc`).

/// Marks that the end of retries was the first flag to be set.
const URX_FIRST: u64 = 1 << 63;

/// A set of response flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ResponseFlags(u64);

macro_rules! flags {
    ($($bit:literal $konst:ident $short:literal $long:literal;)*) => {
        impl ResponseFlags {
            $(#[doc = $long] pub const $konst: Self = Self(1 << $bit);)*
            const ALL: &'static [(Self, &'static str, &'static str)] = &[$((Self::$konst, $short, $long),)*];
        }
    };
}

flags! {
    0 FAILED_LOCAL_HEALTH_CHECK "LH" "FailedLocalHealthCheck";
    1 NO_HEALTHY_UPSTREAM "UH" "NoHealthyUpstream";
    2 UPSTREAM_REQUEST_TIMEOUT "UT" "UpstreamRequestTimeout";
    3 LOCAL_RESET "LR" "LocalReset";
    4 UPSTREAM_REMOTE_RESET "UR" "UpstreamRemoteReset";
    5 UPSTREAM_CONNECTION_FAILURE "UF" "UpstreamConnectionFailure";
    6 UPSTREAM_CONNECTION_TERMINATION "UC" "UpstreamConnectionTermination";
    7 UPSTREAM_OVERFLOW "UO" "UpstreamOverflow";
    8 NO_ROUTE_FOUND "NR" "NoRouteFound";
    9 DELAY_INJECTED "DI" "DelayInjected";
    10 FAULT_INJECTED "FI" "FaultInjected";
    11 RATE_LIMITED "RL" "RateLimited";
    12 UNAUTHORIZED_EXTERNAL_SERVICE "UAEX" "UnauthorizedExternalService";
    13 RATE_LIMIT_SERVICE_ERROR "RLSE" "RateLimitServiceError";
    14 DOWNSTREAM_CONNECTION_TERMINATION "DC" "DownstreamConnectionTermination";
    15 UPSTREAM_RETRY_LIMIT_EXCEEDED "URX" "UpstreamRetryLimitExceeded";
    16 STREAM_IDLE_TIMEOUT "SI" "StreamIdleTimeout";
    17 INVALID_ENVOY_REQUEST_HEADERS "IH" "InvalidEnvoyRequestHeaders";
    18 DOWNSTREAM_PROTOCOL_ERROR "DPE" "DownstreamProtocolError";
    19 UPSTREAM_MAX_STREAM_DURATION_REACHED "UMSDR" "UpstreamMaxStreamDurationReached";
    20 RESPONSE_FROM_CACHE_FILTER "RFCF" "ResponseFromCacheFilter";
    21 NO_FILTER_CONFIG_FOUND "NFCF" "NoFilterConfigFound";
    22 DURATION_TIMEOUT "DT" "DurationTimeout";
    23 UPSTREAM_PROTOCOL_ERROR "UPE" "UpstreamProtocolError";
    24 NO_CLUSTER_FOUND "NC" "NoClusterFound";
    25 OVERLOAD_MANAGER "OM" "OverloadManagerTerminated";
    26 DNS_RESOLUTION_FAILED "DF" "DnsResolutionFailed";
    27 DROP_OVERLOAD "DO" "DropOverload";
    28 DOWNSTREAM_REMOTE_RESET "DR" "DownstreamRemoteReset";
    29 UNCONDITIONAL_DROP_OVERLOAD "UDO" "UnconditionalDropOverload";
    // Of our own: refused by nuncio.filters.http.concurrency_queue.
    30 CONCURRENCY_QUEUE "CQ" "ConcurrencyQueue";
}

impl ResponseFlags {
    /// Adds `flag`.
    pub fn set(&mut self, flag: Self) {
        if self.0 == 0 && flag.0 == Self::UPSTREAM_RETRY_LIMIT_EXCEEDED.0 {
            self.0 = URX_FIRST;
        }
        self.0 |= flag.0;
    }
    /// Removes `flag`.
    pub fn clear(&mut self, flag: Self) {
        self.0 &= !flag.0;
        if !self.has(Self::UPSTREAM_RETRY_LIMIT_EXCEEDED) {
            self.0 &= !URX_FIRST;
        }
    }
    /// Whether any of `flag` is set.
    pub fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }
    /// Whether none is set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// Parses a short name (`UH`).
    pub fn from_short(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, s, _)| *s == name).map(|(f, _, _)| *f)
    }
    /// The set flags as (short, long) names. Envoy tells them in the order in which they were set; the one case where that differs from
    /// the order of bits is the router's, which decides the end of retries before it tells the failure.
    pub fn names(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let first = if self.0 & URX_FIRST == 0 { 0 } else { Self::UPSTREAM_RETRY_LIMIT_EXCEEDED.0 };
        let of = move |set: u64| Self::ALL.iter().filter(move |(f, _, _)| set & f.0 != 0).map(|(_, s, l)| (*s, *l));
        of(self.0 & first).chain(of(self.0 & !first))
    }
    /// `UF,URX`; `-` if none.
    pub fn short(self) -> String {
        let all: Vec<_> = self.names().map(|(s, _)| s).collect();
        if all.is_empty() { "-".to_string() } else { all.join(",") }
    }
    /// The raw bits, for compact comparison.
    pub fn bits(self) -> u64 {
        self.0 & !URX_FIRST
    }
}
