//! `snapblk info`: the parameters of a store, and how full it is.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use snapblk_store::cow::OpenStore;
use snapblk_store::units::SECTOR_SIZE;

use super::store_file::StoreFile;
use super::{CliError, output, size};

/// Show the parameters of a store, and how full it is.
#[derive(Debug, Args)]
pub struct Info {
    /// The store
    store: PathBuf,
    /// Answer in JSON
    #[arg(long)]
    json: bool,
}

/// All sizes in bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct About<'a> {
    #[serde(serialize_with = "output::name")]
    store: &'a Path,
    format: &'static str,
    valid: bool,
    chunk_size: u64,
    size: u64,
    /// Space that it occupies on disk.
    disk_size: u64,
    /// Changed chunks, and how many more fit.
    exceptions: u64,
    free: u64,
    /// As counted in the status line of a snapshot.
    allocated: u64,
    metadata: u64,
    /// Whether bytes after the end of the list are not zero.
    garbage: bool,
}

impl<'a> About<'a> {
    fn of(path: &'a Path, file: &StoreFile, store: &OpenStore) -> Result<About<'a>, CliError> {
        let meta = file.file.file.metadata().map_err(CliError::io("look at", path))?;
        let usage = store.usage();
        Ok(About {
            store: path,
            format: "dm-snapshot persistent, version 1",
            valid: store.valid,
            chunk_size: store.geometry.chunk.bytes(),
            size: usage.total * SECTOR_SIZE,
            disk_size: if file.file.block_device {
                usage.total * SECTOR_SIZE
            } else {
                meta.blocks() * SECTOR_SIZE
            },
            exceptions: store.entries.len() as u64,
            free: store.geometry.capacity().saturating_sub(store.next.0),
            allocated: usage.allocated * SECTOR_SIZE,
            metadata: usage.metadata * SECTOR_SIZE,
            garbage: store.garbage,
        })
    }
}

impl Info {
    /// Prints it.
    ///
    /// # Errors
    /// The file is not a store, is damaged, or is in use.
    pub fn run(&self) -> Result<(), CliError> {
        let file = StoreFile::to_read(&self.store)?;
        let store = file.load(None)?;
        let about = About::of(&self.store, &file, &store)?;
        if self.json {
            return output::json(&about);
        }
        let data = about.exceptions * about.chunk_size;
        let percent = about.allocated as f64 * 100.0 / about.size as f64;
        output::fields(&[
            ("store", self.store.display().to_string()),
            ("format", about.format.to_owned()),
            (
                "state",
                if about.valid { "valid" } else { "Invalid: its content is lost" }.to_owned(),
            ),
            ("chunk size", size::show(about.chunk_size)),
            (
                "size",
                format!("{} ({} on disk)", size::show(about.size), size::show(about.disk_size)),
            ),
            ("changed", format!("{} chunks, {}", about.exceptions, size::show(data))),
            ("allocated", format!("{} ({percent:.1} %)", size::show(about.allocated))),
            ("of it metadata", size::show(about.metadata)),
            ("room for", format!("{} more chunks", about.free)),
            (
                "leftovers",
                if about.garbage { "yes: 'snapblk check --repair' removes them" } else { "none" }
                    .to_owned(),
            ),
        ])
    }
}
