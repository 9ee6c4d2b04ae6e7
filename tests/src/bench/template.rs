//! Disks that take long to make and are reused: made once, on each file system.
//!
//! Owns the completely mapped overlay and the chains of layers, and how a chain gets an empty layer
//! on top again. Everything is made through snapblk itself, as a guest and an operator would make
//! it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use snapblk_qmp::client::{Client as Qmp, ClientError};

use super::drive::{BenchError, Driver};
use super::ground::Ground;
use super::job::CLUSTER;
use crate::client::{Client, Connect};
use crate::server::ServerCommand;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Bytes of an entry of an area.
const ENTRY: u64 = 16;
/// The most bytes at the head of an empty store that are not zero.
const HEAD: u64 = 64 << 10;

/// Image and store of an overlay in which every chunk was written, in order. What a server may have
/// written over the store's metadata, when its file was served as a plain disk, is restored.
pub(super) fn mapped(ground: &Ground) -> Result<(PathBuf, PathBuf), BenchError> {
    let dir = ground.scratch().path("mapped");
    let (base, store, kept) = (dir.join("base.img"), dir.join("store.cow"), dir.join("metadata"));
    if store.exists() {
        restore(&store, &kept).map_err(BenchError::at("restore the mapped overlay"))?;
    } else {
        // The image is never read: it needs no data.
        let sparse =
            || fs::create_dir(&dir).and_then(|()| File::create(&base)?.set_len(ground.disk()));
        sparse().map_err(BenchError::at("make the mapped overlay"))?;
        let server = overlay(ground, &base, &store)?.start()?;
        let mut driver = writer(&server, ground)?;
        driver.fill(clusters(ground, 0, 1))?;
        drop(driver);
        server.terminate()?;
        let kept = metadata(&store).and_then(|bytes| fs::write(&kept, bytes));
        kept.map_err(BenchError::at("look at the mapped overlay"))?;
    }
    Ok((base, store))
}

/// The chunks of a store that are no data, in their order: the header and the areas.
fn metadata(store: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(store)?;
    let mut head = [0; 16];
    file.read_exact_at(&mut head, 0)?;
    let sectors = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
    let chunk = u64::from(sectors) * SECTOR;
    let mut all = Vec::new();
    let mut bytes = vec![0; chunk as usize];
    for at in metadata_chunks(chunk, file.metadata()?.len()) {
        file.read_exact_at(&mut bytes, at)?;
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

/// Writes what [`metadata`] found.
fn restore(store: &Path, kept: &Path) -> io::Result<()> {
    let bytes = fs::read(kept)?;
    let sectors = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
    let chunk = u64::from(sectors) * SECTOR;
    let file = OpenOptions::new().write(true).open(store)?;
    let places = metadata_chunks(chunk, file.metadata()?.len());
    for (at, bytes) in places.zip(bytes.chunks(chunk as usize)) {
        file.write_all_at(bytes, at)?;
    }
    file.sync_all()
}

/// Offsets of the chunks of a store of `len` bytes that are no data.
fn metadata_chunks(chunk: u64, len: u64) -> impl Iterator<Item = u64> {
    let apart = (chunk / ENTRY + 1) * chunk;
    let areas = (0..).map(move |n| chunk + n * apart);
    std::iter::once(0).chain(areas.take_while(move |at| at + chunk <= len))
}

/// Image and first store of a chain of `layers`: all but the topmost have an equal share of the
/// clusters, the topmost is empty.
pub(super) fn chain(ground: &Ground, layers: u32) -> Result<(PathBuf, PathBuf), BenchError> {
    let dir = ground.scratch().path(&format!("chain-{layers}"));
    let (base, store) = (ground.image("chain")?, dir.join("layer1.cow"));
    let top = dir.join(format!("layer{layers}.cow"));
    let head = dir.join("head");
    if dir.exists() {
        empty(&top, &head).map_err(BenchError::at(format!("empty {}", top.display())))?;
        return Ok((base, store));
    }
    fs::create_dir(&dir).map_err(BenchError::at("make a chain's directory"))?;
    let server = overlay(ground, &base, &store)?.start()?;
    let mut qmp = Qmp::connect(server.monitor()).map_err(refused)?;
    let mut driver = writer(&server, ground)?;
    for layer in 1..layers {
        driver.fill(clusters(ground, u64::from(layer - 1), u64::from(layers - 1)))?;
        let file = dir.join(format!("layer{}.cow", layer + 1));
        let arguments = json!({"device": "disk0", "snapshot-file": file});
        qmp.call("blockdev-snapshot-sync", arguments).map_err(refused)?;
    }
    drop(driver);
    drop(qmp);
    server.terminate()?;
    let keep = || {
        let mut bytes = vec![0; HEAD as usize];
        let count = File::open(&top)?.read_at(&mut bytes, 0)?;
        fs::write(&head, &bytes[..count])
    };
    keep().map_err(BenchError::at("look at the empty layer"))?;
    Ok((base, store))
}

/// Restores only the head that `store` had when it was empty.
fn empty(store: &Path, head: &Path) -> io::Result<()> {
    let len = fs::metadata(store)?.len();
    let mut file = OpenOptions::new().write(true).open(store)?;
    file.set_len(0)?;
    file.write_all(&fs::read(head)?)?;
    file.set_len(len)?;
    file.sync_all()
}

/// Every `step`th cluster of the disk from the `first`.
fn clusters(ground: &Ground, first: u64, step: u64) -> Vec<u64> {
    (first..ground.disk() / CLUSTER).step_by(step as usize).map(|n| n * CLUSTER).collect()
}

fn overlay(ground: &Ground, base: &Path, store: &Path) -> Result<ServerCommand, BenchError> {
    let command = ServerCommand::snapblk(ground.scratch())?.arg("--num-queues").arg("1");
    Ok(command.arg("--blk-file").arg(base).arg("--overlay").arg(store))
}

fn writer(server: &crate::server::Server, ground: &Ground) -> Result<Driver, BenchError> {
    let connect = Connect::to(server.socket()).pool(Driver::FILL_POOL);
    Driver::to_fill(Client::connect(&connect)?, ground.disk())
}

/// The monitor's error.
pub(super) fn refused(error: ClientError) -> BenchError {
    BenchError::at("have a command carried out by the monitor")(io::Error::other(error))
}
