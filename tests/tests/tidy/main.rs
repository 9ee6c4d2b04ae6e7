//! The rules that the project keeps for itself, as tests.
//!
//! Each rule is a test, and says in one sentence what is wrong where. `ARCHITECTURE.md` explains
//! them; what it lists in tables is read from there, so that page and code cannot drift apart.
//!
//! Two tables of the documentation are made here: `docs/scenarios.md` says which test proves which
//! scenario, and `docs/mutations.md` which test fails when the code is broken. After adding or renaming such a test:
//!
//! ```text
//! SNAPBLK_UPDATE=1 cargo test -p snapblk-tests --test tidy
//! ```

mod crates;
mod documents;
mod licences;
mod locks;
mod mutations;
mod rooms;
mod scenarios;
mod shape;
mod source;
mod unsafety;

use std::path::{Path, PathBuf};

/// The repository's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in a workspace").into()
}

/// A file of the repository, by its path from the root.
fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Fails with all that breaks a rule.
#[track_caller]
fn none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}\n  {}\n", broken.join("\n  "));
}

/// What broke a rule, less the exceptions that are known. An exception that has become needless
/// is itself wrong.
#[track_caller]
fn none_but(rule: &str, broken: Vec<(String, String)>, known: &[&str]) {
    let mut wrong: Vec<String> = known
        .iter()
        .filter(|known| !broken.iter().any(|(who, _)| who == *known))
        .map(|known| format!("{known} keeps the rule now: take it off the list of exceptions"))
        .collect();
    wrong.extend(
        broken.into_iter().filter(|(who, _)| !known.contains(&who.as_str())).map(|(_, why)| why),
    );
    none(rule, &wrong);
}
