//! Substitution formatter and access logs.
