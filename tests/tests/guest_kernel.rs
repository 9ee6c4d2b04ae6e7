//! Exception stores and a real kernel's dm-snapshot (scenarios 17 and 22).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use snapblk_tests::kernel::{self, Store, Verdict};
use snapblk_tests::server::{Place, Scratch};

/// The golden fixtures: stores that another kernel wrote, with what it read from them.
fn fixtures() -> Vec<(String, PathBuf, Value)> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden");
    let mut fixtures: Vec<_> = fs::read_dir(&golden)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| {
            let meta = fs::read(entry.path().join("meta.json")).unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, entry.path(), serde_json::from_slice(&meta).unwrap())
        })
        .collect();
    fixtures.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(fixtures.len(), 12, "{}", golden.display());
    fixtures
}

/// Unpacks `folder/NAME.raw.xz` and returns where to.
fn unpack(folder: &Path, name: &str, scratch: &Scratch, as_name: &str) -> PathBuf {
    let packed = folder.join(format!("{name}.raw.xz"));
    let unpacked = Command::new("xz").arg("-dc").arg(&packed).output().expect("xz is installed");
    assert!(unpacked.status.success(), "xz could not unpack {}", packed.display());
    scratch.file(as_name, &unpacked.stdout).unwrap()
}

fn text<'a>(meta: &'a Value, pointer: &str) -> &'a str {
    meta.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer}"))
}

/// The guest's kernel reads and merges the golden fixtures as their notes say; a store that it
/// would read or merge otherwise would be found. This proves the judge, and needs no snapblk.
#[test]
fn scenario_17_the_kernel_judges_the_golden_fixtures_as_their_notes_say() {
    let scratch = Scratch::new(Place::Memory).unwrap();
    let fixtures = fixtures();
    let stores: Vec<Store> = fixtures
        .iter()
        .map(|(name, folder, meta)| Store {
            name: name.clone(),
            origin: unpack(folder, "origin", &scratch, &format!("{name}.origin")),
            cow: unpack(folder, "cow", &scratch, &format!("{name}.cow")),
            persistence: text(meta, "/table_type").to_owned(),
            chunk_sectors: u32::try_from(meta["chunk_sectors"].as_u64().unwrap()).unwrap(),
        })
        .collect();
    let verdicts = kernel::judge(&stores).unwrap_or_else(|error| panic!("{error}"));
    for ((name, folder, meta), (store, verdict)) in fixtures.iter().zip(stores.iter().zip(verdicts))
    {
        if meta.pointer("/cow/valid").and_then(Value::as_u64) == Some(0) {
            assert_eq!(verdict, Verdict::Invalid, "{name}");
            continue;
        }
        let Verdict::Merged { snapshot, origin, merged, reloaded, .. } = verdict else {
            panic!("{name}: {verdict:?}");
        };
        let content = text(meta, "/sha256/snap");
        assert_eq!(snapshot, content, "{name}: the snapshot's content");
        assert_eq!(origin, text(meta, "/sha256/origin"), "{name}: the origin's content");
        assert_eq!(merged, content, "{name}: the origin after the merge");
        assert_eq!(reloaded, content, "{name}: the emptied store on the merged origin");
        let expected = fs::read(unpack(folder, "snap", &scratch, "expected")).unwrap();
        assert!(fs::read(&store.origin).unwrap() == expected, "{name}: the file after the merge");
    }
}
