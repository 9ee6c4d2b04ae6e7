//! Which files may name a lock: compares the section "Locks" in `ARCHITECTURE.md` with the code.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{shipped, words};
use crate::{none, read};

/// Types in which a thread may wait for another, and their functions.
const LOCKS: [&str; 9] = [
    "Mutex",
    "RwLock",
    "Condvar",
    "Once",
    "OnceLock",
    "LazyLock",
    "mpsc",
    "channel",
    "sync_channel",
];

/// The words in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The section's modules, as `crate/src/module`, and the locks that it allows each file.
fn section() -> (BTreeSet<String>, BTreeMap<String, BTreeSet<String>>) {
    let page = read("ARCHITECTURE.md");
    let section = page.split("\n## Locks\n").nth(1).expect("the heading 'Locks'");
    let section = section.split("\n## ").next().unwrap_or(section);
    let (mut modules, mut allowed) = (BTreeSet::new(), BTreeMap::new());
    for line in section.lines() {
        if let Some(row) = line.strip_prefix("| `") {
            let (file, rest) = row.split_once("` | ").expect("a row begins with a file");
            let locks = rest.split(" | ").next().unwrap_or_default();
            allowed.insert(file.to_owned(), quoted(locks).map(str::to_owned).collect());
        } else if let Some(list) = line.strip_prefix("- ") {
            let mut names = quoted(list);
            let of = names.next().expect("a list begins with a crate");
            modules
                .extend(names.map(|module| format!("{of}/src/{}", module.trim_end_matches('/'))));
        }
    }
    assert!(
        modules.len() > 10 && !allowed.is_empty(),
        "the section is read: {modules:?} {allowed:?}"
    );
    (modules, allowed)
}

#[test]
fn the_way_of_a_request_names_no_lock() {
    let (modules, allowed) = section();
    let (mut broken, mut seen) = (Vec::new(), BTreeSet::new());
    let mut needless = allowed.clone();
    for source in shipped() {
        let is_in = |module: &&String| {
            source.path.strip_prefix(*module).is_some_and(|rest| rest.starts_with(['.', '/']))
        };
        let Some(module) = modules.iter().find(is_in) else { continue };
        seen.insert(module.clone());
        for (n, line) in source.shipped() {
            for word in words(line).filter(|word| LOCKS.contains(word)) {
                needless.get_mut(&source.path).map(|locks| locks.remove(word));
                if !allowed.get(&source.path).is_some_and(|locks| locks.contains(word)) {
                    broken.push(format!("{}:{n}: {word}", source.path));
                }
            }
        }
    }
    broken.extend(modules.difference(&seen).map(|module| format!("there is no {module}")));
    needless.retain(|_, locks| !locks.is_empty());
    broken.extend(needless.iter().map(|(file, locks)| {
        format!("{file} has no {locks:?} any more: take that out of ARCHITECTURE.md")
    }));
    none("On the way of a request only the files that ARCHITECTURE.md lists name a lock.", &broken);
}
