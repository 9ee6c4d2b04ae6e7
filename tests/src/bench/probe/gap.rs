//! How long a live snapshot delays a loaded disk.
//!
//! Owns the procedure: a queue kept full of random writes, a snapshot at regular intervals, and the
//! longest time without a completion around each. The thread that drives the disk also sends the
//! commands, so that no third thread uses a processor.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::drive::BenchError;
use super::super::job::{Job, Layout};
use super::super::qemu::{Aio, Format, Qcow2, Qemu};
use super::super::run::{Found, without_figure};
use super::super::turn::session;
use super::super::{Contender, Ground, Kind, Row, Run, Unit};
use super::Probe;
use super::monitor::Monitor;
use crate::server::ServerCommand;

/// The interval between two snapshots.
const BETWEEN: Duration = Duration::from_millis(10);
/// How long after the reply a gap still counts.
const AFTER: Duration = Duration::from_millis(5);
/// Snapshots in each repetition.
const SNAPSHOTS: usize = 10;

/// The longest gaps of all snapshots, in milliseconds, for snapblk and for each daemon, without an
/// I/O thread and with one.
pub(super) fn measure(run: &Run<'_>, ground: &Ground, probe: &Probe) -> Result<Found, BenchError> {
    let mut found = Found::default();
    let own = Contender::own();
    let job = Job { layout: Layout::Overlay, ..Job::RANDOM_WRITES };
    if let Some(command) = own.command(ground, &job)? {
        let mut gaps = Vec::new();
        measure_gaps(run, ground, &command, &snapblk_command, &mut gaps)?;
        found.rows.extend(Row::new(probe.of(ground), "snapblk", Unit::Milliseconds, gaps));
        found.versions.push(own.version()?);
    }
    let daemons = run.settings.daemons();
    for (daemon, iothread) in daemons.iter().flat_map(|it| [(it, false), (it, true)]) {
        let format = Format::Qcow2(Qcow2::DEFAULT);
        let qemu = Qemu { daemon: daemon.clone(), aio: Aio::Native, iothread, format };
        let command = qemu.command(ground, false)?;
        let monitor = command.monitor().display();
        let chardev = format!("socket,id=monitor,path={monitor},server=on,wait=off");
        let command = command.arg("--chardev").arg(chardev).arg("--monitor").arg("monitor");
        let contender = Contender { name: qemu.name(), kind: Kind::Qemu(qemu) };
        let mut gaps = Vec::new();
        // Sometimes one hangs: its earlier results count.
        if let Err(error) = measure_gaps(run, ground, &command, &qemu_command, &mut gaps) {
            (run.say)(&format!("{} in {}: {error}", contender.name, probe.name));
            found.notes.push(match gaps.len() {
                0 => without_figure(&contender, probe.name),
                n => format!(
                    "{} failed in {} after {n} snapshots: its figure is of those.",
                    contender.name, probe.name
                ),
            });
        }
        let row = Row::new(probe.of(ground), &contender.name, Unit::Milliseconds, gaps);
        if let Some(row) = row {
            found.rows.push(row);
            found.versions.push(contender.version()?);
        }
    }
    Ok(found)
}

fn snapblk_command(_: usize, file: &Path) -> Value {
    json!({"execute": "blockdev-snapshot-sync",
           "arguments": {"device": "disk0", "snapshot-file": file}})
}

fn qemu_command(n: usize, file: &Path) -> Value {
    let top = if n == 0 { "disk".to_owned() } else { format!("layer{n}") };
    let name = format!("layer{}", n + 1);
    json!({"execute": "blockdev-snapshot-sync",
           "arguments": {"node-name": top, "snapshot-file": file, "format": "qcow2",
                         "snapshot-node-name": name}})
}

/// The progress of a snapshot.
#[derive(Clone, Copy)]
enum Phase {
    /// The next command is sent at that time.
    Quiet(Instant),
    /// It was sent.
    Sent,
    /// It was answered; gaps count until that time.
    Answered(Instant),
}

/// Adds the longest gap of each snapshot to `gaps`.
fn measure_gaps(
    run: &Run<'_>,
    ground: &Ground,
    command: &ServerCommand,
    snapshot: &dyn Fn(usize, &Path) -> Value,
    gaps: &mut Vec<f64>,
) -> Result<(), BenchError> {
    let server = command.clone().on_cpu(run.settings.server_cpu).start()?;
    let failed = || BenchError::at("have a snapshot made");
    let mut monitor = Monitor::connect(server.monitor()).map_err(failed())?;
    let mut driver = session(server.socket().to_owned(), &Job::RANDOM_WRITES, ground.disk())?;
    driver.prepare(0)?;
    let wanted = SNAPSHOTS * run.settings.repetitions;
    let mut longest = Duration::ZERO;
    let mut last = Instant::now();
    let mut phase = Phase::Quiet(last + BETWEEN);
    driver.drive(1, |now| {
        longest = longest.max(now - last);
        last = now;
        phase = match phase {
            Phase::Quiet(until) if now >= until => {
                let file = ground.scratch().path(&format!("overlay/snap{}", gaps.len()));
                monitor.send(&snapshot(gaps.len(), &file)).map_err(failed())?;
                longest = Duration::ZERO;
                Phase::Sent
            }
            Phase::Sent => match monitor.answer().map_err(failed())? {
                Some(message) if message.get("return").is_some() => Phase::Answered(now + AFTER),
                _ => Phase::Sent,
            },
            Phase::Answered(until) if now >= until => {
                gaps.push(longest.as_secs_f64() * 1e3);
                Phase::Quiet(now + BETWEEN)
            }
            same => same,
        };
        Ok(gaps.len() == wanted)
    })?;
    drop(driver);
    Ok(server.kill()?)
}
