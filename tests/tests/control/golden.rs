//! Stores that a real kernel wrote, served.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use snapblk_tests::server::Scratch;

use crate::common::*;

fn fixtures() -> Vec<PathBuf> {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden");
    let entries = fs::read_dir(&all).unwrap().map(|entry| entry.unwrap().path());
    let mut dirs: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    dirs.sort();
    dirs
}

fn unpack(dir: &Path, name: &str, scratch: &Scratch) -> PathBuf {
    let packed = fs::read(dir.join(format!("{name}.raw.xz"))).unwrap();
    let mut bytes = Vec::new();
    lzma_rs::xz_decompress(&mut &packed[..], &mut bytes).unwrap();
    scratch.file(&format!("{name}.raw"), &bytes).unwrap()
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The numbers, or the word, in the last status line that the kernel printed for the snapshot.
fn last_status(meta: &Value) -> String {
    let last = meta["status_and_table"].as_array().unwrap().last().unwrap().as_str().unwrap();
    let (status, _) = last.split_once("##").unwrap();
    let line = status.split(';').find(|line| line.trim().starts_with("snap:")).unwrap();
    // snap: 0 2048 snapshot 16/256 16
    line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ")
}

fn served(dir: &Path) {
    let meta: Value = serde_json::from_slice(&fs::read(dir.join("meta.json")).unwrap()).unwrap();
    let name = meta["name"].as_str().unwrap();
    let scratch = scratch();
    let (origin, cow) = (unpack(dir, "origin", &scratch), unpack(dir, "cow", &scratch));
    let before = (fs::read(&origin).unwrap(), fs::read(&cow).unwrap());
    assert_eq!(sha(&before.0), meta["sha256"]["origin"], "{name}");
    let (sectors, chunk) = (before.0.len() / 512, meta["chunk_sectors"].as_u64().unwrap());
    let kind = meta["table_type"].as_str().unwrap();
    let line = format!("0 {sectors} snapshot {} {} {kind} {chunk}", word(&origin), word(&cow));
    let mut world = World::start(&serve(&scratch).arg("--table").arg(&line));
    assert_eq!(world.table("disk0"), [line], "{name}");
    assert_eq!(
        world.status("disk0"),
        [format!("0 {sectors} snapshot {}", last_status(&meta))],
        "{name}"
    );
    let mut disk = world.disk();
    if meta["cow"]["valid"] == 1 {
        let all = disk.read_all().unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(sha(&all), meta["sha256"]["snap"], "{name}");
    } else {
        for at in [0, sectors as u64 * 256, (sectors as u64 - 8) * 512] {
            assert!(disk.read(at, 4096).is_err_and(|error| error.is_refused()), "{name}: {at}");
        }
        assert!(disk.write(0, &[1; 4096]).is_err_and(|error| error.is_refused()), "{name}");
    }
    drop(disk);
    world.stop();
    // Serving and reading changed nothing.
    assert!(fs::read(&origin).unwrap() == before.0, "{name}: the origin was written");
    assert!(fs::read(&cow).unwrap() == before.1, "{name}: the store was written");
}

#[test]
fn scenario_17_each_store_of_the_kernel_is_served_as_the_kernel_serves_it() {
    let fixtures = fixtures();
    assert_eq!(fixtures.len(), 12);
    for dir in fixtures {
        served(&dir);
    }
}
