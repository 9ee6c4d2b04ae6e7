//! Where a process keeps its state, if nobody names a place.
//!
//! Owns the choice: beside the first store, or the first disk that is written, or the first at all; but where
//! other arguments left the state of one of these disks, it stays. Never knows what a state says, only which
//! disks it knows. Keeps: no state of a disk of the arguments goes unread and unsaid; beside a file that is
//! only read, others keep theirs.

use std::path::{Path, PathBuf};

use snapblk_store::device::{
    InitialDevice, StateContent, classify_state, classify_state_ignoring_settings,
};
use snapblk_store::io::real_path;
use snapblk_store::lines::{Param, TargetSpec};

use super::start::{ServeArgs, ServeError};

/// The places of states of the arguments' disks.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Of the one that is used.
    pub(super) used: Option<PathBuf>,
    /// Of those that say no more than the arguments.
    pub(super) others: Vec<PathBuf>,
}

/// The place of the state of a start with these arguments.
///
/// # Errors
/// There are two, of which nobody can tell which one has what commands were told is kept; or one that
/// knows the disks otherwise.
pub(super) fn default_state(
    args: &ServeArgs,
    initial: &[InitialDevice],
) -> Result<Places, ServeError> {
    let (usual, former) = usual_place(args, initial)?;
    let Some(usual) = usual else { return Ok(Places::default()) };
    let own = own(initial);
    let mut found: Vec<(PathBuf, StateContent)> = Vec::new();
    let sure = own.iter().flat_map(|table| places(table));
    let all = [Some(usual.clone()), former].into_iter().flatten().chain(sure);
    for (number, place) in all.enumerate() {
        if found.iter().any(|(known, _)| is_same(known, &place)) {
            continue;
        }
        let beside = beside(&place, &own);
        let content = classify_state(&place, &own, &beside);
        let is_known = matches!(
            content,
            StateContent::Redundant { names_disk: true }
                | StateContent::Changed { names_disk: true }
                | StateContent::Elsewhere(_)
        );
        // Whose disk a file beside it is about is in no doubt, but one that is only read has many.
        if number == 0 || is_known || (!beside.is_empty() && content != StateContent::Unrelated) {
            found.push((place, content));
        }
    }
    let used = choose(&usual, &found)?;
    let others = found.into_iter().filter(|(place, content)| {
        matches!(content, StateContent::Redundant { .. }) && !is_same(place, &used)
    });
    let others = others.map(|(place, _)| place).collect();
    Ok(Places { used: Some(used), others })
}

/// The place of the state that the arguments name.
///
/// # Errors
/// What is there only says where the state of the disks is now; or nothing is there, and one beside a file
/// of the disks knows what commands made of them.
pub(super) fn named_state(state: &Path, initial: &[InitialDevice]) -> Result<Places, ServeError> {
    let disks: Vec<&InitialDevice> = initial.iter().collect();
    if let StateContent::Elsewhere(there) = classify_state(state, &disks, &disks) {
        return Err(ServeError::StateElsewhere { says: state.to_owned(), state: there });
    }
    // What is there was chosen by who knows of the others. A new one would hide them.
    if !state.exists() {
        refuse_hidden(state, initial)?;
    }
    Ok(Places { used: Some(state.to_owned()), others: Vec::new() })
}

/// Refuses to begin the state `new` while one beside a file of the disks knows what it would not. Without
/// settings a disk is served otherwise, but it is the same disk.
fn refuse_hidden(new: &Path, initial: &[InitialDevice]) -> Result<(), ServeError> {
    let own = own(initial);
    for place in own.iter().flat_map(|table| places(table)) {
        match classify_state_ignoring_settings(&place, &own, &beside(&place, &own)) {
            StateContent::Changed { .. } => {
                return Err(ServeError::StateHidden { new: new.to_owned(), knows: place });
            }
            StateContent::Elsewhere(state) => {
                return Err(ServeError::StateElsewhere { says: place, state });
            }
            StateContent::Redundant { .. } | StateContent::Unrelated => {}
        }
    }
    Ok(())
}

/// The disks that nobody else can serve: others have the same one that is only read.
fn own(initial: &[InitialDevice]) -> Vec<&InitialDevice> {
    initial.iter().filter(|table| !table.read_only || stores(table).next().is_some()).collect()
}

/// The disks that have a file beside which `place` is.
fn beside<'a>(place: &Path, disks: &[&'a InitialDevice]) -> Vec<&'a InitialDevice> {
    let lies = |table: &&&InitialDevice| places(table).iter().any(|of| is_same(of, place));
    disks.iter().filter(lies).copied().collect()
}

/// Which of the states that were `found` is used: the only one that says more than the arguments, or, if
/// there is none, one that knows the disks.
fn choose(usual: &Path, found: &[(PathBuf, StateContent)]) -> Result<PathBuf, ServeError> {
    let all_that = |which: &dyn Fn(&PathBuf, &StateContent) -> bool| -> Vec<PathBuf> {
        let found = found.iter().filter(|(place, content)| which(place, content));
        found.map(|(place, _)| place.clone()).collect()
    };
    let is_strange = |says: &StateContent| *says == StateContent::Changed { names_disk: false };
    let more = all_that(&|place, content| {
        matches!(content, StateContent::Changed { .. }) && (!is_strange(content) || place == usual)
    });
    let known = all_that(&|_, content| *content == StateContent::Redundant { names_disk: true });
    let used = match more.as_slice() {
        [one, other, ..] => {
            return Err(ServeError::StateOfEach { one: one.clone(), other: other.clone() });
        }
        [one] => one.clone(),
        [] => known.first().map_or(usual, PathBuf::as_path).to_owned(),
    };
    for (place, content) in found {
        match content {
            _ if is_same(place, &used) && !matches!(content, StateContent::Elsewhere(_)) => {}
            StateContent::Changed { .. } => {
                return Err(ServeError::StrangeState { strange: place.clone(), used });
            }
            // Without the state that it names nobody knows what there was.
            StateContent::Elsewhere(state) if !is_same(state, &used) || !used.exists() => {
                let (says, state) = (place.clone(), state.clone());
                return Err(ServeError::StateElsewhere { says, state });
            }
            _ => {}
        }
    }
    Ok(used)
}

/// Whether two paths lead to one file.
fn is_same(one: &Path, other: &Path) -> bool {
    one == other || one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|o| o == one))
}

/// Where it is unless there is one already; and where an earlier version had it, though others share the
/// disk.
fn usual_place(
    args: &ServeArgs,
    initial: &[InitialDevice],
) -> Result<(Option<PathBuf>, Option<PathBuf>), ServeError> {
    if let Some(store) = initial.iter().flat_map(stores).find(lies_there) {
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
    let file = |table: &InitialDevice| {
        let params = table.lines.iter().flat_map(|line| line.target.params());
        params.filter_map(|param| param.path()).find(lies_there).map(state_beside)
    };
    let Some(former) = initial.iter().find_map(file) else {
        return Ok((args.monitor.as_deref().map(state_beside), None));
    };
    // One that is only read may be shared by processes that have a state each.
    let present = initial.iter().filter(|table| !table.read_only).find_map(file);
    Ok((Some(present.unwrap_or_else(|| former.clone())), Some(former)))
}

/// Beside the stores of a disk, under each of their names, and beside the files that its guest writes.
fn places(table: &InitialDevice) -> Vec<PathBuf> {
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

fn stores(table: &InitialDevice) -> impl Iterator<Item = &Path> {
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
