//! What the program says of itself.

mod common;

use common::Place;

#[test]
fn capabilities_are_what_management_software_expects() {
    let place = Place::new();
    let said = place.ok("--print-capabilities");
    assert_eq!(said, "{\"type\":\"block\",\"features\":[\"read-only\",\"blk-file\"]}\n");
}

#[test]
fn every_command_has_help_and_a_manual_page() {
    let place = Place::new();
    let all = place.ok("--help");
    for command in ["serve", "create", "info", "check", "dump", "merge", "completions", "man"] {
        assert!(all.contains(&format!("\n  {command}")), "{all}");
        assert!(place.ok(&format!("{command} --help")).contains("Usage: snapblk"));
        assert!(place.ok(&format!("{command} -h")).contains("Usage: snapblk"));
    }
    assert!(place.ok("man").starts_with(".ie") || place.ok("man").contains(".TH snapblk"));
    place.ok("man --dir pages/man1");
    for page in ["snapblk.1", "snapblk-merge.1", "snapblk-serve.1"] {
        assert!(place.path("pages/man1").join(page).exists(), "{page}");
    }
}

#[test]
fn shells_complete() {
    let place = Place::new();
    for (shell, word) in [("bash", "_snapblk"), ("zsh", "#compdef snapblk"), ("fish", "-c snapblk")]
    {
        assert!(place.ok(&format!("completions {shell}")).contains(word));
    }
}

#[test]
fn usage_errors_have_their_status() {
    let place = Place::new();
    place.fails(2, "frobnicate");
    place.fails(2, "create");
    place.fails(2, "merge cow");
    place.fails(2, "serve --table T --blk-file f");
    let said = place.fails(2, "");
    assert!(said.contains("no command was given"), "{said}");
    assert!(place.ok("--version").starts_with("snapblk 0."));
}
