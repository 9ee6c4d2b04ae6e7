//! `snapblk check`: damage in a store.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use snapblk_store::cow::open::{problems, zero_garbage};
use snapblk_store::io::{FileInfo, OpenMode};

use super::store_file::StoreFile;
use super::{CliError, output};

/// The most entries that are listed; a longer list is of no use.
const LISTED: usize = 1000;

/// Look for damage in a store
///
/// Exit status 0 only for a store that can be used as it is (or, with --repair, now can).
#[derive(Debug, Args)]
pub struct Check {
    /// The store
    store: PathBuf,
    /// Its origin: the disk that it was made for. Entries beyond its end are damage, too
    #[arg(long, value_name = "FILE")]
    origin: Option<PathBuf>,
    /// Remove what a torn write left after the end of the list; changes no content
    #[arg(long)]
    repair: bool,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report<'a> {
    #[serde(serialize_with = "output::name")]
    store: &'a Path,
    valid: bool,
    exceptions: u64,
    problems: Vec<Fault>,
    /// Whether bytes after the end of the list are not zero.
    garbage: bool,
    /// Whether they were not, and are zero now.
    repaired: bool,
}

#[derive(Debug, Serialize)]
struct Fault {
    /// Its offset in the store, in bytes.
    offset: u64,
    problem: String,
}

impl Check {
    /// Checks the store, and repairs it if requested.
    ///
    /// # Errors
    /// Damage that remains, or a file that cannot be read.
    pub fn run(&self) -> Result<(), CliError> {
        let origin_len = match &self.origin {
            Some(path) => Some(FileInfo::open(path, OpenMode::ReadOnly, false)?.len),
            None => None,
        };
        let file = if self.repair {
            StoreFile::to_write(&self.store)?
        } else {
            StoreFile::to_read(&self.store)?
        };
        let mut store = file.inspect()?;
        let faults: Vec<Fault> = problems(&store, origin_len, LISTED)
            .iter()
            .map(|problem| Fault { offset: problem.offset, problem: problem.to_string() })
            .collect();
        let mut repaired = false;
        // If the list itself is damaged, its end is unknown.
        if self.repair && store.garbage && faults.is_empty() {
            zero_garbage(&file.file, &mut store)?;
            repaired = true;
        }
        let report = Report {
            store: &self.store,
            valid: store.valid,
            exceptions: store.entries.len() as u64,
            problems: faults,
            garbage: store.garbage,
            repaired,
        };
        self.print(&report)?;
        report.verdict()
    }

    fn print(&self, report: &Report<'_>) -> Result<(), CliError> {
        if self.json {
            return output::json(report);
        }
        for fault in &report.problems {
            output::line(&fault.problem)?;
        }
        if report.repaired {
            output::line("removed what a torn write had left after the end of the list")?;
        }
        let count = report.exceptions;
        if report.problems.is_empty() {
            output::line(&format!("{count} exceptions, each in its place"))?;
        }
        Ok(())
    }
}

impl Report<'_> {
    fn verdict(&self) -> Result<(), CliError> {
        let name = self.store.display();
        if !self.valid {
            return Err(CliError::Refused(format!(
                "{name} is marked Invalid: a snapshot lost its content; make a new store"
            )));
        }
        if !self.problems.is_empty() {
            let found = self.problems.len();
            return Err(CliError::Refused(format!(
                "{name} has {found}{} entries that cannot be right and will not be opened; \
                 restore it from a copy",
                if found == LISTED { " or more" } else { "" }
            )));
        }
        if self.garbage {
            return Err(CliError::Refused(format!(
                "{name} has leftovers of a torn write after the end of its list; \
                 'snapblk check --repair {name}' removes them"
            )));
        }
        Ok(())
    }
}
