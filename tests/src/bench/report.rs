//! The results of a run of the benchmark, as plain data.
//!
//! Owns the structure of the figures, and how the reports of several parts are combined. Never
//! knows how they were measured.

use serde::{Deserialize, Serialize};

use super::job::Scale;
use super::stamp::{self, Stamp};
use super::stats::{Spread, Verdict};

/// A whole run, or a part of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The machine, in one line.
    pub machine: String,
    /// The amount of work.
    pub scale: Scale,
    /// Repetitions of each figure.
    pub repetitions: usize,
    /// The measured versions and days; empty if not recorded.
    #[serde(default)]
    pub stamps: Vec<Stamp>,
    /// The contenders.
    pub versions: Vec<Version>,
    /// Notes on the figures.
    pub notes: Vec<String>,
    /// The figures: by file system, then job, then server, the reference first.
    pub rows: Vec<Row>,
}

/// A contender and its set-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Its name in the rows.
    pub name: String,
    /// The program's name and version.
    pub program: String,
    /// Its set-up.
    pub setup: String,
}

/// The unit of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Requests per second.
    Iops,
    /// Mebibytes per second.
    MibPerSecond,
    /// Milliseconds; fewer are better.
    Milliseconds,
    /// Microseconds; fewer are better.
    Microseconds,
    /// Bytes per exception; fewer are better.
    BytesPerException,
    /// A share of the undisturbed figure.
    Share,
}

impl Unit {
    /// Whether fewer are better.
    pub fn is_cost(self) -> bool {
        matches!(self, Self::Milliseconds | Self::Microseconds | Self::BytesPerException)
    }

    /// The text after a figure, and the divisor of the figure before that.
    pub fn shown(self) -> (f64, &'static str) {
        match self {
            Self::Iops => (1000.0, "kIOPS"),
            Self::MibPerSecond => (1.0, "MiB/s"),
            Self::Milliseconds => (1.0, "ms"),
            Self::Microseconds => (1.0, "µs"),
            Self::BytesPerException => (1.0, "B/exception"),
            Self::Share => (1.0, "of it"),
        }
    }
}

/// One job with one server on one file system.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The file system.
    pub ground: String,
    /// The job's name.
    pub job: String,
    /// The job's description.
    pub title: String,
    /// The server.
    pub server: String,
    /// The unit.
    pub unit: Unit,
    /// One figure per repetition, in order.
    pub samples: Vec<f64>,
    /// The samples' spread.
    pub figure: Spread,
    /// Microseconds of the server's processor time per request; none if unknown.
    pub cpu_us: Option<Spread>,
    /// Microseconds of latency, the median of each repetition; none if several requests were in
    /// flight.
    pub p50_us: Option<Spread>,
    /// Milliseconds of the server's processor time in a second without requests, a second after the
    /// last; none if not measured.
    pub idle_ms: Option<Spread>,
    /// The server's system calls per request; none if they could not be counted.
    pub syscalls: Option<f64>,
}

/// The comparison of a job's first server with another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The ratio of the first server's median to the other's, above 1 if it is better.
    pub ratio: f64,
    /// The conclusion that the spreads permit.
    pub verdict: Verdict,
}

impl Report {
    /// The file systems, in their order.
    pub fn grounds(&self) -> Vec<&str> {
        let mut grounds: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !grounds.contains(&&*row.ground) {
                grounds.push(&row.ground);
            }
        }
        grounds
    }

    /// The rows of one file system, grouped by job.
    pub fn jobs<'a>(&'a self, ground: &'a str) -> impl Iterator<Item = &'a [Row]> {
        self.rows
            .chunk_by(|a, b| (&a.ground, &a.job) == (&b.ground, &b.job))
            .filter(move |rows| rows[0].ground == ground)
    }

    /// Adds another part. Common entries appear once; if machine or scale differ, a note says so.
    pub fn add(&mut self, part: Report) {
        let differs = (&part.machine, part.scale, part.repetitions)
            != (&self.machine, self.scale, self.repetitions);
        if differs {
            let jobs: Vec<&str> = part.jobs_of_all_grounds();
            let Scale { disk, seconds } = part.scale;
            self.notes.push(format!(
                "Measured apart from the rest: {}, on {}, disks of {} MiB, {seconds} s, {} \
                 repetitions.",
                jobs.join(", "),
                part.machine,
                disk >> 20,
                part.repetitions
            ));
        }
        stamp::add(&mut self.stamps, part.stamps.clone());
        add_missing(&mut self.versions, part.versions.clone());
        add_missing(&mut self.notes, part.notes.clone());
        self.rows.extend(part.rows);
    }

    fn jobs_of_all_grounds(&self) -> Vec<&str> {
        let mut jobs: Vec<&str> = self.rows.iter().map(|row| &*row.job).collect();
        jobs.dedup();
        jobs
    }
}

fn add_missing<T: PartialEq>(to: &mut Vec<T>, from: Vec<T>) {
    for item in from {
        if !to.contains(&item) {
            to.push(item);
        }
    }
}

impl Row {
    /// A row without costs.
    pub fn new(
        (ground, job, title): (&str, &str, &str),
        server: &str,
        unit: Unit,
        samples: Vec<f64>,
    ) -> Option<Self> {
        Some(Self {
            ground: ground.to_owned(),
            job: job.to_owned(),
            title: title.to_owned(),
            server: server.to_owned(),
            unit,
            figure: Spread::of(&samples)?,
            samples,
            cpu_us: None,
            p50_us: None,
            idle_ms: None,
            syscalls: None,
        })
    }

    /// The comparison of `first` with this row; none for itself.
    pub fn compared_with(&self, first: &Row) -> Option<Comparison> {
        (self.server != first.server).then(|| {
            let (ratio, verdict) = match self.unit.is_cost() {
                false => {
                    (first.figure.median / self.figure.median, first.figure.against(&self.figure))
                }
                true => {
                    (self.figure.median / first.figure.median, self.figure.against(&first.figure))
                }
            };
            Comparison { ratio, verdict }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::table::tests::report;

    #[test]
    fn parts_become_one_report_and_what_differs_is_said() {
        let (mut whole, mut part) = (report(), report());
        part.rows.iter_mut().for_each(|row| row.job = "other".to_owned());
        whole.add(part.clone());
        assert_eq!((whole.rows.len(), whole.versions.len(), whole.notes.len()), (4, 1, 1));
        assert_eq!(whole.jobs("tmpfs").count(), 2);
        part.repetitions = 1;
        whole.add(part);
        assert!(whole.notes[1].contains("other") && whole.notes[1].contains("1 repetitions"));
    }

    #[test]
    fn where_fewer_are_better_the_ratio_turns_round() {
        let row = |server: &str, sample| {
            Row::new(("tmpfs", "gap", "a gap"), server, Unit::Milliseconds, vec![sample]).unwrap()
        };
        let (first, other) = (row("snapblk", 1.0), row("peer", 4.0));
        let found = other.compared_with(&first).unwrap();
        assert_eq!((found.ratio, found.verdict), (4.0, Verdict::Better));
    }

    #[test]
    fn a_report_survives_being_written() {
        let text = serde_json::to_string(&report()).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report());
    }
}
