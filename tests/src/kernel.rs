//! Exception stores put to a real kernel: what does Linux's own dm-snapshot read on top of an
//! origin and a store, and what does its merge leave of the two?
//!
//! Owns the guest's script and the parsing of its answers. Never knows who wrote a store nor what
//! is right: it returns what the kernel said and did, and the caller compares.

use std::path::PathBuf;
use std::time::Duration;

use crate::guest::{Disk, Guest, GuestConfig, GuestError};

/// How many stores one guest takes: each is two disks.
pub const STORES_PER_GUEST: usize = 13;

/// An origin and its store, as raw images. The kernel merges the store into the origin: both files
/// are written.
#[derive(Clone, Debug)]
pub struct Store {
    /// What the answer is known by; one word.
    pub name: String,
    /// The origin's image.
    pub origin: PathBuf,
    /// The store's image.
    pub cow: PathBuf,
    /// The table's word for persistence: `P` or `PO`.
    pub persistence: String,
    /// In sectors of 512 bytes.
    pub chunk_sectors: u32,
}

/// What the kernel made of one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It loads, and says `Invalid`: every read fails.
    Invalid,
    /// It loads, reads and merges.
    Merged {
        /// sha256 of the snapshot's content, in hexadecimal.
        snapshot: String,
        /// sha256 of the origin's content as it was beside the snapshot.
        origin: String,
        /// The snapshot's status line before the merge, from the target's name on.
        status: String,
        /// sha256 of the origin when the merge had ended.
        merged: String,
        /// sha256 of the snapshot when the kernel took the emptied store once more, on top of the
        /// merged origin.
        reloaded: String,
    },
    /// It went wrong; the kernel's and the guest's words.
    Failed(String),
}

/// Puts the stores, at most [`STORES_PER_GUEST`], to the kernel of one guest. One verdict a store,
/// in their order.
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

/// The lines about one store: `NAME ANSWER VALUE…`.
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
