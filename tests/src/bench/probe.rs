//! What the jobs cannot ask: measurements that need the monitor, a store made by hand, or a clock
//! of their own.
//!
//! Owns the list of probes. Each decides itself what it compares, and gives rows as a job does.

use super::drive::BenchError;
use super::run::Found;
use super::{Ground, Run};
use crate::server::Place;

/// A measurement with a procedure of its own.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// The name to choose it by.
    pub name: &'static str,
    /// What it is, for people.
    pub title: &'static str,
    only_on: Option<Place>,
    work: fn(&Run<'_>, &Ground, &Probe) -> Result<Found, BenchError>,
}

/// All probes, in the order of the report.
const PROBES: [Probe; 0] = [];

impl Probe {
    /// The probes whose names match one of `patterns`; all where there are none.
    pub fn matching(patterns: &[String]) -> Vec<Self> {
        PROBES.into_iter().filter(|probe| super::job::is_wanted(patterns, probe.name)).collect()
    }

    /// Whether it is done on `place`.
    pub fn is_on(&self, place: Place) -> bool {
        self.only_on.is_none_or(|only| only == place)
    }
}

impl Run<'_> {
    /// Does what `probe` is about.
    pub(super) fn carry_out(&self, ground: &Ground, probe: &Probe) -> Result<Found, BenchError> {
        (probe.work)(self, ground, probe)
    }
}
