//! `/logging`: levels of the application log.

use crate::reply::Reply;
use crate::request::Request;
use crate::{Backend, LOG_LEVELS};

const USAGE: &str = "usage: /logging?<name>=<level> (change single level)\nusage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\nusage: /logging?level=<level> (change all levels)\nusage: /logging?group=<group_name>:<level> (change group of loggers)\n";

pub(crate) fn answer(backend: &dyn Backend, request: &Request, reply: &mut Reply<'_>) {
    let mut text = String::new();
    if let Err(error) = change(backend, request) {
        reply.status = 400;
        text = format!("error: {error}\n\n{USAGE}levels: {} \n", LOG_LEVELS.join(" "));
    }
    text.push_str("active loggers:\n");
    for (name, level) in backend.log_levels() {
        text.push_str(&format!("  {name}: {level}\n"));
    }
    text.push('\n');
    reply.out.extend_from_slice(text.as_bytes());
}

fn change(backend: &dyn Backend, request: &Request) -> Result<(), &'static str> {
    let params: Vec<_> = request.params().iter().filter(|(_, value)| !value.is_empty()).collect();
    let [(name, value)] = params.as_slice() else {
        return if params.is_empty() { Ok(()) } else { Err("invalid number of parameters") };
    };
    match name.as_str() {
        "level" => backend.set_log_level(None, level(value)?),
        "group" => return Err("group parameter requires fine-grain logging to be enabled"),
        "paths" => {
            let known = backend.log_levels();
            let mut changes = Vec::new();
            // All or nothing.
            for pair in value.split(',') {
                let (name, wanted) = pair.split_once(':').unwrap_or((pair, ""));
                if name.is_empty() || wanted.is_empty() {
                    return Err("empty logger name or empty logger level");
                }
                let wanted = level(wanted)?;
                if !known.iter().any(|(n, _)| n == name) {
                    return Err("unknown logger name");
                }
                changes.push((name, wanted));
            }
            changes.into_iter().for_each(|(name, level)| backend.set_log_level(Some(name), level));
        }
        name => {
            let wanted = level(value)?;
            if !backend.log_levels().iter().any(|(n, _)| n == name) {
                return Err("unknown logger name");
            }
            backend.set_log_level(Some(name), wanted);
        }
    }
    Ok(())
}

fn level(text: &str) -> Result<&'static str, &'static str> {
    let text = if text == "warn" { "warning" } else { text };
    LOG_LEVELS.into_iter().find(|l| *l == text).ok_or("unknown logger level")
}
