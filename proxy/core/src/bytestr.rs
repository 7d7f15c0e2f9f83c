//! An immutable UTF-8 string over `Bytes`: cheap to clone and to slice, borrowed from the read buffer it arrived in.

use bytes::Bytes;
use std::{fmt, ops::Deref, str::Utf8Error};

/// UTF-8 text backed by `Bytes`.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteStr(Bytes);

impl ByteStr {
    /// Borrows a static string without a copy.
    pub const fn from_static(s: &'static str) -> Self {
        Self(Bytes::from_static(s.as_bytes()))
    }
    /// Takes `bytes` if they are UTF-8; gives the error otherwise.
    pub fn from_utf8(bytes: Bytes) -> Result<Self, Utf8Error> {
        std::str::from_utf8(&bytes)?;
        Ok(Self(bytes))
    }
    /// The text.
    pub fn as_str(&self) -> &str {
        // Every constructor checked; the empty string stands for the impossible case.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
    /// The bytes behind the text.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
    /// The bytes behind the text.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}
impl Deref for ByteStr {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}
impl AsRef<str> for ByteStr {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}
impl From<String> for ByteStr {
    fn from(s: String) -> Self {
        Self(Bytes::from(s))
    }
}
impl From<&str> for ByteStr {
    fn from(s: &str) -> Self {
        Self(Bytes::copy_from_slice(s.as_bytes()))
    }
}
impl PartialEq<str> for ByteStr {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}
impl PartialEq<&str> for ByteStr {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}
impl fmt::Debug for ByteStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}
impl fmt::Display for ByteStr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
