//! Exception stores and a real kernel's dm-snapshot (scenarios 17 and 22).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use serde_json::Value;
use snapblk_tests::client::{Client, Connect};
use snapblk_tests::kernel::{self, Store, Verdict};
use snapblk_tests::server::{Place, Scratch, ServerCommand, find_snapblk};
use snapblk_tests::verify::{self, Ledger, Load, Watch};

/// The golden fixtures: stores that another kernel wrote, with the content that it read from them.
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

/// Unpacks `folder/NAME.raw.xz` and returns the file's path.
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
/// reads or merges differently would be found. This verifies the judge, without snapblk.
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

/// The sum of a file by coreutils, which the guest uses too.
fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum is installed");
    assert!(output.status.success(), "sha256sum could not read {}", path.display());
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap().to_owned()
}

/// Serves a disk, takes a snapshot of it, writes randomly and stops the server. The expected
/// content of the snapshot is the disk's first image, whose sum is returned.
fn write_behind_a_snapshot(
    scratch: &Scratch,
    chunk_sectors: u32,
    persistence: &str,
) -> (Store, String) {
    const SECTORS: u64 = (8 << 20) / 512;
    let name = format!("{persistence}{chunk_sectors}");
    let origin = scratch.file(&format!("{name}.origin"), &Ledger::image(SECTORS)).unwrap();
    let cow = scratch.path(&format!("{name}.cow"));
    let content = sha256(&origin);
    let server = ServerCommand::snapblk(scratch).unwrap();
    let server = server.arg("--blk-file").arg(&origin).start().unwrap_or_else(|e| panic!("{e}"));
    let taken = Command::new(find_snapblk().unwrap())
        .arg("ctl")
        .arg(server.monitor())
        .args(["snapshot", "disk0", "before", "--persistent", persistence])
        .args(["--chunk-size", &(chunk_sectors * 512).to_string()])
        .arg("--cow")
        .arg(&cow)
        .output()
        .unwrap();
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
    let ledger = Mutex::new(Ledger::stamped(SECTORS));
    let load = Load::new(u64::from(std::process::id())).requests(400);
    let client = Client::connect(&Connect::to(server.socket()).pool(load.pool(1)));
    let client = client.unwrap_or_else(|error| panic!("{error}\n{}", server.stderr()));
    verify::run(client, &ledger, &load, &Watch::default())
        .unwrap_or_else(|error| panic!("{error}\n{}", server.stderr()));
    let status = server.terminate().unwrap_or_else(|error| panic!("{error}"));
    assert!(status.success(), "SIGTERM ended it with {status}");
    assert_ne!(sha256(&origin), content, "the load has written nothing");
    (Store { name, origin, cow, persistence: persistence.to_owned(), chunk_sectors }, content)
}

/// The kernel loads, reads and merges the store that snapblk wrote.
#[test]
fn scenario_22_a_store_written_here_loads_and_merges_in_a_real_kernel() {
    let scratch = Scratch::new(Place::Memory).unwrap();
    let (stores, contents): (Vec<_>, Vec<_>) = [(8, "PO"), (8, "P"), (1, "P"), (128, "PO")]
        .map(|(chunk, persistence)| write_behind_a_snapshot(&scratch, chunk, persistence))
        .into_iter()
        .unzip();
    let origins: Vec<String> = stores.iter().map(|store| sha256(&store.origin)).collect();
    let verdicts = kernel::judge(&stores).unwrap_or_else(|error| panic!("{error}"));
    for (((store, content), written), verdict) in
        stores.iter().zip(&contents).zip(&origins).zip(verdicts)
    {
        let name = &store.name;
        let Verdict::Merged { snapshot, origin, merged, reloaded, .. } = verdict else {
            panic!("{name}: {verdict:?}");
        };
        assert_eq!(snapshot, *content, "{name}: the snapshot's content");
        assert_eq!(origin, *written, "{name}: the origin's content");
        assert_eq!(merged, *content, "{name}: the origin after the merge");
        assert_eq!(reloaded, *content, "{name}: the emptied store on the merged origin");
        assert_eq!(sha256(&store.origin), *content, "{name}: the file after the merge");
    }
}
