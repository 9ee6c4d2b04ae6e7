//! Ways to break the code, and the test that detects each: `docs/mutations.md`, generated from the
//! patches in `tests/mutations`. `tests/mutate` tries them; here they are only compared with the
//! code.

use std::collections::{BTreeMap, BTreeSet};

use crate::{none, read, root, scenarios};

const PAGE: &str = "docs/mutations.md";
const DIRECTORY: &str = "tests/mutations";

const HEAD: &str = "# Mutations

Each patch in `tests/mutations` introduces one mistake, and makes the test in the last column fail. Scenario numbers are those of
[scenarios.md](scenarios.md); at least one patch breaks each scenario that has a test. [Known bugs](known-bugs.md) are
mistakes that were made elsewhere in similar code.

```sh
tests/mutate               # all of them
tests/mutate --sample 8    # some
tests/mutate 12            # this one
```

Tests of the program run the broken program. Tests in a guest need the files that `images/setup` makes.

The table is generated from the patches by `SNAPBLK_UPDATE=1 cargo test -p snapblk-tests --test tidy`. A test fails if a patch no
longer applies or the table differs from the patches.

| patch | what is broken | scenarios | known bugs | the test that fails |
| --- | --- | --- | --- | --- |
";

/// One patch: its name, its header, and for each file the text before each change.
struct Patch {
    name: String,
    header: BTreeMap<String, String>,
    before: Vec<(String, String)>,
}

impl Patch {
    fn parse(name: &str, text: &str) -> Patch {
        let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
        let pair = |line: &str| {
            let (key, value) = line.split_once(": ")?;
            Some((key.to_owned(), value.to_owned()))
        };
        let header = head.lines().filter_map(pair).collect();
        let (mut file, mut before) = (String::new(), Vec::<(String, String)>::new());
        for line in body.lines() {
            if let Some(path) = line.strip_prefix("--- a/") {
                path.clone_into(&mut file);
            } else if line.starts_with("@@") {
                before.push((file.clone(), String::new()));
            } else if let (Some((_, text)), Some(kept)) =
                (before.last_mut(), line.strip_prefix([' ', '-']).or(line.is_empty().then_some("")))
            {
                *text += kept;
                text.push('\n');
            }
        }
        Patch { name: name.to_owned(), header, before }
    }

    fn says(&self, key: &str) -> &str {
        self.header.get(key).map_or("", String::as_str)
    }

    /// The reasons why it does not apply, or the missing parts of its header.
    fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        for key in ["Breaks", "Test"] {
            if self.says(key).is_empty() {
                found.push(format!("{}: its header has no '{key}:'", self.name));
            }
        }
        if self.before.is_empty() {
            found.push(format!("{}: it changes nothing", self.name));
        }
        for (file, text) in &self.before {
            if !root().join(file).is_file() || !read(file).contains(text.as_str()) {
                found
                    .push(format!("{}: {file} does not have the lines that it changes", self.name));
            }
        }
        found
    }

    /// The numbers of the scenarios that it breaks.
    fn scenarios(&self) -> impl Iterator<Item = Result<u32, &str>> {
        let words = self.says("Scenarios").split(", ").filter(|word| !word.is_empty());
        words.map(|word| word.parse().map_err(|_| word))
    }

    fn row(&self) -> String {
        format!(
            "| [{0}](../{DIRECTORY}/{0}.patch) | {1} | {2} | {3} | `{4}` |\n",
            self.name,
            self.says("Breaks"),
            self.says("Scenarios"),
            self.says("Known bugs"),
            self.says("Test"),
        )
    }
}

fn patches() -> Vec<Patch> {
    let directory = root().join(DIRECTORY);
    let entries = std::fs::read_dir(&directory).expect("the patches' directory");
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".patch").map(str::to_owned))
        .collect();
    names.sort();
    names
        .iter()
        .map(|name| Patch::parse(name, &read(&format!("{DIRECTORY}/{name}.patch"))))
        .collect()
}

#[test]
fn every_mutation_applies() {
    let problems: Vec<String> = patches().iter().flat_map(Patch::problems).collect();
    none("A patch in tests/mutations fits the code, and says what it breaks.", &problems);
}

#[test]
fn every_scenario_that_a_test_proves_has_a_mutation() {
    let (all, patches) = (scenarios::all(), patches());
    let mut broken = BTreeSet::new();
    let mut problems = Vec::new();
    for patch in &patches {
        for scenario in patch.scenarios() {
            match scenario {
                Ok(number) if all.contains_key(&number) => _ = broken.insert(number),
                Ok(number) => problems.push(format!("{}: no scenario is {number}", patch.name)),
                Err(word) => problems.push(format!("{}: '{word}' is no number", patch.name)),
            }
        }
    }
    let unbroken = all.iter().filter(|(number, proven)| **proven && !broken.contains(*number));
    problems.extend(unbroken.map(|(number, _)| {
        format!("scenario {number} has tests, and no mutation says which of them can fail")
    }));
    none("A patch in tests/mutations breaks each scenario that has a test.", &problems);
}

#[test]
fn the_table_of_mutations_is_what_the_patches_say() {
    let rows: String = patches().iter().map(Patch::row).collect();
    let new = format!("{HEAD}{rows}");
    if std::env::var_os("SNAPBLK_UPDATE").is_some() {
        std::fs::write(root().join(PAGE), new).expect("the page can be written");
        return;
    }
    assert!(
        read(PAGE) == new,
        "{PAGE} is not what the patches say: run\n  SNAPBLK_UPDATE=1 cargo test -p snapblk-tests \
         --test tidy\nand commit it"
    );
}

#[test]
fn a_patch_is_read_as_it_is_applied() {
    let text =
        "Breaks: x\nTest: cargo test\n\n--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n kept\n-old\n+new\n";
    let patch = Patch::parse("001-x", text);
    assert_eq!(patch.says("Breaks"), "x");
    assert_eq!(patch.before, [("f".to_owned(), "kept\nold\n".to_owned())]);
}
