//! rustls contexts from Envoy TLS configuration and SDS secrets.
