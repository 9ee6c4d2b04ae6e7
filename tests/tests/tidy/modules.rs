//! Which modules may name which: compares the table "Modules" in `ARCHITECTURE.md` with the code.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Source, shipped, words};
use crate::{none, none_but, read};

/// The modules of a crate, each with the modules that it may name.
type Modules = BTreeMap<String, BTreeSet<String>>;

/// The rows of the tables under the heading `### crate`: `` | `module` | what | `a` `b` | ``.
fn modules(of: &str) -> Modules {
    let page = read("ARCHITECTURE.md");
    let heading = format!("### `{of}`");
    let section = page.split(&heading).nth(1).unwrap_or_else(|| panic!("no heading '{heading}'"));
    let section = section.split("\n#").next().unwrap();
    let quoted = |cell: &str| -> Vec<String> {
        cell.split('`').skip(1).step_by(2).map(|word| word.trim_end_matches('/').into()).collect()
    };
    let mut modules = Modules::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 3, "a row of three cells: {row}");
        for module in quoted(cells[0]) {
            modules.insert(module, quoted(cells[2]).into_iter().collect());
        }
    }
    assert!(modules.len() > 5, "the table of {of} has {} rows", modules.len());
    modules
}

/// The module of a file: the first part of its path in its crate.
fn module(path: &str) -> Option<(&str, &str)> {
    let (of, rest) = path.split_once("/src/")?;
    let module = rest.split('/').next()?.trim_end_matches(".rs");
    (!matches!(module, "lib" | "main")).then_some((of, module))
}

/// The lines that ship; a `use` over several lines is joined into one.
fn statements(source: &Source) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (n, line) in source.shipped() {
        match found.last_mut().filter(|_| open) {
            Some((_, statement)) => statement.push_str(line.trim()),
            None => found.push((n, line.to_owned())),
        }
        let begins = words(line).find(|word| *word != "pub" && *word != "crate") == Some("use");
        open = (open || begins) && !line.contains(';');
    }
    found
}

/// The names at the root of the crate in a statement. `depth` is the number of modules above it:
/// that many `super::` lead to the root, too.
fn named(statement: &str, depth: usize) -> Vec<&str> {
    let up = "super::".repeat(depth);
    let mut found = behind(statement, "crate::");
    if depth > 0 {
        found.extend(behind(statement, &up));
    }
    found
}

/// The names after each `prefix` that begins a path; all names in its braces.
fn behind<'a>(statement: &'a str, prefix: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    for (at, _) in statement.match_indices(prefix) {
        let before = statement[..at].bytes().next_back();
        if before.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte)) {
            continue;
        }
        let rest = &statement[at + prefix.len()..];
        let Some(list) = rest.strip_prefix('{') else {
            found.extend(words(rest).next());
            continue;
        };
        let (mut depth, mut start) = (0, 0);
        for (end, byte) in list.bytes().enumerate() {
            match byte {
                b'{' => depth += 1,
                b',' | b'}' if depth == 0 => {
                    found.extend(words(&list[start..end]).next());
                    start = end + 1;
                    if byte == b'}' {
                        break;
                    }
                }
                b'}' => depth -= 1,
                _ => {}
            }
        }
    }
    found
}

#[test]
fn names_are_found_in_every_kind_of_path() {
    assert_eq!(named("use crate::a::B;", 1), ["a"]);
    assert_eq!(named("pub use crate::{a::{b, c}, d, e::F};", 1), ["a", "d", "e"]);
    assert_eq!(named("let x = crate::a::f(crate::b::G);", 1), ["a", "b"]);
    assert_eq!(named("use super::a;", 1), ["a"]);
    assert_eq!(named("use super::a; use super::super::b;", 2), ["b"]);
    assert_eq!(named("use other_crate::a; $crate::b", 1), ["b"]);
}

fn check(of: &str) {
    let modules = modules(of);
    let mut broken = Vec::new();
    let mut seen = BTreeSet::new();
    for source in shipped() {
        let Some((crate_, module)) = module(&source.path) else { continue };
        if crate_ != of {
            continue;
        }
        seen.insert(module.to_owned());
        let Some(may) = modules.get(module) else {
            broken.push(format!("{}: '{module}' has no row in the table of {of}", source.path));
            continue;
        };
        let depth =
            source.path.split('/').count() - 2 - usize::from(source.path.ends_with("/mod.rs"));
        for (n, statement) in statements(&source) {
            // Other names are macros or items of the crate's root.
            let is_module = |name: &&str| modules.contains_key(*name) && *name != module;
            for name in named(&statement, depth).into_iter().filter(is_module) {
                if !may.contains(name) {
                    let path = &source.path;
                    broken.push(format!("{path}:{n}: '{module}' may not know '{name}'"));
                }
            }
        }
    }
    broken.extend(
        modules
            .keys()
            .filter(|module| !seen.contains(*module))
            .map(|module| format!("there is no '{module}' in {of}/src")),
    );
    none("A module knows only those that ARCHITECTURE.md lists beside it.", &broken);
}

#[test]
fn modules_of_the_store_know_only_those_below() {
    check("store");
}

#[test]
fn modules_of_the_backend_know_only_those_below() {
    check("backend");
}

/// The traits' device returns a worker's handle, and the worker is generic over the traits.
const CIRCLES: [(&str, &str); 1] = [("binding", "worker")];

/// The permitted dependencies have no cycle.
#[test]
fn what_modules_may_know_has_no_circle() {
    for of in ["store", "backend"] {
        let mut modules = modules(of);
        for (from, to) in CIRCLES {
            modules.get_mut(from).map(|may| may.remove(to));
        }
        loop {
            let free: Vec<String> = modules
                .iter()
                .filter(|(_, may)| may.is_empty())
                .map(|(module, _)| module.clone())
                .collect();
            if free.is_empty() {
                break;
            }
            for module in &free {
                modules.remove(module);
                modules.values_mut().for_each(|may| {
                    may.remove(module);
                });
            }
        }
        assert!(
            modules.is_empty(),
            "in {of} these modules know each other in a circle: {modules:?}"
        );
    }
}

/// `exception/` serves any target that remaps chunks.
#[test]
fn the_exception_table_has_no_word_for_what_uses_it() {
    let mut broken = Vec::new();
    for source in shipped() {
        if !source.path.starts_with("store/src/exception/") {
            continue;
        }
        for (n, line) in source.shipped() {
            for word in words(line) {
                let lower = word.to_ascii_lowercase();
                if ["snapshot", "merge", "origin", "overlay"].iter().any(|no| lower.contains(no)) {
                    broken.push(format!("{}:{n}: the word '{word}'", source.path));
                }
            }
        }
    }
    none(
        "exception/ never says snapshot, merge, origin or overlay: it is for any target.",
        &broken,
    );
}

/// The other targets that a target may know. A merging device contains an origin, whose other
/// snapshots it protects as `snapshot-origin` does; and all of them lie on plain extents.
const TARGETS: [(&str, &[&str]); 5] = [
    ("backing", &[]),
    ("medium", &[]),
    ("snapshot", &["backing"]),
    ("origin", &["backing"]),
    ("merge", &["backing", "origin"]),
];

/// None is needed.
const KNOWN: [&str; 0] = [];

#[test]
fn targets_do_not_know_each_other() {
    let mut broken = Vec::new();
    for source in shipped() {
        let Some(file) = source.path.strip_prefix("store/src/target/") else { continue };
        let own = file.trim_end_matches(".rs");
        if own == "mod" {
            continue;
        }
        let row = TARGETS.iter().find(|(name, _)| *name == own);
        let (_, may) = row.unwrap_or_else(|| panic!("'{own}' has no row in TARGETS"));
        let types = ["Backing", "Snapshot", "Origin", "Merge"];
        for (n, line) in source.shipped().filter(|(_, line)| line.contains("super::")) {
            for word in words(line) {
                let module =
                    if types.contains(&word) { word.to_ascii_lowercase() } else { word.into() };
                let other = TARGETS.iter().any(|(name, _)| *name == module) && module != own;
                if other && !may.contains(&module.as_str()) {
                    let who = format!("{}: {module}", source.path);
                    broken.push((who, format!("{}:{n}: '{own}' knows '{module}'", source.path)));
                }
            }
        }
    }
    none_but("Targets do not know each other.", broken, &KNOWN);
}
