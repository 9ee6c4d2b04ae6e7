//! Answers on standard output: lines for people, JSON for scripts.

use std::io::{self, Write};
use std::path::Path;

use serde::{Serialize, Serializer};

use super::CliError;

/// Prints one line.
///
/// # Errors
/// Standard output cannot be written; a reader that has gone is not an error.
pub fn line(text: &str) -> Result<(), CliError> {
    checked(writeln!(io::stdout().lock(), "{text}"))
}

/// Prints `value` as one line of JSON.
///
/// # Errors
/// As [`line`].
pub fn json<T: Serialize>(value: &T) -> Result<(), CliError> {
    // Completely or not at all: a script cannot use a part of a value.
    let text = serde_json::to_string(value).map_err(io::Error::from);
    checked(text.and_then(|text| writeln!(io::stdout().lock(), "{text}")))
}

/// Puts a file's name into JSON, which is UTF-8; other bytes of a name become U+FFFD. The command
/// has already done its work, so a name must not make it fail.
///
/// # Errors
/// The serializer's.
pub fn name<P: AsRef<Path>, S: Serializer>(path: &P, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.as_ref().to_string_lossy())
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

/// Converts the result of a write to standard output.
///
/// # Errors
/// The result's error, unless the reader has gone (`snapblk dump … | head`).
pub fn checked(result: io::Result<()>) -> Result<(), CliError> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(CliError::io("write to", Path::new("standard output"))),
    }
}
