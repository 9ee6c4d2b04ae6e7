//! The files in which `unsafe` is allowed, and that each use has its reason.

use crate::none_but;
use crate::source::{sources, words};

/// The allowed files, including the tests' client, which is the other end of the shared memory, the
/// allocator that counts, and what a test's child does before it is another program.
const FENCED: [&str; 12] = [
    "store/src/io/uring.rs",
    "store/src/io/buffer.rs",
    "store/src/io/buffer/mapping.rs",
    "store/src/io/shared.rs",
    "store/src/exception/arena/mapping.rs",
    "store/src/exception/directory.rs",
    "backend/src/memory.rs",
    "backend/src/memory/mapped.rs",
    "tests/src/client/memory.rs",
    "tests/src/client/queue.rs",
    "tests/src/server/child.rs",
    "tests/tests/allocations/counter.rs",
];

/// None is needed.
const KNOWN: [&str; 0] = [];

/// How many lines above an `unsafe` its reason may begin: a comment, and the start of the
/// statement.
const REACH: usize = 12;

#[test]
fn unsafe_code_stays_in_its_files() {
    let mut broken = Vec::new();
    for source in sources() {
        if FENCED.contains(&source.path.as_str()) {
            continue;
        }
        if let Some((n, _)) = unsafe_lines(&source.code).next() {
            let why = format!("{}:{}: unsafe code", source.path, n + 1);
            broken.push((source.path, why));
        }
    }
    none_but("unsafe stays in the files that ARCHITECTURE.md lists.", broken, &KNOWN);
}

#[test]
fn unsafe_code_says_why_it_is_sound() {
    let mut broken = Vec::new();
    for source in sources() {
        let comments: Vec<&str> = source.comments.lines().collect();
        for (n, _) in unsafe_lines(&source.code) {
            let above = &comments[n.saturating_sub(REACH)..=n];
            let says = |line: &&str| line.contains("SAFETY:") || line.contains("# Safety");
            if !above.iter().any(says) {
                let why = format!("{}:{}: no SAFETY comment above", source.path, n + 1);
                broken.push((source.path.clone(), why));
            }
        }
    }
    none_but(
        "Each unsafe block has a comment that begins with SAFETY:, each unsafe function a section.",
        broken,
        &[],
    );
}

/// Lines with the keyword; `unsafe fn` in a type, such as that of a pointer, needs no reason.
fn unsafe_lines(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().filter(|(_, line)| words(line).any(|word| word == "unsafe"))
}
