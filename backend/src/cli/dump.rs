//! `snapblk dump`: the map of a store, as runs of bytes.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use snapblk_store::cow::{Entry, OpenStore};

use super::store_file::StoreFile;
use super::{CliError, output};

/// List which bytes of the disk a store holds, and where, in the order of the disk.
#[derive(Debug, Args)]
pub struct Dump {
    /// The store
    store: PathBuf,
    /// Answer in JSON: an array of objects with start, length and offset
    #[arg(long)]
    json: bool,
}

/// A range of the disk that is contiguous in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// First byte on the disk.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// First byte in the store.
    pub offset: u64,
}

/// The runs of a store in the order of the disk. Takes the entries, to sort them in place.
pub fn runs(store: &OpenStore, mut entries: Vec<Entry>) -> impl Iterator<Item = Run> {
    let chunk = store.geometry.chunk;
    entries.sort_unstable();
    let mut entries = entries.into_iter().peekable();
    std::iter::from_fn(move || {
        let Entry { old, new } = entries.next()?;
        let mut count = 1;
        let follows = |next: &Entry, n| next.old.0 == old.0 + n && next.new.0 == new.0 + n;
        while entries.next_if(|next| follows(next, count)).is_some() {
            count += 1;
        }
        Some(Run {
            start: chunk.start_of(old),
            length: count * chunk.bytes(),
            offset: chunk.store_offset(new),
        })
    })
}

impl Dump {
    /// Prints the runs.
    ///
    /// # Errors
    /// The file is not a store, is damaged, or is in use.
    pub fn run(&self) -> Result<(), CliError> {
        let file = StoreFile::to_read(&self.store)?;
        let mut store = file.load(None)?;
        if !store.valid {
            tracing::warn!(
                "{} is Invalid: what it holds is not to be trusted",
                file.file.path.display()
            );
        }
        let entries = std::mem::take(&mut store.entries);
        output::checked(self.print(runs(&store, entries)))
    }

    fn print(&self, runs: impl Iterator<Item = Run>) -> io::Result<()> {
        let mut out = BufWriter::new(io::stdout().lock());
        if !self.json {
            writeln!(out, "{:>20} {:>20} {:>20}", "START", "LENGTH", "OFFSET IN STORE")?;
            for run in runs {
                writeln!(out, "{:>20} {:>20} {:>20}", run.start, run.length, run.offset)?;
            }
            return out.flush();
        }
        let mut separator = "[";
        for run in runs {
            write!(out, "{separator}")?;
            serde_json::to_writer(&mut out, &run)?;
            separator = ",\n";
        }
        writeln!(out, "{}", if separator == "[" { "[]" } else { "]" })?;
        out.flush()
    }
}
