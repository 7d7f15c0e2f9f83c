//! Path templates: they compile or are refused, a path that matches is rewritten to a path, and a template without variables or wildcards
//! matches itself and nothing else.
use nuncio_matcher::{UriTemplate, UriTemplateRewrite};
use std::sync::Arc;

/// Lines: a template, a rewrite, a path.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.splitn(3, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (template, rewrite, path) = (line(), line(), line());
    let Ok(compiled) = UriTemplate::new(template) else { return };
    let compiled = Arc::new(compiled);
    let matches = compiled.matches(path);
    if !template.contains(['*', '{']) {
        assert_eq!(matches, path == template, "{template:?} {path:?}");
    }
    let Ok(rewrite) = UriTemplateRewrite::new(rewrite, &compiled) else { return };
    let rewritten = rewrite.rewrite(path);
    assert_eq!(rewritten.is_some(), matches, "{template:?} {path:?} {rewritten:?}");
    if let Some(rewritten) = rewritten {
        assert!(rewritten.starts_with('/'), "{rewritten:?}");
    }
}
