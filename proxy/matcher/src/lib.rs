//! Compiled string, header, path, query and metadata matchers.
