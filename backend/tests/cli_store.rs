//! `create`, `info`, `dump` and `check`, as a user runs them.

mod common;

use common::Place;

#[test]
fn a_store_for_a_disk_is_as_large_as_needed_and_sparse() {
    let place = Place::new();
    place.sparse("disk", 10 << 20);
    let made = place.json("create cow --origin disk --json");
    // 2560 chunks of 4 KiB: a header, 10 full areas of 256 with the next one, and the data.
    assert_eq!(made["size"], (1 + 2560 + 10 + 1) * 4096);
    assert_eq!(made["capacity"], 2560);
    let bytes = place.read("cow");
    assert_eq!(bytes.len(), 2572 * 4096);
    // Scenario 14: the header, byte for byte, and nothing else.
    assert_eq!(&bytes[..16], [0x53, 0x6e, 0x41, 0x70, 1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]);
    assert!(bytes[16..].iter().all(|&byte| byte == 0));
    let info = place.json("info cow --json");
    assert_eq!(info["valid"], true);
    assert_eq!((&info["allocated"], &info["metadata"]), (&8192.into(), &8192.into()));
    assert_eq!(info["exceptions"], 0);
    assert_eq!(info["free"], 2560);
    assert!(info["disk-size"].as_u64().unwrap() <= 16384, "{info}");
    assert_eq!(place.ok("dump cow --json"), "[]\n");
    assert_eq!(place.ok("check cow"), "0 exceptions, each in its place\n");
}

#[test]
fn sizes_and_chunks_are_what_was_asked_for() {
    let place = Place::new();
    place.sparse("disk", 1 << 20);
    let made = place.json("create a --origin disk --chunk-size 64K --size 1M --json");
    assert_eq!((&made["chunk-size"], &made["size"]), (&65536.into(), &(1 << 20).into()));
    assert_eq!(place.read("a").len(), 1 << 20);
    let said = place.ok("create b --origin disk --size full");
    assert_eq!(said, "b: a store of 1.0 MiB in chunks of 4 KiB, for disk of 1 MiB\n");
    // An existing empty file is accepted.
    place.sparse("c", 0);
    place.ok("create c --origin disk");
}

#[test]
fn a_store_of_large_chunks_is_sparse() {
    let place = Place::new();
    place.sparse("disk", 1 << 20);
    place.ok("create cow --origin disk --chunk-size 1G");
    let info = place.json("info cow --json");
    assert!(info["disk-size"].as_u64().unwrap() <= 16384, "{info}");
    assert_eq!((&info["valid"], &info["chunk-size"]), (&true.into(), &(1 << 30).into()));
}

#[test]
fn scenario_7_bad_chunk_sizes_are_a_usage_error() {
    let place = Place::new();
    place.sparse("disk", 1 << 20);
    for size in ["3K", "0", "256", "2G", "4097", "x"] {
        let said = place.fails(2, &format!("create cow --origin disk --chunk-size {size}"));
        assert!(said.contains(size), "{said}");
        assert!(!place.path("cow").exists());
    }
}

#[test]
fn nothing_is_overwritten() {
    let place = Place::new();
    place.sparse("disk", 1 << 20);
    place.file("notes", b"dear diary");
    let said = place.fails(1, "create notes --origin disk");
    assert_eq!(
        said,
        "snapblk: notes is there already and holds 10 bytes; remove it or name another file\n"
    );
    assert_eq!(place.read("notes"), b"dear diary");
    std::os::unix::fs::symlink(place.path("disk"), place.path("alias")).unwrap();
    let said = place.fails(1, "create alias --origin disk");
    assert!(said.contains("are one file"), "scenario 8: {said}");
    place.fails(1, "create cow --origin missing");
    assert!(!place.path("cow").exists());
    let said = place.fails(1, "create cow --origin disk --size 8K");
    assert!(said.contains("needs at least 12288"), "{said}");
    assert!(!place.path("cow").exists(), "and nothing is left of the attempt");
    // An empty file stays empty, and can be used for the next attempt.
    place.sparse("empty", 0);
    place.fails(1, "create empty --origin disk --size 4K");
    assert_eq!(place.read("empty").len(), 0);
    place.ok("create empty --origin disk");
    let said = place.fails(1, "create no/such/folder/cow --origin disk");
    assert!(said.contains("cannot create no/such/folder/cow"), "{said}");
}

#[test]
fn a_kernel_s_store_is_described() {
    let place = Place::new();
    place.golden("p8-basic");
    let info = place.json("info cow --json");
    // The kernel's status line said 120/2048 16 (sectors).
    assert_eq!(info["allocated"], 120 * 512);
    assert_eq!(info["size"], 2048 * 512);
    assert_eq!(info["metadata"], 16 * 512);
    assert_eq!(info["exceptions"], 13);
    let table = place.ok("info cow");
    assert!(table.contains("chunk size:     4 KiB\n"), "{table}");
    assert!(table.contains("state:          valid\n"), "{table}");
    // From its list: 5→2 6→3 7→4 40→5 9→6 20→7 1023→8 50→9 51→10 30→11 0→12 1022→13 10→14.
    let runs = [
        [0, 1, 12],
        [5, 3, 2],
        [9, 1, 6],
        [10, 1, 14],
        [20, 1, 7],
        [30, 1, 11],
        [40, 1, 5],
        [50, 2, 9],
        [1022, 1, 13],
        [1023, 1, 8],
    ];
    let expected: Vec<_> = runs
        .iter()
        .map(|[start, length, offset]| {
            serde_json::json!({
                "start": start * 4096, "length": length * 4096, "offset": offset * 4096
            })
        })
        .collect();
    assert_eq!(place.json("dump cow --json"), serde_json::Value::Array(expected));
    let text = place.ok("dump cow");
    let second: Vec<&str> = text.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(second, ["20480", "12288", "8192"]);
}

#[test]
fn scenario_20_damage_is_named_and_not_opened() {
    let place = Place::new();
    place.golden("p8-basic");
    let mut bytes = place.read("cow");
    bytes[4096 + 3 * 16] = 6; // entry 3: for chunk 6, as entry 1 is
    bytes[4096 + 5 * 16 + 8..4096 + 5 * 16 + 16].copy_from_slice(&999_999u64.to_le_bytes());
    place.file("cow", &bytes);
    let (out, err) = place.run("check cow").expect(1);
    assert!(out.contains("entry 5 at byte 4176 points at chunk 999999 of a store of 256 chunks"));
    assert!(
        out.contains("entry 3 at byte 4144 is for chunk 6, as is the one at byte 4112"),
        "{out}"
    );
    assert!(err.contains("2 entries that cannot be right"), "{err}");
    for command in ["info cow", "dump cow", "merge --into origin cow"] {
        let said = place.fails(1, command);
        assert!(said.contains("entry 5 at byte 4176"), "{said}");
    }
    let (out, _) = place.run("check cow --json").expect(1);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["problems"][0]["offset"], 4176);
    place.fails(1, "check cow --repair");
    assert_eq!(place.read("cow"), bytes, "what cannot be repaired is left as it is");
}

#[test]
fn what_is_no_store_is_said_to_be_none() {
    let place = Place::new();
    place.file("text", &[b'x'; 4096]);
    let said = place.fails(1, "info text");
    assert!(said.contains("text: its header (byte 0) is not that of a version 1"), "{said}");
    place.sparse("nothing", 1 << 20);
    assert!(place.fails(1, "info nothing").contains("holds no store yet"));
    assert!(place.fails(1, "info missing").contains("cannot open missing"));
}

#[test]
fn entries_beyond_the_disk_are_found_when_it_is_named() {
    let place = Place::new();
    place.golden("p8-basic");
    place.ok("check cow --origin origin");
    place.sparse("short", 1022 * 4096);
    let (out, _) = place.run("check cow --origin short").expect(1);
    assert!(out.contains("is for chunk 1023 of an origin of 1022 chunks"), "{out}");
    assert!(out.contains("is for chunk 1022 of"), "{out}");
}

#[test]
fn scenario_19_leftovers_are_found_and_removed() {
    let place = Place::new();
    place.golden("p8-basic");
    let good = place.read("cow");
    let mut torn = good.clone();
    torn[4096 + 20 * 16..4096 + 20 * 16 + 8].fill(3);
    place.file("cow", &torn);
    let said = place.fails(1, "check cow");
    assert!(said.contains("'snapblk check --repair cow' removes them"), "{said}");
    assert_eq!(place.read("cow"), torn, "looking changes nothing");
    place.ok("check cow --repair");
    assert!(place.read("cow") == good);
    place.ok("check cow");
}

#[test]
fn scenario_35_an_invalid_store_says_so() {
    let place = Place::new();
    place.golden("p8-full-by-origin-write");
    assert_eq!(place.json("info cow --json")["valid"], false);
    assert!(place.ok("info cow").contains("Invalid"));
    assert_eq!(place.json("info cow --json")["exceptions"], 30);
    assert!(place.fails(1, "check cow").contains("marked Invalid"));
    // Its list names chunks that are not there any more.
    let whole = place.read("cow");
    for len in [64 << 10, 4096] {
        place.file("cow", &whole[..len]);
        let info = place.json("info cow --json");
        assert_eq!((&info["valid"], &info["exceptions"]), (&false.into(), &0.into()), "{len}");
        assert!(place.ok("info cow").contains("Invalid"));
        assert_eq!(place.ok("dump cow --json"), "[]\n");
        assert!(place.fails(1, "check cow").contains("marked Invalid"));
        let said = place.fails(1, "merge --into origin cow");
        assert!(said.contains("marked Invalid"), "{said}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let place = Place::new();
    place.golden("p8-two-areas");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_snapblk"))
        .args(["dump", "cow"])
        .current_dir(place.path(""))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

/// The JSON output for scripts has the names in the documentation.
#[test]
fn what_is_answered_in_json_is_in_the_page() {
    let place = Place::new();
    place.golden("p8-basic");
    let page = include_str!("../../docs/stores.md");
    for line in [
        "create new --origin origin --json",
        "info cow --json",
        "check cow --json",
        "dump cow --json",
        "merge --into origin cow --json",
    ] {
        let verb = line.split(' ').next().unwrap();
        let row = page.lines().find(|row| row.starts_with(&format!("| `{verb} "))).unwrap();
        let said = place.json(line);
        let object = said.get(0).unwrap_or(&said).as_object().unwrap();
        let missing: Vec<_> =
            object.keys().filter(|key| !row.contains(&format!("`{key}`"))).collect();
        assert!(missing.is_empty() && object.len() >= 3, "{verb}: {missing:?}");
    }
}

/// JSON is UTF-8, names of files need not be; no name stops a command whose work is done.
#[test]
fn json_is_whole_whatever_a_file_is_called() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    place.sparse("disk", 1 << 20);
    let (store, disk) = (OsStr::from_bytes(b"c\xffw"), OsStr::from_bytes(b"d\xffsk"));
    std::os::unix::fs::symlink("disk", place.path("link")).unwrap();
    std::fs::rename(place.path("link"), place.dir().join(disk)).unwrap();
    let said = |words: &[&OsStr]| {
        let (out, _) = place.run_words(words).expect(0);
        serde_json::from_str::<serde_json::Value>(&out).unwrap()
    };
    let word = OsStr::new;
    let made = said(&[word("create"), store, word("--origin"), disk, word("--json")]);
    assert_eq!((&made["store"], &made["origin"]), (&"c\u{fffd}w".into(), &"d\u{fffd}sk".into()));
    for verb in ["info", "check"] {
        assert_eq!(said(&[word(verb), store, word("--json")])["store"], "c\u{fffd}w");
    }
    let merged = said(&[word("merge"), store, word("--into"), disk, word("--json")]);
    assert_eq!((&merged["store"], &merged["into"]), (&"c\u{fffd}w".into(), &"d\u{fffd}sk".into()));
}

#[test]
fn what_is_too_short_for_any_store_is_said_to_be() {
    let place = Place::new();
    place.sparse("empty", 0);
    for verb in ["info", "check", "dump"] {
        let said = place.fails(1, &format!("{verb} empty"));
        assert!(said.contains("it has 0 bytes, too few for a store"), "{said}");
    }
}

#[test]
fn a_store_for_an_origin_without_a_sector_is_not_made() {
    let place = Place::new();
    place.sparse("empty", 0);
    place.sparse("few", 511);
    for origin in ["empty", "few"] {
        let said = place.fails(1, &format!("create cow --origin {origin}"));
        assert!(said.contains(&format!("the origin {origin} has")), "{said}");
        assert!(!place.path("cow").exists());
    }
}
