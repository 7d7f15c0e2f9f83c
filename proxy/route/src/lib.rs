//! Compiled route tables: virtual hosts, matching, rewriting, redirects.
