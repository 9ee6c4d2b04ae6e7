//! What a start looks at before it makes a store: whether what comes later can be had.
//!
//! Owns the mistakes that can be seen without changing anything. Never knows what is right, which the
//! start itself finds out. Keeps: of a start that makes no store, and leaves nothing behind, only the
//! directory of the state is looked at, which no one but a command would miss. Not looked at are sockets
//! that a process may have which ends meanwhile: those of disks whose stores are there, which it has
//! locked, and the monitor's beside such a disk. Its locks are waited for.

use std::path::Path;

use snapblk_qmp::Server as QmpServer;
use snapblk_store::control::CommandError;
use snapblk_store::device::{InitialDevice, place_of_state, refuse_state_name};
use snapblk_store::io::{FileInfo, OpenMode};

use super::start::{DiskArgs, DiskSocket, DiskSource, ServeArgs, ServeError};
use crate::session::{check_inherited, check_socket};

/// Refuses to go on where that would end without serving, and leave a store behind, or where no command
/// could be kept. A `state` may know
/// other files than the tables name.
///
/// # Errors
/// What the start would say later.
pub(super) fn look(
    args: &ServeArgs,
    initial: &[InitialDevice],
    state: Option<&Path>,
) -> Result<(), ServeError> {
    if let Some(state) = state {
        refuse_state_names(args, initial, state)?;
        let what = || format!("cannot keep the state in {}; name another --state", state.display());
        has_directory(&place_of_state(state))
            .map_err(|source| ServeError::Io { what: what(), source })?;
    }
    if !args.disks.iter().any(makes_its_store) {
        return Ok(());
    }
    refuse_one_socket_for_two(args)?;
    for (disk, table) in args.disks.iter().zip(initial) {
        match overlay(disk) {
            Some(store) => look_at_directory(&disk.name, store)?,
            None if state.is_some_and(Path::exists) => {}
            None => look_at_files(table)?,
        }
        let checked = match &disk.socket {
            Some(DiskSocket::Path(path)) if makes_its_store(disk) => check_socket(path),
            Some(DiskSocket::Fd(number)) => check_inherited(*number),
            _ => Ok(()),
        };
        checked.map_err(|error| refused(disk, &error.to_string()))?;
    }
    match &args.monitor {
        Some(path) if args.disks.iter().all(makes_its_store) => Ok(QmpServer::check(path)?),
        _ => Ok(()),
    }
}

/// Refuses files and sockets where the state is to be.
fn refuse_state_names(
    args: &ServeArgs,
    initial: &[InitialDevice],
    state: &Path,
) -> Result<(), ServeError> {
    let look = |path: &Path| refuse_state_name(state, path);
    for (disk, table) in args.disks.iter().zip(initial) {
        let params = table.lines.iter().flat_map(|line| line.target.params());
        for path in params.filter_map(|param| param.path()) {
            look(path).map_err(|error| ServeError::Device { disk: disk.name.clone(), error })?;
        }
        if let Some(DiskSocket::Path(socket)) = &disk.socket {
            look(socket).map_err(|error| refused(disk, &error.to_string()))?;
        }
    }
    let monitor = args.monitor.as_deref().map_or(Ok(()), look);
    monitor.map_err(|error| ServeError::OwnSocket(error.to_string()))
}

fn refused(disk: &DiskArgs, why: &str) -> ServeError {
    let error = CommandError::generic(format!("export {}: {why}", disk.name));
    ServeError::Export { disk: disk.name.clone(), error }
}

/// Whether the start would make the store of the disk's overlay.
fn makes_its_store(disk: &DiskArgs) -> bool {
    let is_empty = |meta: std::fs::Metadata| meta.is_file() && meta.len() == 0;
    overlay(disk).is_some_and(|path| std::fs::metadata(path).map_or(true, is_empty))
}

fn refuse_one_socket_for_two(args: &ServeArgs) -> Result<(), ServeError> {
    let mut others: Vec<(&Path, String)> = Vec::new();
    let said = |path: &Path, by: &str| {
        format!(
            "this process is to listen on {} for {by} as well; name another path",
            path.display()
        )
    };
    for disk in &args.disks {
        let Some(DiskSocket::Path(path)) = &disk.socket else { continue };
        if let Some((_, by)) = others.iter().find(|(other, _)| other == path) {
            return Err(refused(disk, &said(path, by)));
        }
        others.push((path, format!("the export '{}'", disk.name)));
    }
    let monitor = args.monitor.as_deref();
    match others.iter().find(|(other, _)| Some(*other) == monitor) {
        Some((path, by)) => Err(ServeError::OwnSocket(said(path, by))),
        None => Ok(()),
    }
}

fn overlay(disk: &DiskArgs) -> Option<&Path> {
    match &disk.source {
        DiskSource::File { overlay, .. } => overlay.as_deref(),
        DiskSource::Lines(_) => None,
    }
}

fn look_at_directory(disk: &str, store: &Path) -> Result<(), ServeError> {
    has_directory(store).map_err(|source| {
        let what = format!("disk '{disk}': cannot make the store {}", store.display());
        ServeError::Io { what, source }
    })
}

/// Whether a file can be at `path`.
fn has_directory(path: &Path) -> std::io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let meta = std::fs::metadata(dir.unwrap_or(Path::new(".")))?;
    if meta.is_dir() { Ok(()) } else { Err(std::io::ErrorKind::NotADirectory.into()) }
}

fn look_at_files(table: &InitialDevice) -> Result<(), ServeError> {
    let params = table.lines.iter().flat_map(|line| line.target.params());
    for path in params.filter_map(|param| param.path()) {
        FileInfo::open(path, OpenMode::ReadOnly, false).map_err(|error| ServeError::Device {
            disk: table.name.clone(),
            error: error.into(),
        })?;
    }
    Ok(())
}
