//! Envoy HTTP filters, one file each.
