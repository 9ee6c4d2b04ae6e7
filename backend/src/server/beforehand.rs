//! What a start looks at before it makes a store: whether what comes later can be had.
//!
//! Owns the mistakes that can be seen without changing anything. Never knows what is right, which the
//! start itself finds out. Keeps: a start that makes no store is not looked at, as it leaves nothing
//! behind, and who ends meanwhile may still have its sockets: its locks are waited for.

use std::path::Path;

use snapblk_qmp::Server as QmpServer;
use snapblk_store::control::CommandError;
use snapblk_store::device::FirstTable;
use snapblk_store::io::{FileInfo, OpenMode};

use super::start::{DiskArgs, DiskSocket, DiskSource, ServeArgs, ServeError};
use crate::session::check_socket;

/// Refuses to go on where that would end without serving, and leave a store behind. A `state` may know
/// other files than the tables name.
///
/// # Errors
/// What the start would say later.
pub(super) fn look(
    args: &ServeArgs,
    first: &[FirstTable],
    state: Option<&Path>,
) -> Result<(), ServeError> {
    let makes = |path: &&Path| std::fs::metadata(path).map_or(true, |meta| meta.len() == 0);
    if !args.disks.iter().filter_map(overlay).any(|path| makes(&path)) {
        return Ok(());
    }
    for (disk, table) in args.disks.iter().zip(first) {
        match overlay(disk) {
            Some(store) => look_at_directory(&disk.name, store)?,
            None if state.is_some_and(Path::exists) => {}
            None => look_at_files(table)?,
        }
        if let Some(DiskSocket::Path(path)) = &disk.socket {
            check_socket(path).map_err(|error| ServeError::Export {
                disk: disk.name.clone(),
                error: CommandError::generic(format!("export {}: {error}", disk.name)),
            })?;
        }
    }
    args.monitor.as_deref().map_or(Ok(()), |path| Ok(QmpServer::check(path)?))
}

fn overlay(disk: &DiskArgs) -> Option<&Path> {
    match &disk.source {
        DiskSource::File { overlay, .. } => overlay.as_deref(),
        DiskSource::Lines(_) => None,
    }
}

fn look_at_directory(disk: &str, store: &Path) -> Result<(), ServeError> {
    let dir = store.parent().filter(|dir| !dir.as_os_str().is_empty());
    let there = std::fs::metadata(dir.unwrap_or(Path::new("."))).map(|_| ());
    there.map_err(|source| {
        let what = format!("disk '{disk}': cannot make the store {}", store.display());
        ServeError::Io { what, source }
    })
}

fn look_at_files(table: &FirstTable) -> Result<(), ServeError> {
    let params = table.lines.iter().flat_map(|line| line.target.params());
    for path in params.filter_map(|param| param.path()) {
        FileInfo::open(path, OpenMode::ReadOnly, false).map_err(|error| ServeError::Device {
            disk: table.name.clone(),
            error: error.into(),
        })?;
    }
    Ok(())
}
