//! The names that a state takes: its file's, and those of the files beside it.
//!
//! Owns which names these are, whichever path leads to them. Never knows what the files hold.

use std::path::{Path, PathBuf};

use super::absolute;
use crate::device::error::DeviceError;

/// As many links are followed as the kernel follows.
const MOST_LINKS: usize = 40;

/// Where the file is that `path` names, through links that lead nowhere yet, too: a link is never replaced by
/// a file.
pub fn place_of_state(path: &Path) -> PathBuf {
    let mut place = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(leads_to) = std::fs::read_link(&place) else { return place };
        place = place.parent().unwrap_or(Path::new("")).join(leads_to);
    }
    path.to_owned()
}

/// The file that is locked for the state.
pub(super) fn lock_of(state: &Path) -> PathBuf {
    with_end(state, ".lock")
}

/// The file that a new state is written to.
pub(super) fn new_of(state: &Path) -> PathBuf {
    with_end(state, ".new")
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Refuses to use `path` for anything else if it is the name of the file `state`, or of one beside it.
///
/// # Errors
/// It is.
pub fn refuse_state_name(state: &Path, path: &Path) -> Result<(), DeviceError> {
    let state = place_of_state(state);
    let asked = exact(path);
    let taken = [lock_of(&state), new_of(&state), state];
    if taken.iter().all(|name| exact(name) != asked) {
        return Ok(());
    }
    Err(DeviceError::refused(format!(
        "this process keeps its state in {}, and {} cannot be anything else; name another file",
        taken[2].display(),
        path.display()
    )))
}

/// One path for all that lead to the same name.
fn exact(path: &Path) -> PathBuf {
    let place = absolute(&place_of_state(path));
    match (place.parent().map(Path::canonicalize), place.file_name()) {
        (Some(Ok(dir)), Some(name)) => dir.join(name),
        _ => place,
    }
}
