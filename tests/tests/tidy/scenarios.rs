//! The tests that prove each scenario: `docs/scenarios.md`, generated from the tests' names.
//!
//! A test names its scenarios in its own name (`scenario_17_…`, `scenario_17_and_39_…`, or short
//! `s26_s27_…`) or in a comment above it or in it ("scenario 66", "scenarios 17 and 22").

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Source, item_end, sources, words};
use crate::{none, read, root};

const PAGE: &str = "docs/scenarios.md";
/// The first words of the table's head.
const HEAD: &str = "| scenario |";

/// The tests of a file, each with its scenarios.
fn tests(source: &Source) -> Vec<(String, BTreeSet<u32>)> {
    let lines: Vec<&str> = source.text.lines().collect();
    let code_lines: Vec<&str> = source.code.lines().collect();
    let comments: Vec<&str> = source.comments.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for (n, code) in source.code.lines().enumerate() {
        let mut rest = words(code).skip_while(|word| *word != "fn");
        let (Some(_), Some(name)) = (rest.next(), rest.next()) else { continue };
        let above = lines[..n].iter().rev().map(|line| line.trim_start());
        let above: Vec<&str> =
            above.take_while(|line| line.starts_with("//") || line.starts_with("#[")).collect();
        if !above.iter().any(|line| line.starts_with("#[test]")) {
            continue;
        }
        let mut numbers = of_name(name);
        let above: Vec<&str> = above.into_iter().rev().filter(|l| l.starts_with("//")).collect();
        let within = &comments[n..=item_end(&code_lines, n)];
        numbers.extend(of_text(&above.join(" ")));
        numbers.extend(of_text(&within.join(" ")));
        found.push((name.to_owned(), numbers));
    }
    found
}

/// `scenario_17_and_39_words`: 17 and 39. `s26_s27_words`: 26 and 27.
fn of_name(name: &str) -> BTreeSet<u32> {
    let long = name.strip_prefix("scenario_").or(name.strip_prefix("scenarios_"));
    let number = |part: &str| match long {
        Some(_) => part.parse().ok(),
        None => part.strip_prefix('s').and_then(|digits| digits.parse().ok()),
    };
    let parts = long.unwrap_or(name).split('_').filter(|part| *part != "and" || long.is_none());
    parts.map_while(number).collect()
}

/// "scenarios 1, 2 and 4": all three. "4 to 6": 4, 5 and 6.
fn of_text(text: &str) -> BTreeSet<u32> {
    let lower = text.to_ascii_lowercase();
    let mut numbers = BTreeSet::new();
    for behind in lower.split("scenario").skip(1) {
        let (mut last, mut range) = (0, false);
        for word in behind.trim_start_matches('s').split([' ', ',']).filter(|w| !w.is_empty()) {
            let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            match bare.parse::<u32>() {
                Ok(number) => {
                    numbers.extend(if range { last..=number } else { number..=number });
                    (last, range) = (number, false);
                }
                Err(_) if bare == "to" => range = true,
                Err(_) if matches!(bare, "and" | "") => {}
                Err(_) => break,
            }
            if word.ends_with([':', '.', ';', ')']) {
                break;
            }
        }
    }
    numbers
}

#[test]
fn scenarios_are_found_in_names_and_comments() {
    let set = |numbers: &[u32]| numbers.iter().copied().collect::<BTreeSet<u32>>();
    assert_eq!(of_name("scenario_17_and_39_every_store"), set(&[17, 39]));
    assert_eq!(of_name("scenario_70_on_4_queues"), set(&[70]));
    assert_eq!(of_name("s26_s27_a_copy"), set(&[26, 27]));
    assert_eq!(of_name("a_scenario_70"), set(&[]));
    assert_eq!(of_name("sixteen_s5"), set(&[]));
    assert_eq!(of_text("/// Scenarios 17, 18 and 22: 5 of them."), set(&[17, 18, 22]));
    assert_eq!(of_text("/// Scenarios 3, 5 to 7, in any order"), set(&[3, 5, 6, 7]));
    assert_eq!(of_text("// (scenario 66) and 7"), set(&[66]));
}

/// For each scenario, its tests by file.
fn proofs() -> BTreeMap<u32, BTreeMap<String, Vec<String>>> {
    let mut proofs: BTreeMap<u32, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for source in sources() {
        for (name, numbers) in tests(&source) {
            for number in numbers {
                let files = proofs.entry(number).or_default();
                files.entry(source.path.clone()).or_default().push(name.clone());
            }
        }
    }
    proofs
}

/// The scenarios of the page, and whether a test proves them.
pub(crate) fn all() -> BTreeMap<u32, bool> {
    let proofs = proofs();
    let (_, rows) = page(&read(PAGE));
    rows.into_iter().map(|number| (number, proofs.contains_key(&number))).collect()
}

/// The page as it should be: the first two cells of its rows are kept, the third is generated. A row
/// that is there twice is there once.
fn page(old: &str) -> (String, BTreeSet<u32>) {
    let proofs = proofs();
    let mut rows = BTreeSet::new();
    let mut page = String::new();
    for line in old.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let number: Option<u32> = cells[0].trim().parse().ok();
        match number.filter(|_| line.starts_with("| ")) {
            Some(number) if !rows.insert(number) => {}
            Some(number) => {
                let tests = proofs.get(&number).map(cell).unwrap_or_default();
                page += &format!("| {number} | {} | {tests} |\n", cells[1].trim());
            }
            None => page += &format!("{line}\n"),
        }
    }
    (page, rows)
}

fn cell(files: &BTreeMap<String, Vec<String>>) -> String {
    let of_file = |(path, names): (&String, &Vec<String>)| {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        format!("[{path}](../{path}): {}", names.join(", "))
    };
    files.iter().map(of_file).collect::<Vec<_>>().join("; ")
}

#[test]
fn the_table_of_scenarios_is_what_the_tests_say() {
    let old = read(PAGE);
    assert!(old.contains(HEAD), "{PAGE} has no table that begins with '{HEAD}'");
    let (new, rows) = page(&old);
    let unknown: Vec<String> = proofs()
        .iter()
        .filter(|(number, _)| !rows.contains(number))
        .map(|(number, files)| format!("scenario {number}, named in {}", cell(files)))
        .collect();
    none("A test names a scenario that docs/scenarios.md has.", &unknown);
    if std::env::var_os("SNAPBLK_UPDATE").is_some() {
        std::fs::write(root().join(PAGE), new).unwrap();
        return;
    }
    assert!(
        old == new,
        "{PAGE} is not what the tests' names say: run\n  SNAPBLK_UPDATE=1 cargo test -p \
         snapblk-tests --test tidy\nand commit it"
    );
}
