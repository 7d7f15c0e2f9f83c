//! Checks that both codecs share, as Envoy's `HeaderUtility` and `Http::Utility` do them. Pure functions.
