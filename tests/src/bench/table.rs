//! The report as text: Markdown whose columns also line up on a terminal.

use std::fmt::Write;

use super::report::{Report, Row, Unit};
use super::stamp;
use super::stats::Spread;

/// The columns.
const HEADER: [&str; COLUMNS] = [
    "job",
    "server",
    "kIOPS",
    "min–max",
    "CPU µs/IO",
    "p50 µs",
    "idle ms/s",
    "syscalls/IO",
    "first ÷ this",
];
const COLUMNS: usize = 9;

/// The whole report in Markdown.
pub fn markdown(report: &Report) -> String {
    let mut out = String::new();
    for ground in report.grounds() {
        let _ = writeln!(out, "### {ground}\n\n{}", figures(report, ground));
    }
    out + &provenance(report)
}

/// The figures of one file system.
pub fn figures(report: &Report, ground: &str) -> String {
    let mut lines = vec![HEADER.map(str::to_owned)];
    for rows in report.jobs(ground) {
        lines.extend(rows.iter().map(|row| cells(row, &rows[0])));
    }
    aligned(&lines, 2)
}

/// Machine, programs and notes.
pub fn provenance(report: &Report) -> String {
    let mut out = format!("Machine: {}.\n\n", report.machine);
    for version in &report.versions {
        let _ = writeln!(out, "- **{}**: {} — {}", version.name, version.program, version.setup);
    }
    out.push('\n');
    for note in stamp::note(&report.stamps).iter().chain(&report.notes) {
        let _ = writeln!(out, "- {note}");
    }
    out
}

fn cells(row: &Row, first: &Row) -> [String; COLUMNS] {
    let title = if std::ptr::eq(row, first) { row.title.clone() } else { String::new() };
    let (by, unit) = row.unit.shown();
    let unit = if row.unit == Unit::Iops { String::new() } else { format!(" {unit}") };
    let shown = |value: f64| digits(value / by);
    let median = shown(row.figure.median) + &unit;
    let spread = format!("{}–{}", shown(row.figure.min), shown(row.figure.max));
    let cost = |spread: Option<Spread>| {
        spread.map_or_else(|| "–".to_owned(), |spread| format!("{:.2}", spread.median))
    };
    let syscalls = row.syscalls.map_or_else(|| "–".to_owned(), |count| format!("{count:.2}"));
    let comparison = row
        .compared_with(first)
        .map(|found| format!("{:.2}× {}", found.ratio, found.verdict))
        .unwrap_or_default();
    let (cpu, p50, idle) = (cost(row.cpu_us), cost(row.p50_us), cost(row.idle_ms));
    [title, row.server.clone(), median, spread, cpu, p50, idle, syscalls, comparison]
}

/// A number with three significant digits.
pub(super) fn digits(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// A Markdown table: the first `left` columns are aligned to the left, the others to the right.
pub(super) fn aligned<const N: usize>(lines: &[[String; N]], left: usize) -> String {
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0).max(3)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            let _ = match column < left {
                true => write!(out, "| {cell}{pad} "),
                false => write!(out, "| {pad}{cell} "),
            };
        }
        out.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(*width);
                let _ = match column < left {
                    true => write!(out, "| {dashes} "),
                    false => write!(out, "| {dashes}:"),
                };
            }
            out.push_str("|\n");
        }
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bench::Scale;
    use crate::bench::report::Version;

    pub(crate) fn report() -> Report {
        let row = |server: &str, samples: &[f64], syscalls| Row {
            cpu_us: Spread::of(&[2.5]),
            p50_us: Spread::of(&[6.25]),
            syscalls,
            ..Row::new(
                ("tmpfs", "randread-qd1", "4 KiB random read, QD1"),
                server,
                Unit::Iops,
                samples.to_vec(),
            )
            .unwrap()
        };
        Report {
            machine: "two cores".to_owned(),
            scale: Scale { disk: 1 << 20, seconds: 1.0 },
            repetitions: 3,
            stamps: Vec::new(),
            versions: vec![Version {
                name: "peer".to_owned(),
                program: "peer 1.0".to_owned(),
                setup: "raw & plain".to_owned(),
            }],
            notes: vec!["a note".to_owned()],
            rows: vec![
                row("snapblk", &[150_000.0, 160_000.0, 155_000.0], Some(1.25)),
                row("peer", &[100_000.0, 110_000.0, 99_000.0], None),
            ],
        }
    }

    #[test]
    fn a_row_says_rate_spread_cost_and_comparison() {
        let text = markdown(&report());
        let lines: Vec<&str> = text.lines().collect();
        let split = |line: &str| -> Vec<String> {
            line.split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        assert_eq!(
            split(lines[4])[1..10],
            [
                "4 KiB random read, QD1",
                "snapblk",
                "155",
                "150–160",
                "2.50",
                "6.25",
                "–",
                "1.25",
                ""
            ]
        );
        assert_eq!(
            split(lines[5])[1..10],
            ["", "peer", "100", "99.0–110", "2.50", "6.25", "–", "–", "1.55× better"]
        );
        let width = lines[2].chars().count();
        assert!(lines[2..6].iter().all(|line| line.chars().count() == width), "{text}");
        assert!(text.contains("- **peer**: peer 1.0 — raw & plain"));
    }
}
