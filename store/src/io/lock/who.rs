//! The other processes that have a file open: open file description locks do not name them.
//!
//! Owns the search of `/proc`, for an error message only. Processes that this one may not inspect
//! are not found.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The most processes that are named; more would not help.
const NAMED: usize = 4;

/// The other processes that have the file `identity` (device and inode) open: `4711 (qemu-img)`.
pub(super) fn others_with(identity: (u64, u64)) -> Vec<String> {
    let ours = std::process::id().to_string();
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = processes.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let others = numbers.filter(|name| *name != ours && name.bytes().all(|b| b.is_ascii_digit()));
    let having = others.filter(|pid| has_open(&Path::new("/proc").join(pid), identity));
    having.take(NAMED).map(|pid| named(&pid)).collect()
}

fn has_open(process: &Path, identity: (u64, u64)) -> bool {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return false };
    // The target of a descriptor, not the name in its link: the file may have been renamed. Only
    // descriptors with that inode are checked, because a check uses their file systems, which may
    // not respond.
    let inode = format!("ino:\t{}\n", identity.1);
    let info = |name: &OsStr| fs::read_to_string(process.join("fdinfo").join(name));
    let mut likely = descriptors
        .flatten()
        .filter(|entry| info(&entry.file_name()).is_ok_and(|text| text.contains(&inode)));
    likely.any(|entry| {
        fs::metadata(entry.path()).is_ok_and(|meta| (meta.dev(), meta.ino()) == identity)
    })
}

fn named(pid: &str) -> String {
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("{pid} ({})", name.trim_end().escape_debug()),
        Err(_) => pid.to_owned(),
    }
}
