//! The file that a new state is written to before it takes the place of the old one.
//!
//! Owns its name, beside the state's, and that no file of a user is lost to it: what has the name is
//! replaced only if a killed process left it. Never knows what a state says.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use super::VERSION;
use super::names::new_of;
use crate::io::durable::sync_file;

/// Makes the file that will replace the one at `state`.
pub(super) fn create(state: &Path) -> io::Result<(PathBuf, File)> {
    let new = new_of(state);
    let mut options = File::options();
    // Not through a link, either.
    options.write(true).create_new(true);
    let file = match options.open(&new) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            if !is_left_over(&new)? {
                let new = new.display();
                return Err(io::Error::other(format!(
                    "a new one is written to {new} first, which is there and is no state file; \
                     move it away"
                )));
            }
            std::fs::remove_file(&new)?;
            options.open(&new)?
        }
        opened => opened?,
    };
    Ok((new, file))
}

/// Whether `path` is a state, or as much of one as was written before a kill.
fn is_left_over(path: &Path) -> io::Result<bool> {
    if !std::fs::symlink_metadata(path)?.is_file() {
        return Ok(false);
    }
    let begins = format!("version = {VERSION}\ngeneration = ");
    let mut found = Vec::new();
    File::open(path)?.take(begins.len() as u64).read_to_end(&mut found)?;
    Ok(begins.as_bytes().starts_with(&found))
}

/// Restores `text` as the content of the file at `state`: all of it or the present content, also
/// after a power cut.
pub(super) fn put_back(state: &Path, text: &str) -> io::Result<()> {
    let (new, mut file) = create(state)?;
    file.write_all(text.as_bytes())?;
    sync_file(&file)?;
    std::fs::rename(&new, state)
}
