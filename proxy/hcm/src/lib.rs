//! The HTTP connection manager and the router filter.
