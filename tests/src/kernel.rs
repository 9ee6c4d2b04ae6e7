//! Exception stores judged by a real kernel: what does Linux's own dm-snapshot read from an origin
//! and a store, and what does its merge leave of the two?
//!
//! Owns the guest's script and the parsing of its answers. Never knows who wrote a store nor what
//! is correct: it returns the kernel's results, and the caller compares them.

use std::path::PathBuf;
use std::time::Duration;

use crate::guest::{Disk, Guest, GuestConfig, GuestError};

/// The most stores of one guest: each needs two disks.
pub const STORES_PER_GUEST: usize = 13;

/// An origin and its store, as raw images. The kernel merges the store into the origin: it writes
/// both files.
#[derive(Clone, Debug)]
pub struct Store {
    /// A name for the result; one word.
    pub name: String,
    /// The origin's image.
    pub origin: PathBuf,
    /// The store's image.
    pub cow: PathBuf,
    /// The persistence in the table: `P` or `PO`.
    pub persistence: String,
    /// In sectors of 512 bytes.
    pub chunk_sectors: u32,
}

/// The kernel's result for one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It loads as `Invalid`: every read fails.
    Invalid,
    /// It loads, reads and merges.
    Merged {
        /// sha256 of the snapshot's content, in hexadecimal.
        snapshot: String,
        /// sha256 of the origin's content beside the snapshot.
        origin: String,
        /// The snapshot's status line before the merge, from the target's name on.
        status: String,
        /// sha256 of the origin after the merge.
        merged: String,
        /// sha256 of the snapshot after the kernel loaded the emptied store again, on top of the
        /// merged origin.
        reloaded: String,
    },
    /// An error; the messages of the kernel and the guest.
    Failed(String),
}

/// Loads the stores, at most [`STORES_PER_GUEST`], in the kernel of one guest. Returns one verdict
/// per store, in their order.
pub fn judge(stores: &[Store]) -> Result<Vec<Verdict>, GuestError> {
    let mut plan = String::new();
    let disk = |index: usize| format!("vd{}", char::from(b'a' + index as u8));
    let mut config = GuestConfig::new("");
    for (index, store) in stores.iter().enumerate() {
        let Store { name, persistence, chunk_sectors, .. } = store;
        let (origin, cow) = (disk(2 * index), disk(2 * index + 1));
        plan += &format!("{name} /dev/{origin} /dev/{cow} {persistence} {chunk_sectors}\n");
        config = config.disk(Disk::File(store.origin.clone())).disk(Disk::File(store.cow.clone()));
    }
    config.script = format!("PLAN='{plan}'\n{}", include_str!("../guest/kernel-stores.sh"));
    config.timeout = Duration::from_secs(600);
    let result = Guest::boot(&config)?.finish()?;
    Ok(stores.iter().map(|store| verdict(&result.lines, &store.name)).collect())
}

/// The result of one store, from lines `NAME ANSWER VALUE…`.
fn verdict(lines: &[String], name: &str) -> Verdict {
    let answer = |key: &str| {
        let start = format!("{name} {key} ");
        lines.iter().find_map(|line| line.strip_prefix(&start)).map(str::to_owned)
    };
    let merged = || {
        Some(Verdict::Merged {
            snapshot: answer("snapshot")?,
            origin: answer("origin")?,
            status: answer("status")?,
            merged: answer("merged")?,
            reloaded: answer("reloaded")?,
        })
    };
    if answer("invalid").is_some() {
        return Verdict::Invalid;
    }
    merged().unwrap_or_else(|| Verdict::Failed(lines.join("\n")))
}
