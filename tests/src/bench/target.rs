//! Performance targets for snapblk, and whether it meets them.
//!
//! Owns the judging of a report by its targets, on medians, with the spread beside. Never measures
//! anything; a figure that the report lacks is reported as missing. The targets themselves are in
//! [`goals`](super::goals).

use super::report::{Report, Row};
use super::stats::Spread;
use crate::server::Place;

/// The figure of a row that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The row's own: a rate, a time, a size.
    Figure,
    /// Processor time per request.
    Cpu,
    /// The median latency.
    P50,
    /// Processor time without requests, in milliseconds per second.
    Idle,
    /// System calls per request.
    Syscalls,
}

/// A set of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Every set-up of qemu-storage-daemon.
    Qemu,
    /// This one.
    Only(&'static str),
    /// Those whose names begin with this.
    Named(&'static str),
    /// qcow2 with the defaults of `qemu-img`.
    DefaultQcow2,
    /// Those whose copies are durable before the guest's write.
    Durable,
    /// All but snapblk.
    Others,
}

/// The reference of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Against {
    /// None: the figure itself is bounded.
    Nothing,
    /// The best of these, in the same job.
    Best(Who),
    /// The best of these, in another job.
    BestIn(&'static str, Who),
    /// The sum of the times of the system calls, and of the path to a null device and back in this
    /// job.
    Limit(&'static str),
}

/// The bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Not less than this.
    AtLeast(f64),
    /// Not more than this.
    AtMost(f64),
}

/// One target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// The job or probe.
    pub job: &'static str,
    /// The kind of file system.
    pub place: Place,
    /// The server whose figure is judged.
    pub subject: &'static str,
    /// The figure.
    pub measure: Measure,
    /// The reference.
    pub against: Against,
    /// The bound.
    pub bound: Bound,
}

/// The result of a target.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It holds.
    Holds(Found),
    /// It does not hold.
    FallsShort(Found),
    /// The report lacks a figure.
    NotMeasured,
}

/// A figure and its reference.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The figure, or its ratio to the reference, with the range that the repetitions permit.
    pub value: Spread,
    /// The name of the reference.
    pub with: String,
}

impl Target {
    /// The target's result in `report`.
    pub fn judge(&self, report: &Report) -> Outcome {
        let Some(found) = self.find(report) else { return Outcome::NotMeasured };
        let holds = match self.bound {
            Bound::AtLeast(least) => found.value.median >= least,
            Bound::AtMost(most) => found.value.median <= most,
        };
        if holds { Outcome::Holds(found) } else { Outcome::FallsShort(found) }
    }

    /// The job's title in the report, or else its name.
    pub fn title<'a>(&self, report: &'a Report) -> &'a str {
        report.rows.iter().find(|row| row.job == self.job).map_or(self.job, |row| &row.title)
    }

    /// The name of its figure.
    pub fn figure_name(&self, report: &Report) -> &'static str {
        match self.measure {
            Measure::Figure => {
                let row = report.rows.iter().find(|row| row.job == self.job);
                row.map_or("figure", |row| row.unit.shown().1)
            }
            Measure::Cpu => "CPU µs/IO",
            Measure::P50 => "p50 µs",
            Measure::Idle => "idle ms/s",
            Measure::Syscalls => "syscalls/IO",
        }
    }

    fn find(&self, report: &Report) -> Option<Found> {
        let own = self.rows(report, self.job).find(|row| row.server == self.subject)?;
        let own = self.measure.of(own)?;
        let (other, with) = match self.against {
            Against::Nothing => return Some(Found { value: own, with: "–".to_owned() }),
            Against::Best(who) => self.best(report, self.job, who)?,
            Against::BestIn(job, who) => {
                let (best, name) = self.best(report, job, who)?;
                (best, format!("{name} in {job}"))
            }
            Against::Limit(null) => self.limit(report, null)?,
        };
        let value = Spread {
            median: own.median / other.median,
            min: own.min / other.max,
            max: own.max / other.min,
        };
        Some(Found { value, with })
    }

    /// The rows of `job` on the target's kind of file system.
    fn rows<'a>(&self, report: &'a Report, job: &str) -> impl Iterator<Item = &'a Row> {
        let in_memory = self.place == Place::Memory;
        report
            .rows
            .iter()
            .filter(move |row| row.job == job && row.ground.starts_with("disk") != in_memory)
    }

    /// The best of `who` in `job`, and its name.
    fn best(&self, report: &Report, job: &str, who: Who) -> Option<(Spread, String)> {
        let rows = self.rows(report, job).filter(|row| who.includes(&row.server));
        let figures = rows.filter_map(|row| {
            let fewer = self.measure != Measure::Figure || row.unit.is_cost();
            let figure = self.measure.of(row)?;
            Some((if fewer { -figure.median } else { figure.median }, figure, row.server.clone()))
        });
        let best = figures.max_by(|a, b| a.0.total_cmp(&b.0))?;
        Some((best.1, best.2))
    }

    /// The inverse of the sum of the two times per request.
    fn limit(&self, report: &Report, null: &str) -> Option<(Spread, String)> {
        let (plain, _) = self.best(report, self.job, Who::Only("syscalls"))?;
        let rows = self.rows(report, null);
        let fastest = |a: &Row, b: &Row| a.figure.median.total_cmp(&b.figure.median);
        let null = rows.max_by(|a, b| fastest(a, b))?;
        let together = |plain: f64, null: f64| 1.0 / (1.0 / plain + 1.0 / null);
        let spread = Spread {
            median: together(plain.median, null.figure.median),
            min: together(plain.min, null.figure.min),
            max: together(plain.max, null.figure.max),
        };
        Some((spread, format!("system calls and {}", null.server)))
    }
}

impl Measure {
    fn of(self, row: &Row) -> Option<Spread> {
        match self {
            Self::Figure => Some(row.figure),
            Self::Cpu => row.cpu_us,
            Self::P50 => row.p50_us,
            Self::Idle => row.idle_ms,
            Self::Syscalls => Spread::of(&[row.syscalls?]),
        }
    }
}

impl Who {
    fn includes(self, server: &str) -> bool {
        match self {
            Self::Qemu => server.starts_with("qsd-"),
            Self::Only(name) => server == name,
            Self::Named(start) => server.starts_with(start),
            Self::DefaultQcow2 => server.starts_with("qsd-") && server.contains("-qcow2-64k-"),
            Self::Durable => server.contains("-durable"),
            Self::Others => !server.starts_with("snapblk"),
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "≥ {least:.2}"),
            Self::AtMost(most) => write!(f, "≤ {most:.2}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Unit;
    use crate::bench::table::tests::report;

    fn row(job: &str, server: &str, samples: &[f64]) -> Row {
        Row::new(("tmpfs", job, job), server, Unit::Iops, samples.to_vec()).unwrap()
    }

    fn measured(rows: Vec<Row>) -> Report {
        Report { rows, ..report() }
    }

    const TARGET: Target = Target {
        job: "read",
        place: Place::Memory,
        subject: "snapblk",
        measure: Measure::Figure,
        against: Against::Best(Who::Qemu),
        bound: Bound::AtLeast(1.2),
    };

    #[test]
    fn the_best_peer_decides_on_medians() {
        let with = |own: f64| {
            measured(vec![
                row("read", "snapblk", &[own - 10.0, own, own + 10.0]),
                row("read", "qsd-a", &[90.0, 100.0, 110.0]),
                row("read", "qsd-b", &[50.0]),
                row("read", "fio", &[1000.0]),
            ])
        };
        let Outcome::Holds(found) = TARGET.judge(&with(120.0)) else { panic!("120 of 100") };
        assert_eq!(found.with, "qsd-a");
        assert_eq!(found.value, Spread { median: 1.2, min: 1.0, max: 130.0 / 90.0 });
        assert!(matches!(TARGET.judge(&with(119.0)), Outcome::FallsShort(_)));
        assert_eq!(TARGET.judge(&measured(vec![])), Outcome::NotMeasured);
        let elsewhere = Target { place: Place::Disk, ..TARGET };
        assert_eq!(elsewhere.judge(&with(120.0)), Outcome::NotMeasured);
    }

    #[test]
    fn of_costs_the_least_is_the_best() {
        let cost = |server: &str, cpu: f64| Row {
            cpu_us: Spread::of(&[cpu]),
            ..row("read", server, &[1.0])
        };
        let rows = vec![cost("snapblk", 2.0), cost("qsd-a", 4.0), cost("qsd-b", 3.0)];
        let target = Target { measure: Measure::Cpu, bound: Bound::AtMost(0.6), ..TARGET };
        let Outcome::FallsShort(found) = target.judge(&measured(rows)) else { panic!("2 of 3") };
        assert_eq!((&*found.with, found.value.median), ("qsd-b", 2.0 / 3.0));
    }

    #[test]
    fn the_limit_is_both_times_together() {
        let rows = vec![
            row("read", "snapblk", &[90.0]),
            row("read", "syscalls", &[200.0]),
            row("null", "snapblk", &[150.0]),
            row("null", "qsd-null", &[200.0]),
        ];
        let target =
            Target { against: Against::Limit("null"), bound: Bound::AtLeast(0.9), ..TARGET };
        let Outcome::Holds(found) = target.judge(&measured(rows)) else { panic!("90 of 100") };
        assert_eq!(found.value.median, 0.9);
    }
}
