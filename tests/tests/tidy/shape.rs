//! The shape of files and functions: their length, their documentation, and forbidden content.

use crate::source::{Source, item_end, shipped, sources, words};
use crate::{none, none_but};

/// The most lines of a file, without those for tests.
const FILE: usize = 600;
/// The most lines of a function.
const FUNCTION: usize = 100;

/// Files that are too long and must be divided.
const LONG_FILES: [&str; 0] = [];
/// Functions that are too long.
const LONG_FUNCTIONS: [&str; 0] = [];

#[test]
fn files_are_short() {
    let mut broken = Vec::new();
    for source in sources().into_iter().filter(|source| !source.is_test) {
        let lines = source.shipped().count();
        if lines > FILE {
            let why = format!("{} has {lines} lines without its tests", source.path);
            broken.push((source.path, why));
        }
    }
    none_but("A file is one noun and has at most 600 lines, tests left out.", broken, &LONG_FILES);
}

#[test]
fn functions_are_short() {
    let mut broken = Vec::new();
    for source in sources().into_iter().filter(|source| !source.is_test) {
        for (n, name, lines) in functions(&source) {
            if lines > FUNCTION {
                let who = format!("{}: {name}", source.path);
                broken.push((who, format!("{}:{n}: {name} has {lines} lines", source.path)));
            }
        }
    }
    none_but("A function has at most 100 lines.", broken, &LONG_FUNCTIONS);
}

/// First line, name and number of lines of each function that ships.
fn functions(source: &Source) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = source.code.lines().collect();
    let mut found = Vec::new();
    for (n, line) in source.shipped() {
        let mut rest = words(line).skip_while(|word| *word != "fn");
        if rest.next().is_some()
            && let Some(name) = rest.next()
            && line.contains(&format!("fn {name}"))
        {
            found.push((n, name.to_owned(), item_end(&lines, n - 1) + 2 - n));
        }
    }
    found
}

#[test]
fn functions_are_measured_from_their_first_line_to_their_brace() {
    let all = sources();
    let this = all.iter().find(|source| source.path == "tests/src/rng.rs").unwrap();
    let functions = functions(this);
    let lines: Vec<&str> = this.code.lines().collect();
    assert!(!functions.is_empty());
    for (n, name, length) in functions {
        assert!(lines[n - 1].contains(&name), "{name}");
        assert!(
            lines[n + length - 2].trim_end().ends_with('}'),
            "{name}: {}",
            lines[n + length - 2]
        );
    }
}

#[test]
fn every_module_says_what_it_owns() {
    let mut broken = Vec::new();
    for source in sources() {
        // Tests beside their module are described by their names.
        let described = source.text.trim_start().starts_with("//!");
        if !described && !source.is_test {
            broken.push(format!("{} has no description", source.path));
        }
    }
    none("Each module begins with //!: what it owns, and what it never knows.", &broken);
}

#[test]
fn nothing_is_left_unfinished() {
    const MACROS: [&str; 3] = ["todo", "unimplemented", "dbg"];
    let mut broken = Vec::new();
    for source in sources() {
        for (n, line) in source.code.lines().enumerate() {
            for name in MACROS {
                if line.contains(&format!("{name}!(")) || line.contains(&format!("{name}![")) {
                    broken.push(format!("{}:{}: {name}!", source.path, n + 1));
                }
            }
        }
    }
    none("Nothing that is merged is unfinished.", &broken);
}

#[test]
fn no_test_is_left_out() {
    let mut broken = Vec::new();
    for source in sources() {
        for (n, line) in source.code.lines().enumerate() {
            if line.contains("#[ignore") || line.contains(", ignore") && line.contains("cfg_attr") {
                let why = format!("{}:{}: a test is ignored", source.path, n + 1);
                broken.push((source.path.clone(), why));
            }
        }
    }
    none_but("A test runs, or is not there.", broken, &[]);
}

/// Until it executes another program, a child has its parent's descriptors: a connection that a
/// test closes stays open for as long. The functions in `snapblk_tests::server` prevent that.
#[test]
fn tests_with_connections_make_no_child_past_the_others() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|it| it.path.starts_with("tests/tests/control")) {
        for (n, line) in source.code.lines().enumerate() {
            if [".output()", ".spawn()", ".status()"].iter().any(|call| line.contains(call)) {
                broken.push(format!("{}:{}: {}", source.path, n + 1, line.trim()));
            }
        }
    }
    none("Children are made with `spawn` and `output` of `snapblk_tests::server`.", &broken);
}

/// Code that ships returns errors; where it cannot fail, `expect` says why.
#[test]
fn what_ships_does_not_unwrap() {
    let mut broken = Vec::new();
    for source in shipped() {
        for (n, line) in source.shipped() {
            if line.contains(".unwrap()") {
                broken.push(format!("{}:{n}: {}", source.path, line.trim()));
            }
        }
    }
    none("What ships returns errors; where it cannot fail, expect() says why.", &broken);
}
