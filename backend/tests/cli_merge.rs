//! `snapblk merge`, offline.

mod common;

use std::fs::OpenOptions;

use common::{Place, sha256};
use snapblk_store::io::{FileInfo, Lock, OpenMode};

#[test]
fn scenario_17_and_39_every_golden_store_merges_to_the_snapshot_s_content() {
    for name in [
        "p8-basic",
        "p32-basic",
        "po8-basic",
        "p8-empty",
        "p8-two-areas",
        "p8-area-just-full",
        "p1-many-areas",
        "p8-half-merged",
        "p8-merged",
        "p8-parallel",
    ] {
        let place = Place::new();
        let meta = place.golden(name);
        let merged = place.json("merge --into origin cow --json");
        assert_eq!(merged["chunks"], meta["cow"]["exceptions"].as_array().unwrap().len());
        assert_eq!(sha256(&place.read("origin")), meta["sha256"]["snap"], "{name}");
        let info = place.json("info cow --json");
        assert_eq!((&info["exceptions"], &info["valid"]), (&0.into(), &true.into()));
        assert_eq!(info["allocated"], info["metadata"], "finished, as the kernel says it");
        place.ok("check cow --origin origin");
        place.ok("merge --into origin cow");
        assert_eq!(sha256(&place.read("origin")), meta["sha256"]["snap"], "{name} again");
    }
}

/// A disk has whole sectors; bytes of its file after the last one do not belong to it.
#[test]
fn what_is_behind_the_last_sector_stays() {
    let place = Place::new();
    place.golden("p8-basic");
    let mut origin = OpenOptions::new().append(true).open(place.path("origin")).unwrap();
    let len = origin.metadata().unwrap().len();
    std::io::Write::write_all(&mut origin, &[0x5a; 300]).unwrap();
    // The store's last chunk, as if it belonged to that disk.
    let mut store = place.read("cow");
    let chunk = 4096u64;
    let last = len / chunk;
    let entries: &mut [u8] = &mut store[chunk as usize..2 * chunk as usize];
    entries[..8].copy_from_slice(&last.to_le_bytes());
    std::fs::write(place.path("cow"), store).unwrap();
    place.ok("merge --into origin cow");
    assert_eq!(place.read("origin")[len as usize..], [0x5a; 300]);
}

#[test]
fn an_invalid_store_is_not_merged() {
    let place = Place::new();
    place.golden("p8-full-by-snapshot-write");
    let before = place.read("origin");
    let said = place.fails(1, "merge --into origin cow");
    assert!(said.contains("cow is marked Invalid"), "{said}");
    assert_eq!(place.read("origin"), before);
}

#[test]
fn scenario_77_a_file_that_is_in_use_is_not_merged_into() {
    let place = Place::new();
    place.golden("p8-basic");
    for name in ["origin", "cow"] {
        let info = FileInfo::open(&place.path(name), OpenMode::ReadOnly, false).unwrap();
        let lock = Lock::shared_read(&info, None).unwrap();
        let said = place.fails(1, "merge --into origin cow");
        assert!(said.contains(&format!("{name} is in use")), "{said}");
        place.ok("info cow");
        drop(lock);
    }
    let info = FileInfo::open(&place.path("cow"), OpenMode::ReadWrite, false).unwrap();
    let lock = Lock::exclusive(&info, None).unwrap();
    assert!(place.fails(1, "info cow").contains("cow is in use"));
    drop(lock);
    place.ok("merge --into origin cow");
}

#[test]
fn a_disk_that_is_marked_read_only_needs_force() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let meta = place.golden("p8-basic");
    let read_only = std::fs::Permissions::from_mode(0o444);
    std::fs::set_permissions(place.path("origin"), read_only).unwrap();
    let said = place.fails(1, "merge --into origin cow");
    assert!(said.contains("destroy every other overlay"), "{said}");
    // Only a user who may write such a file nevertheless gets further.
    if OpenOptions::new().write(true).open(place.path("origin")).is_ok() {
        place.ok("merge --force --into origin cow");
        assert_eq!(sha256(&place.read("origin")), meta["sha256"]["snap"]);
    }
}

/// The state of its server says what other overlays may need.
#[test]
fn a_disk_that_the_store_s_server_only_reads_needs_force() {
    let place = Place::new();
    let meta = place.golden("p8-basic");
    let [origin, cow] = ["origin", "cow"].map(|name| place.path(name).display().to_string());
    let state = |table: &str| {
        let text = format!(
            "version = 1\ngeneration = 1\nescaped = true\n[devices.a]\ntable = [{table}]\n\
             [[bases]]\npath = '{origin}'\nstore = '{cow}'\nsize = 1\nmodified = 1\n"
        );
        place.file("cow.state", text.as_bytes());
    };
    let before = place.read("origin");
    state(&format!("'0 8 snapshot {origin} {cow} P 8'"));
    let said = place.fails(1, "merge --into origin cow");
    assert!(said.contains("is only read by the server") && said.contains("--force"), "{said}");
    place.file("cow.state", b"nothing that can be read");
    let said = place.fails(1, "merge --into origin cow");
    assert!(said.contains("cow.state") && said.contains("--force"), "{said}");
    assert!(place.read("origin") == before, "it was written");
    // A guest's own disk below an overlay that was put on it.
    state(&format!("'0 8 linear {origin} 0'"));
    place.ok("merge --into origin cow");
    assert_eq!(sha256(&place.read("origin")), meta["sha256"]["snap"]);
}

#[test]
fn a_store_for_a_larger_disk_is_refused() {
    let place = Place::new();
    place.golden("p8-basic");
    place.sparse("short", 4096 * 100);
    let said = place.fails(1, "merge --into short cow");
    assert!(said.contains("of an origin of 100 chunks; 'snapblk check --origin' lists"), "{said}");
    assert!(place.fails(2, "merge --into cow cow").contains("are one file"));
    assert!(place.fails(1, "merge --into missing cow").contains("missing"));
}

#[test]
fn scenario_11_a_last_chunk_that_the_disk_ends_in_is_clipped() {
    let place = Place::new();
    place.golden("p8-basic");
    let mut expected = place.read("origin");
    let cow = place.read("cow");
    // The last chunk of the disk, 1023, is in chunk 8 of the store.
    expected.truncate(1023 * 4096 + 512);
    place.file("origin", &expected);
    place.ok("merge --into origin cow");
    let merged = place.read("origin");
    assert_eq!(merged.len(), 1023 * 4096 + 512);
    assert_eq!(merged[1023 * 4096..], cow[8 * 4096..8 * 4096 + 512]);
}
