//! Istio filters and telemetry.
