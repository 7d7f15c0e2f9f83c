//! `/stats` and `/stats/prometheus`.

use nuncio_stats::{HistogramBuckets, Kind, Query};

use crate::Backend;
use crate::help::escape;
use crate::reply::{HTML, JSON, Reply, Stop, TEXT};
use crate::request::Request;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
    Prometheus,
    Html,
}

pub(crate) async fn answer(backend: &dyn Backend, request: &Request, reply: &mut Reply<'_>, prometheus: bool) -> Result<(), Stop> {
    let (query, format) = match parse(request, prometheus) {
        Ok(parsed) => parsed,
        Err(text) => {
            reply.text(400, &text);
            return Ok(());
        }
    };
    let store = backend.stats();
    let chunks = match format {
        Format::Json => store.json(&query),
        Format::Prometheus => store.prometheus(&query),
        Format::Text | Format::Html => store.text(&query),
    };
    reply.start(
        200,
        match format {
            Format::Json => JSON,
            Format::Html => HTML,
            Format::Text | Format::Prometheus => TEXT,
        },
    );
    if format == Format::Html {
        reply.out.extend_from_slice(
            b"<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n<title>Nuncio stats</title>\n</head>\n<body>\n<pre>\n",
        );
    }
    if request.param("hidden") != Some("only") {
        for chunk in chunks {
            match format {
                Format::Html => reply.out.extend_from_slice(escape(&chunk).as_bytes()),
                _ => reply.out.extend_from_slice(chunk.as_bytes()),
            }
            reply.piece().await?;
        }
    }
    if format == Format::Html {
        reply.out.extend_from_slice(b"</pre>\n</body>\n</html>\n");
    }
    Ok(())
}

fn parse(request: &Request, prometheus: bool) -> Result<(Query, Format), String> {
    let histogram_buckets = match request.value("histogram_buckets") {
        None => HistogramBuckets::Default,
        Some(text) => HistogramBuckets::parse(text)
            .ok_or("usage: /stats?histogram_buckets=(cumulative|disjoint|detailed|summary|prometheusnative)\n")?,
    };
    // Nothing is hidden here, so that `include` and `exclude` show the same.
    if request.value("hidden").is_some_and(|h| !matches!(h, "include" | "only" | "exclude")) {
        return Err("usage: /stats?hidden=(include|only|exclude)\n\n".to_string());
    }
    let kind = match request.value("type") {
        None | Some("All") => None,
        Some("Counters") => Some(Kind::Counter),
        Some("Gauges") => Some(Kind::Gauge),
        Some("Histograms") => Some(Kind::Histogram),
        Some("TextReadouts") => Some(Kind::TextReadout),
        Some(_) => return Err("invalid &type= param\n".to_string()),
    };
    let format = match request.value("format") {
        _ if prometheus => Format::Prometheus,
        None | Some("text") => Format::Text,
        Some("json") => Format::Json,
        Some("prometheus") => Format::Prometheus,
        Some("html" | "active-html") => Format::Html,
        Some(_) => return Err("usage: /stats?format=(html|active-html|json|prometheus|text)\n\n".to_string()),
    };
    let query = Query {
        used_only: request.has("usedonly"),
        invert_filter: request.has("invert_filter"),
        kind,
        histogram_buckets,
        text_readouts: request.has("text_readouts"),
        ..Query::default()
    };
    match request.value("filter") {
        None => Ok((query, format)),
        Some(filter) => {
            query.filter(filter).map(|q| (q, format)).map_err(|e| format!("Invalid re2 regex: {}: {filter}\n", regex_problem(&e)))
        }
    }
}

/// The last line of a regex error, which says what is wrong; the lines before quote the pattern.
pub(crate) fn regex_problem(error: &str) -> &str {
    let last = error.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last)
}
