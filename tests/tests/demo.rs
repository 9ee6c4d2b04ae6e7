//! The demo of the README, and that it fails without the rollback.

use std::path::Path;
use std::process::{Command, Output};

use snapblk_tests::server::find_snapblk;

fn demo(arguments: &[&str]) -> (Output, String) {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/demo");
    let snapblk = find_snapblk().unwrap_or_else(|error| panic!("{error}"));
    let output = Command::new(demo).args(arguments).env("SNAPBLK", snapblk).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output, said)
}

#[test]
fn the_demo_ends_with_everything_back() {
    let (output, said) = demo(&[]);
    assert!(output.status.success(), "{}\n{said}", output.status);
    assert!(said.contains("all 121 checksums match"), "{said}");
    assert!(!said.contains('\x1b'), "no colours where nobody sees them:\n{said}");
}

#[test]
fn without_the_rollback_the_demo_fails_for_the_checksums() {
    let (output, said) = demo(&["--break"]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("of 121 files are not what their checksums say"), "{said}");
    assert!(!said.contains("All is well"), "{said}");
}
