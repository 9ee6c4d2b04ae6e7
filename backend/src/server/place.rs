//! Where a process keeps its state, if nobody names a place.
//!
//! Owns the choice: beside the first store, or the first disk that is written, or the first at all; but where
//! other arguments left the state of one of these disks, it stays. Never knows what a state says, only which
//! disks it knows. Keeps: no state of a disk of the arguments goes unread and unsaid; beside a file that is
//! only read, others keep theirs.

use std::path::{Path, PathBuf};

use snapblk_store::device::{FirstTable, state_adds, state_knows};
use snapblk_store::io::real_path;
use snapblk_store::lines::{Param, TargetSpec};

use super::start::{ServeArgs, ServeError};

/// The place of the state of a start with these arguments.
///
/// # Errors
/// There are two, of which nobody can tell which one has what commands were told is kept.
pub(super) fn default_state(
    args: &ServeArgs,
    first: &[FirstTable],
) -> Result<Option<PathBuf>, ServeError> {
    let (usual, former) = usual_place(args, first)?;
    let Some(usual) = usual else { return Ok(None) };
    let mut found: Vec<PathBuf> = Vec::new();
    found.extend(usual.exists().then(|| usual.clone()));
    // Others have the same disk that is only read.
    let own = || first.iter().filter(|table| !table.read_only || stores(table).next().is_some());
    for place in former.into_iter().chain(own().flat_map(places)) {
        let is_found = |known: &PathBuf| real_path(known) == real_path(&place);
        let is_new = place.exists() && !found.iter().any(is_found);
        if is_new && own().any(|table| state_knows(&place, table)) {
            found.push(place);
        }
    }
    if found.len() > 1 && found.iter().any(|place| state_adds(place)) {
        // The arguments say what the others do.
        found.retain(|place| state_adds(place));
    }
    match found.as_slice() {
        [one, other, ..] if state_adds(one) => {
            Err(ServeError::StateOfEach { one: one.clone(), other: other.clone() })
        }
        [one, ..] => Ok(Some(one.clone())),
        [] => Ok(Some(usual)),
    }
}

/// Where it is unless there is one already; and where an earlier version had it, though others share the
/// disk.
fn usual_place(
    args: &ServeArgs,
    first: &[FirstTable],
) -> Result<(Option<PathBuf>, Option<PathBuf>), ServeError> {
    if let Some(store) = first.iter().flat_map(stores).find(lies_there) {
        // A store is one, whichever link leads to it. A version before left it beside the link.
        let (named, real) = (state_beside(store), state_beside(&real_path(store)));
        return match (real.exists(), named.exists()) {
            (true, true) if real_path(&real) != real_path(&named) => {
                let of = format!("the store {}", store.display());
                Err(ServeError::TwoStates { of, former: named, present: real })
            }
            (false, true) => Ok((Some(named), None)),
            _ => Ok((Some(real), None)),
        };
    }
    // A disk may be shared by such as have a link each.
    let file = |table: &FirstTable| {
        let params = table.lines.iter().flat_map(|line| line.target.params());
        params.filter_map(|param| param.path()).find(lies_there).map(state_beside)
    };
    let Some(former) = first.iter().find_map(file) else {
        return Ok((args.monitor.as_deref().map(state_beside), None));
    };
    // One that is only read may be shared by processes that have a state each.
    let present = first.iter().filter(|table| !table.read_only).find_map(file);
    Ok((Some(present.unwrap_or_else(|| former.clone())), Some(former)))
}

/// Beside the stores of a disk, under each of their names, and beside the files that its guest writes.
fn places(table: &FirstTable) -> Vec<PathBuf> {
    let of_stores = stores(table).filter(lies_there);
    let of_stores = of_stores.flat_map(|store| [real_path(store), store.to_owned()]);
    let written = table.lines.iter().filter(|_| !table.read_only);
    let written = written.filter_map(|line| match &line.target {
        TargetSpec::Linear { dev: disk, .. } | TargetSpec::Origin { origin: disk } => disk.path(),
        TargetSpec::Merge(spec) => spec.origin.path(),
        TargetSpec::Snapshot(_) | TargetSpec::Zero | TargetSpec::Error => None,
    });
    let of_disks = written.filter(lies_there).map(Path::to_owned);
    of_stores.chain(of_disks).map(|file| state_beside(&file)).collect()
}

fn stores(table: &FirstTable) -> impl Iterator<Item = &Path> {
    table
        .lines
        .iter()
        .filter_map(|line| line.target.snapshot())
        .map(|spec| &spec.cow)
        .filter_map(Param::path)
}

/// Whether there can be a state beside it: a device is in a directory of the system's.
fn lies_there(path: &&Path) -> bool {
    std::fs::metadata(path).map_or(true, |meta| meta.is_file())
}

fn state_beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".state");
    name.into()
}
