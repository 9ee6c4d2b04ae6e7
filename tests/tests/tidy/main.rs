//! The project's rules as tests.
//!
//! Each rule is a test whose failure says in one sentence what is wrong, and where.
//! `ARCHITECTURE.md` explains the rules; its tables are read from there, so that page and code
//! cannot diverge.
//!
//! Two pages of the documentation are generated here: `docs/scenarios.md` lists the tests that
//! prove each scenario, and `docs/mutations.md` the test that fails when the code is broken. After
//! adding or renaming such a test:
//!
//! ```text
//! SNAPBLK_UPDATE=1 cargo test -p snapblk-tests --test tidy
//! ```

mod crates;
mod documents;
mod invariants;
mod licences;
mod locks;
mod modules;
mod mutations;
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

/// Fails if anything breaks a rule, with the list.
#[track_caller]
fn none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}\n  {}\n", broken.join("\n  "));
}

/// Everything that broke a rule, except the known exceptions. An exception that is no longer needed
/// is itself an error.
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
