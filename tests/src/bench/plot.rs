//! The report as a picture: SVG, one panel per file system, one group of bars per job.
//!
//! Each group has its own scale, because a 128 KiB job and a 4 KiB one cannot be compared; the bar
//! is the median, the line through its end the range from minimum to maximum.

use std::fmt::Write;

use super::report::{Report, Row, Version};
use super::table::digits;

const WIDTH: f64 = 980.0;
const LABELS: f64 = 240.0;
const BARS: f64 = 540.0;
const BAR: f64 = 14.0;
const GROUP_GAP: f64 = 14.0;
const TITLE: f64 = 18.0;
const HEAD: f64 = 34.0;
/// Colours that most people can distinguish (Okabe and Ito): snapblk's, the machine's, the peers'.
const OWN: [&str; 2] = ["#0072b2", "#56b4e9"];
const MACHINE: &str = "#999999";
const PEERS: [&str; 5] = ["#e69f00", "#009e73", "#cc79a7", "#d55e00", "#f0e442"];

/// The whole report in SVG.
pub fn svg(report: &Report) -> String {
    let mut page = Page::headed(report);
    for ground in report.grounds() {
        page.panel(report, ground);
    }
    page.close(report)
}

/// The figures of one file system in SVG.
pub fn panel(report: &Report, ground: &str) -> String {
    let mut page = Page::headed(report);
    page.panel(report, ground);
    page.close(report)
}

/// A picture that grows downwards.
struct Page {
    body: String,
    y: f64,
}

impl Page {
    fn headed(report: &Report) -> Self {
        let mut body = String::new();
        let words = "The median of each, with the smallest and the largest repetition";
        text(&mut body, 16.0, 30.0, "start", "bold", words);
        text(&mut body, 16.0, 48.0, "start", "normal", &report.machine);
        Self { body, y: 56.0 }
    }

    fn panel(&mut self, report: &Report, ground: &str) {
        self.y += HEAD;
        text(&mut self.body, 16.0, self.y, "start", "bold", ground);
        self.y += 10.0;
        for rows in report.jobs(ground) {
            self.y = group(&mut self.body, report, rows, self.y);
        }
    }

    fn close(mut self, report: &Report) -> String {
        self.y += 16.0;
        text(&mut self.body, 16.0, self.y, "start", "normal", "Each job has a scale of its own.");
        let shown = self.body.clone();
        let is_shown = |version: &&Version| shown.contains(&format!(">{}<", version.name));
        for version in report.versions.iter().filter(is_shown) {
            self.y += 16.0;
            let line = format!("{}: {}", version.name, version.setup);
            text(&mut self.body, 16.0, self.y, "start", "normal", &line);
        }
        let (height, body) = (self.y + 20.0, self.body);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             {body}</svg>\n"
        )
    }
}

/// The bars of one job from `y` down; returns the position for the next.
fn group(out: &mut String, report: &Report, rows: &[Row], mut y: f64) -> f64 {
    let largest = rows.iter().map(|row| row.figure.max).fold(f64::MIN_POSITIVE, f64::max);
    text(out, 16.0, y + 13.0, "start", "normal", &rows[0].title);
    y += TITLE;
    for row in rows {
        let x = |value: f64| LABELS + BARS * value / largest;
        let middle = y + BAR / 2.0;
        text(out, LABELS - 6.0, y + 11.0, "end", "normal", &row.server);
        let _ = writeln!(
            out,
            "<rect x=\"{LABELS}\" y=\"{y}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>",
            x(row.figure.median) - LABELS,
            BAR - 2.0,
            colour(report, &row.server),
        );
        let (low, high) = (x(row.figure.min), x(row.figure.max));
        let _ = writeln!(
            out,
            "<path d=\"M{low:.1} {middle}H{high:.1}M{low:.1} {}v6M{high:.1} {}v6\" \
             stroke=\"black\" fill=\"none\"/>",
            middle - 3.0,
            middle - 3.0,
        );
        let (by, unit) = row.unit.shown();
        let mut figure = format!("{} {unit}", digits(row.figure.median / by));
        if let Some(cpu) = row.cpu_us {
            let _ = write!(figure, " · {:.2} µs CPU", cpu.median);
        }
        text(out, LABELS + BARS + 12.0, y + 11.0, "start", "normal", &figure);
        y += BAR;
    }
    y + GROUP_GAP
}

/// The first of snapblk's set-ups has its own colour; peers take theirs in turn.
fn colour(report: &Report, server: &str) -> &'static str {
    match server {
        "snapblk" => OWN[0],
        "fio" | "fio-durable" | "copy" | "read-twice" | "eventfd" => MACHINE,
        calls if calls.starts_with("syscalls") => MACHINE,
        own if own.starts_with("snapblk") => OWN[1],
        _ => {
            let index = report.versions.iter().position(|version| version.name == server);
            PEERS[index.unwrap_or(0) % PEERS.len()]
        }
    }
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, weight: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        out,
        "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\">{words}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::table::tests::report;

    #[test]
    fn bars_are_as_long_as_their_medians() {
        let svg = svg(&report());
        let widths: Vec<f64> = svg
            .lines()
            .filter(|line| line.starts_with("<rect x="))
            .map(|line| line.split('"').nth(5).unwrap().parse().unwrap())
            .collect();
        // 155 and 100 of the largest repetition, 160, over 540 points.
        assert_eq!(widths, [523.1, 337.5]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn names_cannot_break_the_markup() {
        let mut report = report();
        report.rows[0].server = "<a&b>".to_owned();
        assert!(svg(&report).contains("&lt;a&amp;b&gt;"));
    }
}
