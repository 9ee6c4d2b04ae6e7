//! A store with a million exceptions: the time to open it, and its memory; and the memory of ten
//! millions with a limit.
//!
//! Owns the distribution of the exceptions, and the comparisons.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;
use snapblk_qmp::client::Client as Qmp;

use super::super::drive::BenchError;
use super::super::run::Found;
use super::super::template::refused;
use super::super::{Contender, Ground, Row, Run, Unit};
use super::Probe;
use crate::disk::Disk;
use crate::handmade::{self, CHUNK, PER_AREA};
use crate::rng::Rng;
use crate::server::{Memory, Server, ServerCommand};

/// Chunks of the disk per exception, if they are scattered.
const SPARSE: u64 = 64;

/// The distribution of the exceptions.
#[derive(Clone, Copy)]
enum Spread {
    /// One chunk after the other.
    Dense,
    /// Anywhere, in random order, one in each [`SPARSE`] chunks.
    Scattered,
}

/// The time to open the store, in milliseconds, compared with the time to read its areas twice.
pub(super) fn open(run: &Run<'_>, ground: &Ground, probe: &Probe) -> Result<Found, BenchError> {
    let count = exceptions(run);
    let (origin, store) = make(ground, Spread::Scattered, count)?;
    let (mut own, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..run.settings.repetitions {
        own.push(loaded(run, ground, &origin, &store)?.0.as_secs_f64() * 1e3);
        let read = read_twice(&store, count).map_err(BenchError::at("read a store's areas"))?;
        plain.push(read.as_secs_f64() * 1e3);
    }
    let snapblk = Contender::own();
    let setup = format!("a snapshot with {count} exceptions, from table-load to the end of resume");
    let versions = vec![
        snapblk.set_up_as("snapblk", &setup)?,
        snapblk.set_up_as("read-twice", "not run: its store's areas read twice with pread")?,
    ];
    let rows =
        [("snapblk", own), ("read-twice", plain)].into_iter().filter_map(|(name, samples)| {
            Row::new(probe.of(ground), name, Unit::Milliseconds, samples)
        });
    Ok(Found::of(rows, versions))
}

/// Resident bytes per scattered exception.
pub(super) fn scattered(
    run: &Run<'_>,
    ground: &Ground,
    probe: &Probe,
) -> Result<Found, BenchError> {
    memory(run, ground, probe, Spread::Scattered)
}

/// Resident bytes per dense exception.
pub(super) fn dense(run: &Run<'_>, ground: &Ground, probe: &Probe) -> Result<Found, BenchError> {
    memory(run, ground, probe, Spread::Dense)
}

fn memory(
    run: &Run<'_>,
    ground: &Ground,
    probe: &Probe,
    spread: Spread,
) -> Result<Found, BenchError> {
    let count = exceptions(run);
    let (origin, store) = make(ground, spread, count)?;
    let (_, bytes) = loaded(run, ground, &origin, &store)?;
    let each = vec![bytes as f64 / count as f64];
    let row = Row::new(probe.of(ground), "snapblk", Unit::BytesPerException, each);
    Ok(Found::of(row, vec![Contender::own().version()?]))
}

/// The greatest growth of the process per exception, for ten times as many exceptions and a limit
/// of 32 MiB: while opening, and during random reads.
pub(super) fn bounded(run: &Run<'_>, ground: &Ground, probe: &Probe) -> Result<Found, BenchError> {
    const LOOKS: u64 = 200_000;
    let count = 10 * exceptions(run);
    let (origin, store) = make(ground, Spread::Scattered, count)?;
    let scratch = ground.scratch();
    let command = ServerCommand::snapblk_monitor(scratch)?;
    let command = command.arg("--table-memory").arg("32M").arg("--table-dir").arg(scratch.dir());
    let server = command.on_cpu(run.settings.server_cpu).start()?;
    let before = memory_of(&server, Memory::Now)?;
    let mut qmp = Qmp::connect(server.monitor()).map_err(refused)?;
    let len = load(&mut qmp, &origin, &store)?;
    let socket = scratch.socket("bounded.sock");
    let export = json!({
        "type": "vhost-user-blk", "id": "disk", "node-name": "disk",
        "addr": {"type": "unix", "path": socket},
    });
    qmp.call("block-export-add", export).map_err(refused)?;
    let step = || BenchError::at("look exceptions up");
    let mut disk = Disk::connect(&socket).map_err(io::Error::other).map_err(step())?;
    let mut rng = Rng::new(count);
    for _ in 0..LOOKS {
        let chunk = rng.below(len / CHUNK);
        disk.read(chunk * CHUNK, 512).map_err(io::Error::other).map_err(step())?;
    }
    let grown = memory_of(&server, Memory::Most)?.saturating_sub(before);
    drop(disk);
    qmp.call("block-export-del", json!({"id": "disk", "mode": "hard"})).map_err(refused)?;
    qmp.call("device-remove", json!({"name": "disk"})).map_err(refused)?;
    drop(qmp);
    server.terminate()?;
    let each = vec![grown as f64 / count as f64];
    let row = Row::new(probe.of(ground), "snapblk", Unit::BytesPerException, each);
    let setup = format!("a snapshot with {count} exceptions, --table-memory 32M");
    Ok(Found::of(row, vec![Contender::own().set_up_as("snapblk", &setup)?]))
}

/// A million; fewer if the disks are small too, because the run is then a trial.
fn exceptions(run: &Run<'_>) -> u64 {
    if run.settings.scale.disk >= 1 << 30 { 1_000_000 } else { 50_000 }
}

/// A sparse disk and a store for it with `count` exceptions.
fn make(ground: &Ground, spread: Spread, count: u64) -> Result<(PathBuf, PathBuf), BenchError> {
    let dir = ground.fresh_overlay_dir()?;
    let (origin, store) = (dir.join("origin.img"), dir.join("store.cow"));
    let mut rng = Rng::new(count);
    let (chunks, mut old) = match spread {
        Spread::Dense => (count, (0..count).collect::<Vec<u64>>()),
        Spread::Scattered => {
            (count * SPARSE, (0..count).map(|n| n * SPARSE + rng.below(SPARSE)).collect())
        }
    };
    if let Spread::Scattered = spread {
        rng.shuffle(&mut old);
    }
    let write = || {
        File::create(&origin)?.set_len(chunks * CHUNK)?;
        handmade::write(&store, &old)
    };
    write().map_err(BenchError::at("make a store by hand"))?;
    Ok((origin, store))
}

/// The time until the store is in use, and the growth of the process in bytes.
fn loaded(
    run: &Run<'_>,
    ground: &Ground,
    origin: &Path,
    store: &Path,
) -> Result<(Duration, u64), BenchError> {
    let command = ServerCommand::snapblk_monitor(ground.scratch())?;
    let server = command.on_cpu(run.settings.server_cpu).start()?;
    let mut qmp = Qmp::connect(server.monitor()).map_err(refused)?;
    let before = memory_of(&server, Memory::Own)?;
    let start = Instant::now();
    load(&mut qmp, origin, store)?;
    let taken = start.elapsed();
    let grown = memory_of(&server, Memory::Own)?.saturating_sub(before);
    // A device that exists at the end also exists at the next start.
    qmp.call("device-remove", json!({"name": "disk"})).map_err(refused)?;
    drop(qmp);
    server.terminate()?;
    Ok((taken, grown))
}

/// Makes the device `disk`, a snapshot with this store; returns its length in bytes.
fn load(qmp: &mut Qmp, origin: &Path, store: &Path) -> Result<u64, BenchError> {
    let device = json!({"name": "disk"});
    qmp.call("device-create", device.clone()).map_err(refused)?;
    let len = fs::metadata(origin).map_err(BenchError::at("look at a disk"))?.len();
    let (origin, store) = (origin.display(), store.display());
    let line = format!("0 {} snapshot {origin} {store} PO {}", len / 512, CHUNK / 512);
    qmp.call("table-load", json!({"name": "disk", "table": [line]})).map_err(refused)?;
    qmp.call("device-resume", device).map_err(refused)?;
    Ok(len)
}

/// A server's memory in bytes.
fn memory_of(server: &Server, memory: Memory) -> Result<u64, BenchError> {
    server.memory(memory).map_err(BenchError::at("read a server's memory"))
}

fn read_twice(store: &Path, count: u64) -> io::Result<Duration> {
    let file = File::open(store)?;
    let mut area = vec![0; CHUNK as usize];
    let start = Instant::now();
    for _ in 0..2 {
        for n in 0..count.div_ceil(PER_AREA) {
            file.read_exact_at(&mut area, handmade::area_offset(n))?;
        }
    }
    Ok(start.elapsed())
}
