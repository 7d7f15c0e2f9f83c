//! Secrets in the form that rustls uses: parsed, checked and ready.

/// A parsed secret.
#[derive(Debug)]
pub enum Material {
    /// `GenericSecret.secret`.
    Generic(Vec<u8>),
}
