//! The report as text: Markdown whose columns also line up on a terminal.

use std::fmt::Write;

use super::report::{Report, Row};

const HEADER: [&str; 7] =
    ["job", "server", "kIOPS", "min–max", "CPU µs/IO", "syscalls/IO", "first ÷ this"];

/// The whole report in Markdown.
pub fn markdown(report: &Report) -> String {
    let mut out = String::new();
    for ground in report.grounds() {
        let mut lines = vec![HEADER.map(str::to_owned)];
        for rows in report.jobs(ground) {
            lines.extend(rows.iter().map(|row| cells(row, &rows[0])));
        }
        let _ = writeln!(out, "### {ground}\n\n{}", aligned(&lines));
    }
    let _ = writeln!(out, "Machine: {}.\n", report.machine);
    for version in &report.versions {
        let _ = writeln!(out, "- **{}**: {} — {}", version.name, version.program, version.setup);
    }
    out.push('\n');
    for note in &report.notes {
        let _ = writeln!(out, "- {note}");
    }
    out
}

fn cells(row: &Row, first: &Row) -> [String; 7] {
    let title = if std::ptr::eq(row, first) { row.title.clone() } else { String::new() };
    let spread = format!("{}–{}", kilo(row.iops.min), kilo(row.iops.max));
    let cpu = row.cpu_us.map_or_else(|| "–".to_owned(), |cpu| format!("{:.2}", cpu.median));
    let syscalls = row.syscalls.map_or_else(|| "–".to_owned(), |count| format!("{count:.2}"));
    let comparison = row
        .compared_with(first)
        .map(|found| format!("{:.2}× {}", found.ratio, found.verdict))
        .unwrap_or_default();
    [title, row.server.clone(), kilo(row.iops.median), spread, cpu, syscalls, comparison]
}

/// Thousands, with three digits that count.
fn kilo(value: f64) -> String {
    let value = value / 1000.0;
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// A Markdown table: the first two columns to the left, the others to the right.
fn aligned(lines: &[[String; 7]]) -> String {
    const LEFT: usize = 2;
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0).max(3)
    };
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut out = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            let pad = " ".repeat(widths[column] - cell.chars().count());
            let _ = match column < LEFT {
                true => write!(out, "| {cell}{pad} "),
                false => write!(out, "| {pad}{cell} "),
            };
        }
        out.push_str("|\n");
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(*width);
                let _ = match column < LEFT {
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
    use crate::bench::report::Version;
    use crate::bench::{Scale, Spread};

    pub(crate) fn report() -> Report {
        let row = |server: &str, samples: &[f64], syscalls| Row {
            ground: "tmpfs".to_owned(),
            job: "randread-qd1".to_owned(),
            title: "4 KiB random read, QD1".to_owned(),
            server: server.to_owned(),
            block: 4096,
            samples: samples.to_vec(),
            iops: Spread::of(samples).unwrap(),
            cpu_us: Spread::of(&[2.5]),
            syscalls,
        };
        Report {
            machine: "two cores".to_owned(),
            scale: Scale { disk: 1 << 20, seconds: 1.0 },
            repetitions: 3,
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
            split(lines[4])[1..8],
            ["4 KiB random read, QD1", "snapblk", "155", "150–160", "2.50", "1.25", ""]
        );
        assert_eq!(
            split(lines[5])[1..8],
            ["", "peer", "100", "99.0–110", "2.50", "–", "1.55× better"]
        );
        let width = lines[2].chars().count();
        assert!(lines[2..6].iter().all(|line| line.chars().count() == width), "{text}");
        assert!(text.contains("- **peer**: peer 1.0 — raw & plain"));
    }
}
