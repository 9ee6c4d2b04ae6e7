//! Which files keep an invariant: compares the table "Invariants" in `ARCHITECTURE.md` with what modules
//! say of themselves.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Source, shipped};
use crate::{none, read};

/// The files that keep each invariant, by its name, as their paths without `.rs` and `/mod.rs`.
fn listed() -> BTreeMap<String, BTreeSet<String>> {
    let page = read("ARCHITECTURE.md");
    let section = page.split("## Invariants").nth(1).expect("a heading 'Invariants'");
    let rows = section.split("\n## ").next().into_iter().flat_map(str::lines);
    let mut found = BTreeMap::new();
    for row in rows.filter(|row| row.starts_with("| I")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let files = cells.last().into_iter().flat_map(|cell| cell.split('`').skip(1).step_by(2));
        // Others are functions, whose own documentation speaks.
        let files = files.filter(|name| !name.contains("::")).map(place).collect();
        found.insert(cells[0].trim().to_owned(), files);
    }
    assert!(found.len() >= 20, "{} rows", found.len());
    found
}

/// Of `vring/inflight` and `backend/worker` in the backend, else in the store.
fn place(name: &str) -> String {
    match name.strip_prefix("backend/") {
        Some(rest) => format!("backend/src/{rest}"),
        None if name.starts_with("vring/") => format!("backend/src/{name}"),
        None => format!("store/src/{name}"),
    }
}

/// What a module's documentation says.
fn documentation(source: &Source) -> String {
    source.text.lines().map_while(|line| line.strip_prefix("//!")).collect()
}

/// `I7` and the like.
fn names(text: &str) -> BTreeSet<String> {
    let of_letters = |c: char| !c.is_ascii_alphanumeric();
    let is_name = |word: &&str| {
        word.strip_prefix('I')
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    text.split(of_letters).filter(is_name).map(str::to_owned).collect()
}

/// The invariants that a text claims to keep: those named between "Keeps" and the end of its sentence.
fn kept(text: &str) -> BTreeSet<String> {
    let sentences = text.split("Keeps ").skip(1).filter_map(|rest| rest.split(". ").next());
    sentences.flat_map(names).collect()
}

#[test]
fn a_claim_ends_with_its_sentence() {
    let text = " Owns I1. Keeps I2 and I13: never I15. See I4. Keeps I5.";
    let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(kept(text), of(&["I2", "I13", "I15", "I5"]));
}

/// The table may name a whole folder, and a folder's own documentation may sum up what the files in it keep.
#[test]
fn whoever_keeps_an_invariant_says_so_and_is_listed() {
    let listed = listed();
    let mut broken = Vec::new();
    let mut missing: BTreeSet<(&str, &str)> = listed
        .iter()
        .flat_map(|(name, files)| files.iter().map(|file| (file.as_str(), name.as_str())))
        .collect();
    for source in shipped() {
        let file = source.path.trim_end_matches(".rs").trim_end_matches("/mod");
        let text = documentation(&source);
        for name in names(&text) {
            missing.retain(|(of, invariant)| *of != file || *invariant != name);
        }
        for name in kept(&text) {
            let files = listed.get(&name).into_iter().flatten();
            let is_within = |inner: &str, outer: &str| {
                inner
                    .strip_prefix(outer)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            if !files.into_iter().any(|of| is_within(of, file) || is_within(file, of)) {
                broken.push(format!("{}: keeps {name}, and is not in its row", source.path));
            }
        }
    }
    broken.extend(
        missing.iter().map(|(file, name)| format!("{file}: does not say how it keeps {name}")),
    );
    none(
        "The last column of ARCHITECTURE.md's invariants names the files that keep them.",
        &broken,
    );
}
