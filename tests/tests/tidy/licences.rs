//! Every crate that is built in has a licence that users of snapblk can accept.

use std::process::Command;

use serde_json::Value;
use toml::Table;

use crate::{none, read};

/// The licences that `deny.toml` allows: the list is only there.
fn accepted() -> Vec<String> {
    let deny: Table = read("deny.toml").parse().unwrap();
    let allow = deny["licenses"]["allow"].as_array().expect("a list of licences");
    allow.iter().map(|licence| licence.as_str().expect("a name").to_owned()).collect()
}

/// Whether accepted licences alone can satisfy an SPDX expression. `/` is an old form of OR; AND
/// binds more strongly than OR, and parentheses bind most.
fn acceptable(expression: &str, accepted: &[String]) -> bool {
    let expression = expression.replace('/', " OR ");
    let either = split(&expression, " OR ");
    if either.len() > 1 {
        return either.into_iter().any(|part| acceptable(part, accepted));
    }
    let both = split(&expression, " AND ");
    if both.len() > 1 {
        return both.into_iter().all(|part| acceptable(part, accepted));
    }
    let one = expression.trim();
    match one.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => acceptable(inner, accepted),
        None => accepted.iter().any(|licence| licence == one),
    }
}

/// Splits at an operator outside of parentheses.
fn split<'a>(expression: &'a str, operator: &str) -> Vec<&'a str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0);
    for (at, character) in expression.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ' ' if depth == 0 && expression[at..].starts_with(operator) => {
                parts.push(&expression[start..at]);
                start = at + operator.len();
            }
            _ => {}
        }
    }
    parts.push(&expression[start..]);
    parts
}

#[test]
fn expressions_are_judged_as_spdx_has_them() {
    let accepted = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned);
    let acceptable = |expression| acceptable(expression, &accepted);
    assert!(acceptable("MIT"));
    assert!(acceptable("GPL-2.0 OR MIT"));
    assert!(acceptable("(MIT OR GPL-2.0) AND Unicode-3.0"));
    assert!(acceptable("Apache-2.0/MIT"));
    assert!(!acceptable("MIT AND GPL-2.0"));
    assert!(!acceptable("(MIT OR Apache-2.0) AND AGPL-3.0"));
    assert!(!acceptable(""));
}

#[test]
fn every_crate_has_an_acceptable_licence() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 50, "cargo metadata names {} packages", packages.len());
    let accepted = accepted();
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !acceptable(package["license"].as_str().unwrap_or_default(), &accepted))
        .map(|package| {
            format!("{} {}: {}", package["name"], package["version"], package["license"])
        })
        .collect();
    none("deny.toml does not allow the licences of these crates.", &refused);
}
