//! The measured version, and the day of the measurement.
//!
//! Owns asking git and the clock, and the text for the reader. The parts of a report may have been
//! measured at different times: each keeps its own stamp.

use std::fmt::Write;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::peer::said_by;

/// The project's directory.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A commit and a day, and the parts measured then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// The project's commit, and whether there were changes; none if unknown, or if the program is
    /// not the project's.
    pub commit: Option<String>,
    /// The day, in UTC.
    pub day: Option<String>,
    /// The parts, by the names under which they are kept.
    pub parts: Vec<String>,
}

impl Stamp {
    /// The stamp of parts without one.
    pub(super) const UNKNOWN: Self = Self { commit: None, day: None, parts: Vec::new() };

    /// The stamp of a run that begins now.
    pub(super) fn now() -> Self {
        let is_own = std::env::var_os("SNAPBLK").is_none();
        let describe = ["describe", "--always", "--exclude=*", "--dirty= and changes"];
        let commit = || line(Command::new("git").args(["-C", ROOT]).args(describe));
        let day = line(Command::new("date").args(["-u", "+%F"]));
        Self { commit: is_own.then(commit).flatten(), day, parts: Vec::new() }
    }

    /// The same for the part `part`.
    pub(super) fn of(&self, part: &str) -> Self {
        Self { parts: vec![part.to_owned()], ..self.clone() }
    }

    fn is_as(&self, other: &Self) -> bool {
        (&self.commit, &self.day) == (&other.commit, &other.day)
    }

    fn words(&self) -> String {
        let commit = self.commit.as_ref().map(|commit| format!(" of commit {commit}"));
        let day = self.day.as_ref().map(|day| format!(" on {day}"));
        match commit.unwrap_or_default() + &day.unwrap_or_default() {
            words if words.is_empty() => " at a time that is not known".to_owned(),
            words => words,
        }
    }
}

/// Adds `more` to `stamps`, merging those of the same commit and day.
pub(super) fn add(stamps: &mut Vec<Stamp>, more: Vec<Stamp>) {
    for stamp in more {
        match stamps.iter_mut().find(|other| other.is_as(&stamp)) {
            Some(other) => other.parts.extend(stamp.parts),
            None => stamps.push(stamp),
        }
    }
}

/// The text about them: if there are several, the one with the most parts is first, and for the
/// others the parts are listed.
pub(super) fn note(stamps: &[Stamp]) -> Option<String> {
    let most = stamps.iter().max_by_key(|stamp| stamp.parts.len())?;
    let mut note = format!("Measured{}", most.words());
    for other in stamps.iter().filter(|stamp| !stamp.is_as(most)) {
        let _ = write!(note, "; but{}: {}", other.words(), other.parts.join(", "));
    }
    Some(note + ".")
}

/// The output of a command in one line; none if it fails.
fn line(command: &mut Command) -> Option<String> {
    let said = said_by(command).ok()?;
    Some(said.trim().to_owned()).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(commit: Option<&str>, part: &str) -> Stamp {
        Stamp { commit: commit.map(str::to_owned), ..Stamp::now() }.of(part)
    }

    #[test]
    fn parts_of_several_commits_are_told_apart() {
        let day = Stamp::now().day.unwrap();
        let mut stamps = Vec::new();
        for (commit, part) in [("aaa", "disk-x"), ("bbb", "tmpfs-x"), ("bbb", "tmpfs-y")] {
            add(&mut stamps, vec![stamp(Some(commit), part)]);
        }
        let said = format!("Measured of commit bbb on {day}; but of commit aaa on {day}: disk-x.");
        assert_eq!(note(&stamps), Some(said));
        assert_eq!(note(&stamps[..1]), Some(format!("Measured of commit aaa on {day}.")));
        assert_eq!(note(&[stamp(None, "disk-x")]), Some(format!("Measured on {day}.")));
        assert_eq!(note(&[]), None);
    }

    #[test]
    fn a_day_is_written_as_iso_8601_has_it() {
        let day = Stamp::now().day.unwrap();
        let lengths: Vec<usize> = day.split('-').map(str::len).collect();
        assert!(lengths == [4, 2, 2] && day.bytes().all(|b| b == b'-' || b.is_ascii_digit()));
    }
}
