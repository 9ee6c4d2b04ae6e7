//! The speed of a rollback, and the share of the disk that it leaves to the guest.
//!
//! Owns the procedure: a disk with one snapshot is written, then merged, and the same amount is
//! copied or written directly to a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use snapblk_qmp::client::Client as Qmp;

use super::super::cost::CpuMeter;
use super::super::drive::BenchError;
use super::super::job::Job;
use super::super::run::Found;
use super::super::template::refused;
use super::super::turn::session;
use super::super::{Contender, Ground, Kind, Layout, Row, Run, Setup, Unit, Version, limit};
use super::Probe;
use super::monitor::Monitor;
use crate::server::Server;

/// How long a merge may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes per copy.
const STEP: usize = 1 << 20;
const MIB: f64 = (1 << 20) as f64;

/// Half the disk in long runs, compared with a sequential copy of the same size.
pub(super) fn runs(run: &Run<'_>, ground: &Ground, probe: &Probe) -> Result<Found, BenchError> {
    let bytes = ground.disk() / 2;
    let (from, to) = (ground.image("limit")?, ground.image("copy")?);
    let (mut own, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..run.settings.repetitions {
        own.push(bytes as f64 / MIB / merged(run, ground, "first-seq64k-qd8")?.as_secs_f64());
        let start = Instant::now();
        copy(&from, &to, bytes).map_err(BenchError::at("copy a file"))?;
        plain.push(bytes as f64 / MIB / start.elapsed().as_secs_f64());
    }
    let copy = Version {
        name: "copy".to_owned(),
        program: "pread and pwrite".to_owned(),
        setup: "1 MiB at once, O_DIRECT, fsync at the end".to_owned(),
    };
    found(ground, probe, own, ("copy", plain), copy)
}

/// One chunk of every 64 KiB, compared with random writes by `fio`: with their rate, and with the
/// same number of writes and a sync at the end, as in the merge.
pub(super) fn scattered(
    run: &Run<'_>,
    ground: &Ground,
    probe: &Probe,
) -> Result<Found, BenchError> {
    let file = ground.image("limit")?;
    let (mut own, mut plain, mut durable) = (Vec::new(), Vec::new(), Vec::new());
    let bytes = ground.disk() / 16;
    for repetition in 0..run.settings.repetitions {
        let taken = merged(run, ground, "first-sparse-qd32")?;
        own.push(bytes as f64 / MIB / taken.as_secs_f64());
        let (seconds, cpu) = (run.settings.scale.seconds, run.settings.server_cpu);
        let seed = repetition as u64;
        let (sample, _) = limit::fio(&Job::RANDOM_WRITES, &file, seconds, cpu, seed)?;
        plain.push(sample.iops() * Job::RANDOM_WRITES.block as f64 / MIB);
        ground.settle()?;
        let other = seed + run.settings.repetitions as u64;
        let taken = limit::fio_durable(&Job::RANDOM_WRITES, &file, bytes, cpu, other)?;
        durable.push(bytes as f64 / MIB / taken.as_secs_f64());
    }
    let fio = Contender { name: "fio".to_owned(), kind: Kind::Fio }.version()?;
    let with_sync = Version {
        name: "fio-durable".to_owned(),
        setup: format!("{}; as much as is merged, with a sync at the end", fio.setup),
        ..fio.clone()
    };
    let mut found = found(ground, probe, own, ("fio", plain), fio)?;
    let durable = Row::new(probe.of(ground), "fio-durable", Unit::MibPerSecond, durable);
    found.rows.extend(durable);
    found.versions.push(with_sync);
    Ok(found)
}

/// The rate of random reads during a merge as a share of their rate without.
pub(super) fn reads(run: &Run<'_>, ground: &Ground, probe: &Probe) -> Result<Found, BenchError> {
    load(run, ground, probe, &Job::RANDOM_READS, ground.disk())
}

/// The same for random writes, to the half that is merged: elsewhere they would be first writes
/// before the merge, and copied.
pub(super) fn writes(run: &Run<'_>, ground: &Ground, probe: &Probe) -> Result<Found, BenchError> {
    load(run, ground, probe, &Job::RANDOM_WRITES, ground.disk() / 2)
}

/// The rate of `job` on the first `bytes` during a merge as a share of its rate without.
fn load(
    run: &Run<'_>,
    ground: &Ground,
    probe: &Probe,
    job: &Job,
    bytes: u64,
) -> Result<Found, BenchError> {
    let mut shares = Vec::new();
    for _ in 0..run.settings.repetitions {
        let server = written(run, ground, "first-seq64k-qd8")?;
        let mut driver = session(server.socket().to_owned(), job, bytes)?;
        driver.prepare(0)?;
        let time = Duration::from_secs_f64(run.settings.scale.seconds);
        let before = driver.glance(time, 1, &mut CpuMeter::new(None))?;
        let failed = || BenchError::at("have a snapshot merged");
        let mut monitor = Monitor::connect(server.monitor()).map_err(failed())?;
        let merge = json!({"execute": "snapshot-merge", "arguments": arguments()});
        monitor.send(&merge).map_err(failed())?;
        // A check costs a system call, so it is not made for every batch.
        let mut look = Instant::now();
        let during = driver.drive(2, |now| {
            if now < look {
                return Ok(false);
            }
            look = now + Duration::from_millis(1);
            let message = monitor.answer().map_err(failed())?;
            Ok(message.is_some_and(|message| message["event"] == "MERGE_COMPLETED"))
        })?;
        shares.push(during.iops() / before.iops());
        drop(driver);
        server.terminate()?;
    }
    let row = Row::new(probe.of(ground), "snapblk", Unit::Share, shares);
    Ok(Found::of(row, vec![Contender::own().version()?]))
}

fn found(
    ground: &Ground,
    probe: &Probe,
    own: Vec<f64>,
    (name, plain): (&str, Vec<f64>),
    version: Version,
) -> Result<Found, BenchError> {
    let own = Row::new(probe.of(ground), "snapblk", Unit::MibPerSecond, own);
    let plain = Row::new(probe.of(ground), name, Unit::MibPerSecond, plain);
    Ok(Found::of(own.into_iter().chain(plain), vec![Contender::own().version()?, version]))
}

/// The duration of the merge after `job` has written.
fn merged(run: &Run<'_>, ground: &Ground, job: &str) -> Result<Duration, BenchError> {
    let server = written(run, ground, job)?;
    let mut qmp = Qmp::connect(server.monitor()).map_err(refused)?;
    let start = Instant::now();
    qmp.call("snapshot-merge", arguments()).map_err(refused)?;
    let deadline = start + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match qmp.event(Some(left)).map_err(refused)? {
            Some(event) if event["event"] == "MERGE_COMPLETED" => break,
            Some(_) => {}
            None => return Err(BenchError::at("wait for a merge")(io::ErrorKind::TimedOut.into())),
        }
    }
    let taken = start.elapsed();
    drop(qmp);
    server.terminate()?;
    Ok(taken)
}

fn arguments() -> serde_json::Value {
    json!({"device": "disk0", "snapshot": "snap1", "job-id": "merge"})
}

/// A served disk with a snapshot, after writes to all places of `job`.
fn written(run: &Run<'_>, ground: &Ground, job: &str) -> Result<Server, BenchError> {
    let missing = || BenchError::at("find a job")(io::ErrorKind::NotFound.into());
    let job = Job { layout: Layout::Origin, ..Job::named(job).ok_or_else(missing)? };
    let origin = Contender { kind: Kind::Snapblk(Setup::Origin(1)), ..Contender::own() };
    let command = origin.command(ground, &job)?.ok_or_else(missing)?;
    let server = command.on_cpu(run.settings.server_cpu).start()?;
    origin.prepare(&server, ground)?;
    let mut driver = session(server.socket().to_owned(), &job, ground.disk())?;
    driver.measure(&run.settings.scale, 1, &mut CpuMeter::new(None))?;
    ground.settle()?;
    Ok(server)
}

/// Copies `bytes` from the start of one file to the start of another.
fn copy(from: &Path, to: &Path, bytes: u64) -> io::Result<()> {
    const DIRECT: i32 = libc::O_DIRECT;
    const PAGE: usize = 4096;
    let from: File = OpenOptions::new().read(true).custom_flags(DIRECT).open(from)?;
    let to = OpenOptions::new().write(true).custom_flags(DIRECT).open(to)?;
    let mut memory = vec![0_u8; STEP + PAGE];
    let skip = memory.as_ptr().align_offset(PAGE);
    let buffer = &mut memory[skip..skip + STEP];
    for at in (0..bytes).step_by(STEP) {
        from.read_exact_at(buffer, at)?;
        to.write_all_at(buffer, at)?;
    }
    to.sync_all()
}
