//! Measurements that jobs cannot express: they need the monitor, a store made by hand, or their own
//! clock.
//!
//! Owns the list of probes. Each decides what it compares, and returns rows like a job.

mod gap;
mod merge;
mod million;
mod monitor;
mod queues;
mod wake;

use super::drive::BenchError;
use super::run::Found;
use super::{Ground, Run};
use crate::server::Place;

/// A measurement with its own procedure.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// The name to choose it by.
    pub name: &'static str,
    /// Its description.
    pub title: &'static str,
    only_on: Option<Place>,
    work: fn(&Run<'_>, &Ground, &Probe) -> Result<Found, BenchError>,
}

/// All probes, in the order of the report.
const PROBES: [Probe; 11] = [
    Probe {
        name: "wake-up",
        title: "two threads wake each other by eventfd, there and back",
        work: wake::measure,
        ..Probe::IN_MEMORY
    },
    Probe {
        name: "two-queues",
        title: "4 KiB random read, rings filled beforehand",
        work: queues::measure,
        ..Probe::IN_MEMORY
    },
    Probe {
        name: "live-snapshot-gap",
        title: "longest gap around a live snapshot, random writes, QD32",
        work: gap::measure,
        ..Probe::IN_MEMORY
    },
    Probe { name: "merge-runs", title: "merge of long runs", work: merge::runs, ..Probe::ON_DISK },
    Probe {
        name: "merge-scattered",
        title: "merge of scattered chunks",
        work: merge::scattered,
        ..Probe::ON_DISK
    },
    Probe {
        name: "merge-load",
        title: "what a merge leaves to random reads, QD32",
        work: merge::reads,
        ..Probe::ON_DISK
    },
    Probe {
        name: "merge-load-writes",
        title: "what a merge leaves to random writes, QD32",
        work: merge::writes,
        ..Probe::ON_DISK
    },
    Probe {
        name: "open-million",
        title: "opening a store with 1,000,000 scattered exceptions",
        work: million::open,
        ..Probe::IN_MEMORY
    },
    Probe {
        name: "memory-scattered",
        title: "memory for each of 1,000,000 scattered exceptions",
        work: million::scattered,
        ..Probe::IN_MEMORY
    },
    Probe {
        name: "memory-dense",
        title: "memory for each of 1,000,000 dense exceptions",
        work: million::dense,
        ..Probe::IN_MEMORY
    },
    Probe {
        name: "memory-bounded",
        title: "memory for each of 10,000,000 scattered exceptions, bound of 32 MiB",
        work: million::bounded,
        ..Probe::IN_MEMORY
    },
];

impl Probe {
    const IN_MEMORY: Self =
        Self { name: "", title: "", only_on: Some(Place::Memory), work: gap::measure };
    const ON_DISK: Self = Self { only_on: Some(Place::Disk), ..Self::IN_MEMORY };

    /// The identification of its rows.
    fn of<'a>(&'a self, ground: &'a Ground) -> (&'a str, &'a str, &'a str) {
        (&ground.name, self.name, self.title)
    }

    /// The probes whose names match one of `patterns`; all if there are no patterns.
    pub fn matching(patterns: &[String]) -> Vec<Self> {
        PROBES.into_iter().filter(|probe| super::job::is_wanted(patterns, probe.name)).collect()
    }

    /// Whether it is done on `place`.
    pub fn is_on(&self, place: Place) -> bool {
        self.only_on.is_none_or(|only| only == place)
    }
}

impl Run<'_> {
    /// Carries `probe` out.
    pub(super) fn carry_out(&self, ground: &Ground, probe: &Probe) -> Result<Found, BenchError> {
        (probe.work)(self, ground, probe)
    }
}
