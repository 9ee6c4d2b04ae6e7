//! What a run of the benchmark found, as plain data.

use serde::Serialize;

use super::job::Scale;
use super::stats::{Spread, Verdict};

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine, in one line.
    pub machine: String,
    /// How large the work was.
    pub scale: Scale,
    /// Repetitions behind each figure.
    pub repetitions: usize,
    /// Who took part.
    pub versions: Vec<Version>,
    /// What must be known to read the figures.
    pub notes: Vec<String>,
    /// The figures: by file system, then job, then server, the one compared first.
    pub rows: Vec<Row>,
}

/// A server that took part.
#[derive(Clone, Debug, Serialize)]
pub struct Version {
    /// Its name in the rows.
    pub name: String,
    /// What the program calls itself.
    pub program: String,
    /// How it was set up.
    pub setup: String,
}

/// One job of one server on one file system.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The file system.
    pub ground: String,
    /// The job's name.
    pub job: String,
    /// What the job is.
    pub title: String,
    /// The server.
    pub server: String,
    /// Bytes in a request.
    pub block: u64,
    /// Requests a second, one figure a repetition, in their order.
    pub samples: Vec<f64>,
    /// Requests a second.
    pub iops: Spread,
    /// Microseconds of the server's processor time for each request; none where unknown.
    pub cpu_us: Option<Spread>,
    /// The server's system calls for each request; none where they could not be counted.
    pub syscalls: Option<f64>,
}

/// The first server of a job against another one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The first server's median over the other's.
    pub ratio: f64,
    /// What the spreads allow to be said.
    pub verdict: Verdict,
}

impl Report {
    /// The file systems, in their order.
    pub fn grounds(&self) -> Vec<&str> {
        let mut grounds: Vec<&str> = self.rows.iter().map(|row| &*row.ground).collect();
        grounds.dedup();
        grounds
    }

    /// The rows of one file system, those of a job together.
    pub fn jobs<'a>(&'a self, ground: &'a str) -> impl Iterator<Item = &'a [Row]> {
        self.rows
            .chunk_by(|a, b| (&a.ground, &a.job) == (&b.ground, &b.job))
            .filter(move |rows| rows[0].ground == ground)
    }
}

impl Row {
    /// How `first` does against this row; none for itself.
    pub fn compared_with(&self, first: &Row) -> Option<Comparison> {
        (self.server != first.server).then(|| Comparison {
            ratio: first.iops.median / self.iops.median,
            verdict: first.iops.against(&self.iops),
        })
    }
}
