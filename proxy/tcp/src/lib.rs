//! The tcp_proxy filter.
