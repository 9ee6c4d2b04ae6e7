//! Answers on standard output: lines for people, JSON for scripts.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::CliError;

/// Prints one line.
///
/// # Errors
/// Standard output cannot be written; that its reader has gone is none.
pub fn line(text: &str) -> Result<(), CliError> {
    checked(writeln!(io::stdout().lock(), "{text}"))
}

/// Prints `value` as one line of JSON.
///
/// # Errors
/// As [`line`].
pub fn json<T: Serialize>(value: &T) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    let written = serde_json::to_writer(&mut out, value).map_err(io::Error::from);
    checked(written.and_then(|()| writeln!(out)))
}

/// Prints names and values, the values in one column.
///
/// # Errors
/// As [`line`].
pub fn fields(rows: &[(&str, String)]) -> Result<(), CliError> {
    let width = rows.iter().map(|(name, _)| name.len() + 1).max().unwrap_or(0);
    let mut out = io::stdout().lock();
    for (name, value) in rows {
        checked(writeln!(out, "{:width$} {value}", format!("{name}:")))?;
    }
    Ok(())
}

/// Turns the result of writing to standard output into a command's.
///
/// # Errors
/// The result's, unless it only says that the reader has gone (`snapblk dump … | head`).
pub fn checked(result: io::Result<()>) -> Result<(), CliError> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(CliError::io("write to", Path::new("standard output"))),
    }
}
