//! Text for people: numbers with units, days, errors with their causes; and writing to standard output.

use std::error::Error;
use std::io::{self, Write};
use std::time::SystemTime;

/// Writes text to standard output. Ends the process if its reader has read enough, such as `head`.
///
/// # Errors
/// Standard output is closed or full.
pub fn print(text: &str) -> Result<(), String> {
    print_bytes(text.as_bytes())
}

/// Writes JSON, indented, to standard output.
///
/// # Errors
/// As [`print()`].
pub(super) fn print_json(value: &serde_json::Value) -> Result<(), super::CommandError> {
    Ok(print(&format!("{value:#}\n"))?)
}

/// Writes bytes to standard output.
///
/// # Errors
/// As [`print()`].
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), String> {
    let mut out = io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|error| {
        if error.kind() == io::ErrorKind::BrokenPipe {
            // As SIGPIPE does in other programs; `log tail` would otherwise print to nobody.
            std::process::exit(0);
        }
        format!("cannot write to standard output: {error}")
    })
}

/// An error and its causes in one line.
pub(super) fn text_with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text.push_str(": ");
        text.push_str(&deeper.to_string());
        cause = deeper.source();
    }
    text
}

/// A day, such as `2026-11-30`.
pub(super) fn date_of(time: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text[..10].to_owned()
}

/// `1 site`, `2 sites`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// `1.5 GiB`: three digits and a unit.
pub fn size_text(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit > 0 && value < 100.0 { 1 } else { 0 };
    format!("{value:.digits$} {}", units[unit])
}

/// A table whose columns are as wide as their longest cell.
pub(super) fn aligned(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let rows: Vec<&Vec<String>> = std::iter::once(&head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &&Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
