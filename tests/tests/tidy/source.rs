//! The workspace's Rust files, with comments, strings and tests separated from code.
//!
//! Owns a scanner that knows just enough of Rust's tokens for that: line and nested block
//! comments, strings, raw strings, characters and lifetimes.

use std::collections::BTreeSet;
use std::path::Path;

use crate::root;

/// The crates, by their folders.
const CRATES: [&str; 4] = ["backend", "store", "qmp-bridge", "tests"];

/// One file.
pub(crate) struct Source {
    /// Its path from the root, with `/`.
    pub(crate) path: String,
    /// Its text.
    pub(crate) text: String,
    /// The same lines; comments and strings are blank.
    pub(crate) code: String,
    /// The same lines; everything but comments is blank.
    pub(crate) comments: String,
    /// For each line, whether it is compiled into tests only.
    test_lines: Vec<bool>,
    /// Whether all of it is for tests.
    pub(crate) is_test: bool,
}

impl Source {
    fn new(path: String, text: String) -> Source {
        let (code, comments) = tell_apart(&text);
        let test_lines = test_lines(&code);
        Source { path, text, code, comments, test_lines, is_test: false }
    }

    /// The lines of code that ship, numbered from one.
    pub(crate) fn shipped(&self) -> impl Iterator<Item = (usize, &str)> {
        let keep = move |n: &usize| !self.is_test && !self.test_lines[*n];
        let lines = self.code.lines().enumerate();
        lines.filter(move |(n, _)| keep(n)).map(|(n, line)| (n + 1, line))
    }

    /// The modules that it declares, and whether for tests only.
    fn modules(&self) -> Vec<(String, bool)> {
        let mut found = Vec::new();
        for (n, line) in self.code.lines().enumerate() {
            let mut words = line.split_whitespace().skip_while(|word| word.starts_with("pub"));
            if words.next() == Some("mod")
                && let Some(name) = words.next().and_then(|word| word.strip_suffix(';'))
            {
                found.push((name.to_owned(), self.test_lines[n]));
            }
        }
        found
    }

    /// The folder of the modules that it declares.
    fn folder(&self) -> String {
        let path = self.path.strip_suffix(".rs").expect("a Rust file");
        let (folder, name) = path.rsplit_once('/').expect("a path with folders");
        if matches!(name, "lib" | "main" | "mod") { folder.into() } else { path.into() }
    }
}

/// All files, in the order of their paths.
pub(crate) fn sources() -> Vec<Source> {
    let mut paths = BTreeSet::new();
    for name in CRATES {
        collect(&root().join(name), &mut paths);
    }
    let mut sources: Vec<Source> = paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(root().join(&path)).unwrap();
            Source::new(path, text)
        })
        .collect();
    assert!(sources.len() > 100, "only {} files were found", sources.len());
    mark_tests(&mut sources);
    sources
}

/// The files that ship: those of the three crates of the program.
pub(crate) fn shipped() -> Vec<Source> {
    let mut sources = sources();
    sources.retain(|source| {
        let folders: Vec<&str> = source.path.split('/').collect();
        folders[0] != "tests" && folders[1] == "src" && !source.is_test
    });
    sources
}

fn collect(folder: &Path, paths: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let path = path.strip_prefix(root()).unwrap();
            paths.insert(path.to_str().expect("paths are ASCII").to_owned());
        }
    }
}

/// Marks modules that are declared for tests only, and the modules below them.
fn mark_tests(sources: &mut [Source]) {
    let mut tests: BTreeSet<String> = BTreeSet::new();
    // A parent sorts before its children, except `foo.rs`, which sorts after `foo/bar.rs`: repeated
    // until nothing changes.
    loop {
        let before = tests.len();
        for source in sources.iter() {
            let second = source.path.split('/').nth(1);
            let whole = tests.contains(&source.path) || second == Some("tests");
            if whole {
                tests.insert(source.path.clone());
            }
            for (name, test) in source.modules() {
                if whole || test {
                    let folder = source.folder();
                    tests.insert(format!("{folder}/{name}.rs"));
                    tests.insert(format!("{folder}/{name}/mod.rs"));
                }
            }
        }
        if tests.len() == before {
            break;
        }
    }
    for source in sources {
        source.is_test = tests.contains(&source.path);
    }
}

/// Code and comments, each with everything else blanked out, line by line.
fn tell_apart(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let mut kinds = vec![Kind::Code; bytes.len()];
    let mut at = 0;
    while at < bytes.len() {
        let (end, kind) = token(bytes, at);
        kinds[at..end].fill(kind);
        at = end;
    }
    let only = |wanted: Kind| {
        let keep = |(&byte, &kind): (&u8, &Kind)| match byte {
            b'\n' => b'\n',
            byte if kind == wanted && byte.is_ascii() => byte,
            _ => b' ',
        };
        String::from_utf8(bytes.iter().zip(&kinds).map(keep).collect()).expect("ASCII")
    };
    (only(Kind::Code), only(Kind::Comment))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

/// The end of the token at `at`, and its kind.
fn token(bytes: &[u8], at: usize) -> (usize, Kind) {
    let rest = &bytes[at..];
    let find = |from: usize, what: &[u8]| {
        let found = rest[from..].windows(what.len()).position(|window| window == what);
        found.map_or(bytes.len(), |found| at + from + found + what.len())
    };
    let starts_word = at == 0 || !(bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => {
            let end = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
            (at + end, Kind::Comment)
        }
        [b'/', b'*', ..] => (block_comment(bytes, at), Kind::Comment),
        [b'"', ..] => (string(bytes, at + 1), Kind::Literal),
        [b'r', b'"' | b'#', ..] if starts_word => {
            let hashes = rest[1..].iter().take_while(|&&b| b == b'#').count();
            if rest.get(1 + hashes) != Some(&b'"') {
                return (at + 1, Kind::Code);
            }
            let close: Vec<u8> =
                std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            (find(2 + hashes, &close), Kind::Literal)
        }
        [b'\'', b'\\', ..] => (find(3, b"'"), Kind::Literal),
        [b'\'', _, b'\'', ..] => (at + 3, Kind::Literal),
        // A character of several bytes; otherwise a lifetime.
        [b'\'', first, ..] if !first.is_ascii() => (find(1, b"'"), Kind::Literal),
        _ => (at + 1, Kind::Code),
    }
}

fn block_comment(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    at
}

fn string(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Lines of items that have `test` in a `#[cfg(…)]` without `not`.
fn test_lines(code: &str) -> Vec<bool> {
    let lines: Vec<&str> = code.lines().collect();
    let mut marks = vec![false; lines.len()];
    for n in 0..lines.len() {
        let line = lines[n].trim_start();
        let cfg = line.starts_with("#[cfg(test") || line.starts_with("#[cfg(all(test");
        if cfg {
            let end = item_end(&lines, n + 1);
            marks[n..=end].fill(true);
        }
    }
    marks
}

/// The last line of the item that begins at line `from`: that of its `;` or of its closing brace.
pub(crate) fn item_end(lines: &[&str], from: usize) -> usize {
    let mut depth = 0usize;
    for (n, line) in lines.iter().enumerate().skip(from) {
        for byte in line.bytes() {
            match byte {
                b'{' | b'(' | b'[' => depth += 1,
                b')' | b']' => depth = depth.saturating_sub(1),
                b'}' => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return n;
                    }
                }
                b';' if depth == 0 => return n,
                _ => {}
            }
        }
    }
    lines.len() - 1
}

/// The identifiers of a line of code.
pub(crate) fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

#[test]
fn code_comments_and_strings_are_told_apart() {
    let text =
        "let a = \"// no \\\" comment\"; // yes 'x' \"\nlet b = r#\"{\"#; /* one /* two */ { */ c";
    let (code, comments) = tell_apart(text);
    let code: Vec<&str> = code.lines().map(str::trim_end).collect();
    assert_eq!(code[0].split_whitespace().collect::<Vec<_>>(), ["let", "a", "=", ";"]);
    assert_eq!(code[1].split_whitespace().collect::<Vec<_>>(), ["let", "b", "=", ";", "c"]);
    assert!(comments.lines().next().unwrap().ends_with("// yes 'x' \""));
    let (code, _) = tell_apart("fn f<'a>(x: &'a u8) -> bool { *x == b'{' || *x == b'\\'' }");
    assert_eq!(code.matches('{').count(), 1, "{code}");
}

#[test]
fn tests_are_told_from_what_ships() {
    let text = "#[cfg(test)]\nmod tests;\nfn a() {}\n#[cfg(all(test, not(x)))]\nmod t {\n  fn b() {}\n}\nfn c() {}";
    let source = Source::new("store/src/x.rs".into(), text.into());
    let lines: Vec<usize> = source.shipped().map(|(n, _)| n).collect();
    assert_eq!(lines, [3, 8]);
    assert_eq!(source.modules(), [("tests".to_owned(), true)]);
}
