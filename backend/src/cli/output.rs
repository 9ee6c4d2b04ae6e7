//! Answers on standard output: lines for people, JSON for scripts.

use std::io::{self, Write};
use std::path::Path;

use serde::{Serialize, Serializer};

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
    // As a whole or not at all: half a value is of no use to a script.
    let text = serde_json::to_string(value).map_err(io::Error::from);
    checked(text.and_then(|text| writeln!(io::stdout().lock(), "{text}")))
}

/// Puts a file's name into JSON, which is UTF-8; bytes of a name that is not become U+FFFD. By then
/// the command has done what it was asked to, so a name is no reason to fail.
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
