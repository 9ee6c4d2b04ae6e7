//! Reading a state file's text, whatever kind of file the path names.
//!
//! Owns the checks before anything is read: a pipe would never end, and a disk image must be
//! neither read into memory nor printed. Never knows what a state means.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;

use super::StateError;
use crate::lines::{MOST_SAID, shown};

/// The most bytes of a state: thousands of layers take one or two million.
#[cfg(not(test))]
const LONGEST: u64 = 64 << 20;
#[cfg(test)]
const LONGEST: u64 = 1 << 20;

/// The text of the state file `path`; none if there is no file.
pub(super) fn read(path: &Path) -> Result<Option<String>, StateError> {
    let failed = |source| StateError::Io { what: "read", path: path.to_owned(), source };
    let bad = |why: String| Err(StateError::Bad { path: path.to_owned(), why });
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if !meta.is_file() {
        return bad("it is no regular file".to_owned());
    }
    if meta.len() > LONGEST {
        return bad(format!("it has {} bytes, and no state is as long", meta.len()));
    }
    std::fs::read_to_string(path).map(Some).map_err(failed)
}

/// Refuses to write a state that no start would read.
pub(super) fn refuse_longer(path: &Path, text: &str) -> Result<(), StateError> {
    let bytes = text.len() as u64;
    if bytes <= LONGEST {
        return Ok(());
    }
    Err(StateError::TooLong { path: path.to_owned(), bytes, most: LONGEST })
}

/// The error in `text` and its line number, with little of the line: it may be the whole file, and so may
/// a word of it.
pub(super) fn wrong(text: &str, at: Option<Range<usize>>, what: &str) -> String {
    let start = at.map_or(0, |at| at.start);
    let line = text.get(..start).map_or(0, |before| before.matches('\n').count()) + 1;
    format!("line {line}: {}", shown(&what.replace('\n', "; "), MOST_SAID))
}
