//! The admin endpoints of Envoy.
