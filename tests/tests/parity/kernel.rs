//! The scripts as executed by the kernel in a guest, with `dmsetup`.

use std::fmt::Write as _;
use std::time::Duration;

use snapblk_tests::guest::{Disk, Guest, GuestConfig, GuestError};
use snapblk_tests::server::{Place, Scratch};
use snapblk_tests::verify::stamp::{Generation, SECTOR, stamp_run};

use crate::script::*;

/// The guest's disks: the origin, the stores, and the data to write.
const ORIGIN: &str = "/dev/vda";
const STORE_DISKS: [&str; STORES] = ["/dev/vdb", "/dev/vdc", "/dev/vdd"];

/// The observations after each step of each script.
pub(crate) fn run(scripts: &[Script]) -> Result<Vec<Vec<Seen>>, GuestError> {
    let scratch = Scratch::new(Place::Memory).expect("a directory for the test");
    let sparse = |name: &str, sectors: u64| {
        Disk::File(scratch.sparse(name, sectors * 512).expect("a disk for the guest"))
    };
    let mut config = GuestConfig::new(script(scripts)).disk(sparse("origin", SECTORS));
    for n in 0..STORES {
        config = config.disk(sparse(&format!("store{n}"), STORE_MOST));
    }
    let patterns = scratch.file("patterns", &patterns()).expect("patterns");
    config = config.disk(Disk::File(patterns));
    config.timeout = Duration::from_secs(900);
    let result = Guest::boot(&config)?.finish()?;
    result.expect_success();
    Ok(scripts
        .iter()
        .enumerate()
        .map(|(number, script)| seen(&result.lines, number, script))
        .collect())
}

/// The whole disk in every generation, one after the other.
fn patterns() -> Vec<u8> {
    let disk = SECTORS as usize * SECTOR;
    let mut all = vec![0; disk * (GENERATIONS as usize + 1)];
    for (generation, bytes) in (0..).zip(all.chunks_exact_mut(disk)).skip(1) {
        stamp_run(0, Generation(generation), bytes);
    }
    all
}

/// A table for the kernel.
fn table(line: &str) -> String {
    let words = line.split(' ').map(|word| match word.strip_prefix('@') {
        Some(name) => format!("/dev/mapper/{name}"),
        None if word == "ORIGIN" => ORIGIN.to_owned(),
        None if word.starts_with("COW") => format!("/dev/mapper/{word}"),
        None => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

fn store_table(store: usize, sectors: u64) -> String {
    format!("0 {sectors} linear {} 0", STORE_DISKS[store - 1])
}

/// The scripts as one shell script.
fn script(scripts: &[Script]) -> String {
    let mut text = format!("SECTORS={SECTORS}\n{}\n", include_str!("../../guest/parity.sh"));
    for (number, script) in scripts.iter().enumerate() {
        let mut add = |line: String| writeln!(text, "{line}").expect("memory");
        add(format!("begin {ORIGIN} {}", STORE_DISKS.join(" ")));
        for (store, sectors) in (1..).zip(&script.stores) {
            add(format!(
                "run dmsetup create COW{store} --table '{}'",
                store_table(store, *sectors)
            ));
        }
        let devices = script.devices();
        for (step, (what, devices)) in script.steps.iter().zip(&devices).enumerate() {
            add(format!("step {number} {step} {}", command(what)));
            let paths: Vec<_> = devices.iter().map(|name| format!("/dev/mapper/{name}")).collect();
            add(format!("look {number} {step} {}", paths.join(" ")));
        }
        // Devices on top of the base are removed before it.
        for name in devices.last().into_iter().flatten().chain([&"base"]) {
            add(format!("run dmsetup remove {name}"));
        }
        for store in 1..=script.stores.len() {
            add(format!("run dmsetup remove COW{store}"));
        }
    }
    text
}

/// One step as a command of `guest/parity.sh`.
fn command(step: &Step) -> String {
    match step {
        Step::Make(name, line) if line.contains(" snapshot ") => {
            format!("join orig {name} '{}'", table(line))
        }
        Step::Make(name, line) => format!("dmsetup create {name} --table '{}'", table(line)),
        Step::Swap(name, line) | Step::Finish { origin: name, table: line } => {
            format!("swap {name} '{}'", table(line))
        }
        Step::Remove(name) => format!("dmsetup remove {name}"),
        Step::Write { device, first, each, times, generation } => {
            format!("fill {device} {first} {each} {times} {generation}")
        }
        Step::Grow(store, sectors) => {
            format!("swap COW{store} '{}'", store_table(*store, *sectors))
        }
        Step::Merge { origin, snapshot, table: line } => {
            format!("merge {origin} {snapshot} '{}'", table(line))
        }
    }
}

fn seen(lines: &[String], number: usize, script: &Script) -> Vec<Seen> {
    let mut all = vec![Seen::default(); script.steps.len()];
    for ((step, seen), devices) in all.iter_mut().enumerate().zip(script.devices()) {
        let find = |key: &str| {
            let prefix = format!("{key} {number} {step} ");
            lines.iter().filter_map(move |line| line.strip_prefix(&prefix).map(str::to_owned))
        };
        seen.answer = find("answer").next().expect("an answer");
        let sums: Vec<String> = find("content").collect();
        for status in find("status") {
            let (name, status) = status.split_once(": ").expect("a name and a status");
            if !devices.contains(name) {
                continue;
            }
            let path = format!("/dev/mapper/{name}");
            let sum = sums.iter().find_map(|line| line.strip_suffix(path.as_str()));
            let content = sum.map_or("EIO", str::trim).to_owned();
            seen.devices.insert(name.to_owned(), Device { status: status.trim().into(), content });
        }
    }
    all
}
