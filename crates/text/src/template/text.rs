//! Work on strings that filters and methods share: charged for, then done.

use std::fmt::Write;

use minijinja::{Error, ErrorKind, State, Value as Jinja};

use super::meter::Meter;

/// The widest indentation, in bytes.
const MAX_INDENT: usize = 256;

/// Which end of a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Both,
    Start,
    End,
}

/// `text` without white space, or without any of `chars`, at its ends. Each character of one is compared with each of
/// the other.
pub(super) fn strip(state: &State<'_, '_>, text: &str, chars: Option<&str>, side: Side) -> Result<Jinja, Error> {
    let chars: Option<Vec<char>> = match chars {
        None => None,
        Some(chars) => {
            Meter::charge(state, |meter| {
                meter.make(0, chars.len().saturating_mul(4))?;
                meter.spend((text.len() as u64).saturating_mul(chars.len() as u64) / 16)
            })?;
            Some(chars.chars().collect())
        }
    };
    let is_cut = |c: char| chars.as_ref().map_or_else(|| c.is_whitespace(), |chars| chars.contains(&c));
    Ok(Jinja::from(match side {
        Side::Both => text.trim_matches(is_cut),
        Side::Start => text.trim_start_matches(is_cut),
        Side::End => text.trim_end_matches(is_cut),
    }))
}

/// `text` with `old` replaced, at most `count` times where that is not negative.
pub(super) fn replaced(
    state: &State<'_, '_>,
    text: &str,
    old: &str,
    new: &str,
    count: Option<i64>,
) -> Result<String, Error> {
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let times = text.matches(old).take(count).count();
    Meter::charge(state, |meter| meter.make(0, text.len().saturating_add(times.saturating_mul(new.len()))))?;
    Ok(text.replacen(old, new, count))
}

/// `items` as text, with `joiner` between them.
pub(super) fn joined(state: &State<'_, '_>, joiner: &str, items: &[Jinja]) -> Result<String, Error> {
    Meter::charge(state, |meter| {
        meter.make(0, items.len().saturating_mul(joiner.len()))?;
        for item in items {
            meter.walk(item)?;
            meter.make(0, item.as_str().map_or(0, str::len))?;
        }
        Ok(())
    })?;
    let mut output = String::new();
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            output.push_str(joiner);
        }
        match item.as_str() {
            Some(text) => output.push_str(text),
            None => _ = write!(output, "{item}"),
        }
    }
    Ok(output)
}

/// `text` with its lines but the first indented, as Jinja's `indent` does.
pub(super) fn indented(
    state: &State<'_, '_>,
    text: &str,
    width: &Jinja,
    first: bool,
    blank: bool,
) -> Result<String, Error> {
    let indent = match (width.as_str(), width.as_usize()) {
        (Some(text), _) if text.len() <= MAX_INDENT => text.to_string(),
        (None, Some(width)) if width <= MAX_INDENT => " ".repeat(width),
        _ => {
            let what = format!("indent: the width is 0 to {MAX_INDENT}, or a string of as many bytes");
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
    };
    let lines = text.bytes().filter(|&byte| byte == b'\n').count() + 1;
    Meter::charge(state, |meter| meter.make(0, text.len().saturating_add(lines.saturating_mul(indent.len()))))?;
    let mut output = String::new();
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            output.push('\n');
        }
        let is_indented = if index == 0 { first } else { blank || !line.trim_end_matches('\r').is_empty() };
        if is_indented {
            output.push_str(&indent);
        }
        output.push_str(line);
    }
    Ok(output)
}

/// The first character in upper case, the others in lower case.
pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &chars.as_str().to_lowercase()
}

/// `text` with the characters replaced that HTML gives a meaning, as Python's `markupsafe` does.
pub(super) fn html(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => output.push_str("&amp;"),
            '<' => output.push_str("&lt;"),
            '>' => output.push_str("&gt;"),
            '\'' => output.push_str("&#39;"),
            '"' => output.push_str("&#34;"),
            c => output.push(c),
        }
    }
    output
}
