//! Outlier detection: which hosts answer badly, and for how long they are left out. Consecutive counters act at once on the
//! worker that sees the result; success rates and ejection times are the control thread's. Source: Envoy's
//! `envoy/config/cluster/v3/outlier_detection.proto` and `outlier_detection_impl.cc`.

/// What happened to a request or connection; Envoy's `Upstream::Outlier::Result` and `putHttpResponseCode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this code (gRPC status already mapped to HTTP by the caller, as Envoy's router does).
    HttpCode(u16),
    /// Connecting worked; a TCP connection is up.
    LocalOriginConnectSuccess,
    /// The request was answered in full (local origin view of an HTTP exchange).
    LocalOriginConnectSuccessFinal,
    /// Connecting failed, or the connection was lost before an answer.
    LocalOriginConnectFailed,
    /// No answer in time: connect timeout, per-try timeout, global timeout.
    LocalOriginTimeout,
    /// A remote request failed after it was sent (external origin; non-HTTP protocols).
    ExternalOriginRequestFailed,
    /// A remote request worked (external origin; non-HTTP protocols).
    ExternalOriginRequestSuccess,
}

/// Outlier state of one host.
#[derive(Debug, Default)]
pub struct HostMonitor {}
