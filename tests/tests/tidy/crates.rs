//! Which other crates the workspace's crates and files may name.

use toml::Table;

use crate::source::{shipped, words};
use crate::{none, none_but, read};

/// Crates that a crate must not depend on, in any section that ships.
const NEVER: [(&str, &[&str]); 2] = [
    (
        "store",
        &[
            "snapblk",
            "snapblk-qmp",
            "serde_json",
            "vhost",
            "virtio-queue",
            "virtio-bindings",
            "vm-memory",
            "clap",
        ],
    ),
    ("qmp-bridge", &["snapblk", "vhost", "virtio-queue", "vm-memory", "clap"]),
];

/// None is needed.
const KNOWN: [&str; 0] = [];

/// Crates that are an implementation detail of a few files, and those files.
const ONLY_IN: [(&str, &[&str]); 6] = [
    ("io_uring", &["store/src/io/uring.rs"]),
    ("nix", &["store/src/io/lock.rs", "backend/src/signals.rs"]),
    ("toml", &["store/src/device/state/file.rs", "backend/src/cli/serve"]),
    ("virtio_bindings", &["backend/src/config.rs", "backend/src/request.rs"]),
    ("vhost", &["backend/src/session"]),
    ("clap", &["backend/src/cli"]),
];

#[test]
fn crates_depend_downwards_only() {
    let mut broken = Vec::new();
    for (of, never) in NEVER {
        let manifest: Table = read(&format!("{of}/Cargo.toml")).parse().unwrap();
        let dependencies = manifest["dependencies"].as_table().unwrap();
        let wrong = dependencies.keys().filter(|name| never.contains(&name.as_str()));
        let named = wrong.map(|name| format!("{of}/Cargo.toml: {name}"));
        broken.extend(named.map(|who| (who.clone(), who)));
    }
    let rule = "backend knows store and qmp-bridge, qmp-bridge the store's control; never back.";
    none_but(rule, broken, &KNOWN);
}

/// The store takes requests from any caller: it names neither the sender nor their format.
#[test]
fn the_store_has_no_word_for_the_guest_s_protocol_or_the_monitor_s() {
    const WORDS: [&str; 6] = ["virtio", "vhost", "vm_memory", "vring", "json", "qmp"];
    let mut broken = Vec::new();
    // The monitor's commands use the monitor's words.
    let spoken = |path: &str| path.starts_with("store/src/control");
    for source in shipped() {
        if !source.path.starts_with("store/") || spoken(&source.path) {
            continue;
        }
        for (n, line) in source.shipped() {
            for word in words(line) {
                let lower = word.to_ascii_lowercase();
                if WORDS.iter().any(|no| lower.contains(no)) {
                    broken.push(format!("{}:{n}: the word '{word}'", source.path));
                }
            }
        }
    }
    none("store never names virtio, vhost, guest memory or JSON.", &broken);
}

#[test]
fn the_monitor_knows_only_the_store_s_control() {
    // `control`, and the macros that define its data.
    const MAY: [&str; 4] = ["control", "record", "choice", "union"];
    let mut broken = Vec::new();
    for source in shipped().iter().filter(|source| source.path.starts_with("qmp-bridge/")) {
        for (n, line) in source.shipped() {
            for part in line.split("snapblk_store::").skip(1) {
                let names = part.strip_prefix('{').map(|list| list.split('}').next().unwrap());
                let first: Vec<&str> = match names {
                    Some(list) => list.split(',').filter_map(|item| words(item).next()).collect(),
                    None => words(part).take(1).collect(),
                };
                broken.extend(
                    first
                        .iter()
                        .filter(|name| !MAY.contains(name))
                        .map(|name| format!("{}:{n}: snapblk_store::{name}", source.path)),
                );
            }
        }
    }
    none("qmp-bridge knows snapblk_store::control and nothing else of the store.", &broken);
}

#[test]
fn what_is_behind_one_file_is_named_nowhere_else() {
    let mut broken = Vec::new();
    for source in shipped() {
        for (name, files) in ONLY_IN {
            if files.iter().any(|file| source.path.starts_with(file))
                || source.path.contains("testing")
            {
                continue;
            }
            let used = format!("{name}::");
            for (n, line) in source.shipped() {
                let names = line.match_indices(&used).any(|(at, _)| {
                    let before = line[..at].bytes().next_back();
                    !before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
                });
                if names {
                    broken.push(format!(
                        "{}:{n}: {name} belongs to {}",
                        source.path,
                        files.join(", ")
                    ));
                }
            }
        }
    }
    none("Some crates are behind one file, so that they can be replaced there.", &broken);
}
