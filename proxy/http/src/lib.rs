//! HTTP/1 codec of our own, HTTP/2 by h2, one seam above both.
