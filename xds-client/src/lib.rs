//! xDS sessions as state machines without I/O, and a thin gRPC transport.
