//! Answers as tables.

use std::io::{self, Write};

use serde_json::Value;
use snapblk_store::control::answer::{
    BlockExportInfo, DeviceInfo, SnapshotState, SnapshotTarget, Target,
};
use snapblk_store::control::job::JobInfo;

use super::size;

/// One line for each target of each device.
pub(super) fn devices(devices: &[DeviceInfo], out: &mut impl Write) -> io::Result<()> {
    let mut rows = Vec::new();
    for device in devices {
        let mut state = device.state.to_string();
        if device.has_inactive_table {
            state.push_str(", table loaded");
        }
        let mut row = vec![
            device.name.clone(),
            state,
            size::show(device.size),
            device.open_count.to_string(),
        ];
        for info in &device.targets {
            let mut first = std::mem::replace(&mut row, vec![String::new(); 4]);
            first.push(target(&info.target));
            rows.push(first);
        }
        if device.targets.is_empty() {
            row.push("no table".to_owned());
            rows.push(row);
        }
    }
    table("devices", &["DEVICE", "STATE", "SIZE", "OPEN", "TARGET"], &rows, out)
}

/// The lines of each table as `dmsetup table` prints them: after the device's name.
pub(super) fn tables(devices: &[DeviceInfo], out: &mut impl Write) -> io::Result<()> {
    for device in devices {
        for line in &device.table {
            writeln!(out, "{}: {line}", device.name)?;
        }
    }
    Ok(())
}

/// The lines of the one device that was asked for, which can be loaded again.
pub(super) fn lines(devices: &[DeviceInfo], out: &mut impl Write) -> io::Result<()> {
    devices.iter().flat_map(|device| &device.table).try_for_each(|line| writeln!(out, "{line}"))
}

/// One line for each export.
pub(super) fn exports(exports: &[BlockExportInfo], out: &mut impl Write) -> io::Result<()> {
    let rows: Vec<_> = exports
        .iter()
        .map(|export| {
            let state = match (export.shutting_down, export.connected) {
                (true, _) => "shutting down",
                (false, true) => "served, connected",
                (false, false) => "served",
            };
            vec![
                export.id.clone(),
                export.kind.to_string(),
                export.node_name.clone(),
                state.to_owned(),
            ]
        })
        .collect();
    table("exports", &["EXPORT", "TYPE", "DEVICE", "STATE"], &rows, out)
}

/// One line for each job.
pub(super) fn jobs(jobs: &[JobInfo], out: &mut impl Write) -> io::Result<()> {
    let rows: Vec<_> = jobs
        .iter()
        .map(|job| {
            let mut state = job.status.to_string();
            if job.completing == Some(true) {
                state.push_str(", completing");
            }
            vec![
                job.id.clone(),
                job.kind.to_string(),
                state,
                percent(job.current_progress, job.total_progress),
                job.error.clone().unwrap_or_default(),
            ]
        })
        .collect();
    table("jobs", &["JOB", "TYPE", "STATE", "DONE", "ERROR"], &rows, out)
}

/// The names of a list of objects.
pub(super) fn names(list: &Value, out: &mut impl Write) -> io::Result<()> {
    for thing in list.as_array().into_iter().flatten() {
        writeln!(out, "{}", thing.get("name").and_then(Value::as_str).unwrap_or_default())?;
    }
    Ok(())
}

/// A short description of a target.
fn target(target: &Target) -> String {
    match target {
        Target::Linear(linear) if linear.offset == 0 => format!("linear {}", linear.device),
        Target::Linear(linear) => format!("linear {} at byte {}", linear.device, linear.offset),
        Target::SnapshotOrigin(origin) => format!("snapshot-origin {}", origin.origin),
        Target::Snapshot(snapshot) => format!("snapshot {}", snapshot_words(snapshot)),
        Target::SnapshotMerge(merge) => format!("snapshot-merge {}", snapshot_words(merge)),
        Target::Error(_) => "error".to_owned(),
        Target::Zero(_) => "zero".to_owned(),
    }
}

fn snapshot_words(snapshot: &SnapshotTarget) -> String {
    let SnapshotTarget { origin, cow, persistent, chunk_size, .. } = snapshot;
    let mut words = format!("{origin} in {cow} ({persistent}, {})", size::show(*chunk_size));
    if snapshot.state != SnapshotState::Valid {
        words.push_str(&format!(": {}", snapshot.state));
    }
    if let (Some(allocated), Some(total)) = (snapshot.allocated, snapshot.total) {
        words.push_str(&format!(
            ", {} of {} used ({})",
            size::show(allocated),
            size::show(total),
            percent(allocated, total)
        ));
    }
    if snapshot.metadata_snapshot != "-" {
        words.push_str(&format!(", map reserved in {}", snapshot.metadata_snapshot));
    }
    words
}

/// A percentage; a dash if the whole is 0.
fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{}%", u128::from(part) * 100 / u128::from(whole))
}

/// Columns as wide as their widest cell.
fn table(what: &str, heads: &[&str], rows: &[Vec<String>], out: &mut impl Write) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(out, "no {what}");
    }
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heads[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", padded.join("  ").trim_end())
    };
    line(&mut heads.iter().copied())?;
    rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
}
