//! A run of the benchmark: every job, every file system, every contender in turn.
//!
//! Owns the order of the measurements. In each repetition of a job every contender has its turn, as
//! a new process that runs alone; the order rotates from one repetition to the next, so that a
//! drift of the machine affects all of them. Keeps each finished part, if requested, so that a long
//! run can be made in pieces.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use super::drive::BenchError;
use super::explain::{explanations, machine};
use super::job::{Job, Scale};
use super::probe::Probe;
use super::report::{Report, Row, Unit, Version};
use super::stamp::Stamp;
use super::stats::Spread;
use super::turn::{Turn, Work};
use super::{Contender, Daemon, Ground, Kind};
use crate::server::{Place, pin_thread};

/// Repetitions in which the server's processor time without requests is measured.
const IDLE_LOOKS: usize = 2;

/// The parameters of a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// The probes.
    pub probes: Vec<Probe>,
    /// The servers; the others are compared with the first.
    pub contenders: Vec<Contender>,
    /// The kinds of file systems.
    pub places: Vec<Place>,
    /// A directory on disk, if not in the build directory.
    pub dir: Option<PathBuf>,
    /// The amount of work.
    pub scale: Scale,
    /// Repetitions of each figure.
    pub repetitions: usize,
    /// How many set-ups of a peer are measured in full, the best in a glance; all if 0.
    pub finalists: usize,
    /// Whether system calls are counted, in an additional repetition.
    pub count_syscalls: bool,
    /// The processor of the servers.
    pub server_cpu: usize,
    /// The processor of the client.
    pub client_cpu: usize,
    /// The directory of parts: existing parts are not measured again.
    pub parts: Option<PathBuf>,
    /// Nothing is measured: the report has only the existing parts.
    pub only_parts: bool,
}

impl Settings {
    /// Every qemu-storage-daemon among the contenders.
    pub(super) fn daemons(&self) -> Vec<Daemon> {
        let mut daemons: Vec<Daemon> = Vec::new();
        for contender in &self.contenders {
            if let Kind::Qemu(qemu) = &contender.kind
                && !daemons.contains(&qemu.daemon)
            {
                daemons.push(qemu.daemon.clone());
            }
        }
        daemons
    }
}

/// The results of one contender's repetitions of one job.
#[derive(Default)]
struct Tally {
    iops: Vec<f64>,
    cpu_us: Vec<f64>,
    p50_us: Vec<f64>,
    idle_ms: Vec<f64>,
    syscalls: Option<f64>,
    failed: bool,
}

/// A run that is under way.
pub struct Run<'a> {
    pub(super) settings: Settings,
    pub(super) say: &'a dyn Fn(&str),
    stamp: Stamp,
    failures: Vec<String>,
}

impl<'a> Run<'a> {
    /// Prepares a run: the calling thread becomes the client and is bound to its processor. `say`
    /// gets each figure as it is found, and each failure.
    pub fn new(settings: Settings, say: &'a dyn Fn(&str)) -> Result<Self, BenchError> {
        if !settings.only_parts {
            let cpu = settings.client_cpu;
            pin_thread(cpu)
                .map_err(BenchError::at(format!("keep the client on processor {cpu}")))?;
        }
        Ok(Self { settings, say, stamp: Stamp::now(), failures: Vec::new() })
    }

    /// Carries everything out, and returns the failures of snapblk itself; a peer that fails is
    /// left out, and a note says so.
    pub fn report(mut self) -> Result<(Report, Vec<String>), BenchError> {
        let mut whole: Option<Report> = None;
        let mut add = |part: Option<Report>| match (&mut whole, part) {
            (_, None) => {}
            (Some(whole), Some(part)) => whole.add(part),
            (None, part) => whole = part,
        };
        for place in self.settings.places.clone() {
            let ground = OnceCell::new();
            for job in self.settings.jobs.clone() {
                if job.is_on(place) {
                    add(self.part(place, job.name, &ground, &|run, ground| run.job(ground, &job))?);
                }
            }
            for probe in self.settings.probes.clone() {
                if probe.is_on(place) {
                    let work = |run: &mut Self, ground: &Ground| run.probe(ground, &probe);
                    add(self.part(place, probe.name, &ground, &work)?);
                }
            }
        }
        Ok((whole.unwrap_or_else(|| self.nothing()), self.failures))
    }

    /// A part of the report: an existing one, or a new measurement, which is kept if all succeeded.
    fn part(
        &mut self,
        place: Place,
        name: &str,
        ground: &OnceCell<Ground>,
        work: &dyn Fn(&mut Self, &Ground) -> Result<Report, BenchError>,
    ) -> Result<Option<Report>, BenchError> {
        let place_name = if place == Place::Memory { "tmpfs" } else { "disk" };
        let part_name = format!("{place_name}-{name}");
        let kept = self.settings.parts.as_ref().map(|dir| dir.join(format!("{part_name}.json")));
        if let Some(path) = kept.as_deref().filter(|path| path.exists()) {
            let mut report = load(path)?;
            if report.stamps.is_empty() {
                report.stamps.push(Stamp::UNKNOWN.of(&part_name));
            }
            return Ok(Some(report));
        }
        if self.settings.only_parts {
            return Ok(None);
        }
        let ground = match ground.get() {
            Some(ground) => ground,
            None => {
                let Settings { dir, scale, .. } = &self.settings;
                let fresh = Ground::new(place, dir.as_deref(), scale.disk)?;
                ground.get_or_init(|| fresh)
            }
        };
        let failures = self.failures.len();
        let mut report = work(self, ground)?;
        report.stamps.push(self.stamp.of(&part_name));
        for row in &report.rows {
            (self.say)(&progress(row));
        }
        if let Some(path) = kept.filter(|_| self.failures.len() == failures) {
            keep(&path, &report)?;
        }
        Ok(Some(report))
    }

    /// All contenders of one job.
    fn job(&mut self, ground: &Ground, job: &Job) -> Result<Report, BenchError> {
        let contenders = self.settings.contenders.clone();
        let field: Vec<&Contender> =
            contenders.iter().filter(|contender| contender.does(job, ground.place)).collect();
        let mut report = self.nothing();
        let field = self.finalists(ground, job, field, &mut report.notes);
        let mut turns: Vec<(&Contender, Tally)> =
            field.into_iter().map(|contender| (contender, Tally::default())).collect();
        let most = turns.iter().map(|(contender, _)| contender.turns()).max().unwrap_or(1);
        // In each repetition, those that have more turns take them one after the other.
        let rounds = (0..self.settings.repetitions * most).map(|n| (n / most, n % most));
        for (n, (repetition, turn)) in rounds.enumerate() {
            let taking = |(contender, tally): &&mut (&Contender, Tally)| {
                !tally.failed && turn < contender.turns()
            };
            let mut taking: Vec<_> = turns.iter_mut().filter(taking).collect();
            if n % 2 == 1 {
                taking.reverse();
            }
            for (contender, tally) in taking {
                let idle = job.then_idle && turn == 0 && repetition < IDLE_LOOKS;
                let work = Work::Full { then_idle: idle };
                match self.turn(ground, job, contender, work, n as u64) {
                    Ok(turn) => tally.add(&turn),
                    Err(error) => {
                        tally.failed = true;
                        self.failed(contender, job.name, &error, &mut report.notes);
                    }
                }
            }
        }
        turns.retain(|(_, tally)| !tally.failed);
        if self.settings.count_syscalls {
            for (contender, tally) in &mut turns {
                tally.syscalls = self.syscalls(ground, job, contender, &mut report.notes);
            }
        }
        for (contender, tally) in turns {
            let Some(row) = tally.row(ground, job, contender) else { continue };
            report.rows.push(row);
            report.versions.push(contender.version()?);
        }
        Ok(report)
    }

    fn probe(&mut self, ground: &Ground, probe: &Probe) -> Result<Report, BenchError> {
        let mut report = self.nothing();
        match self.carry_out(ground, probe) {
            Ok(Found { rows, versions, notes }) => {
                (report.rows, report.versions) = (rows, versions);
                report.notes.extend(notes);
            }
            Err(error) => {
                (self.say)(&format!("{}: {error}", probe.name));
                let failure = format!("{} failed and has no figure.", probe.name);
                report.notes.push(failure.clone());
                self.failures.push(failure);
            }
        }
        Ok(report)
    }

    /// The contenders that are measured in full: of the peers, those with the best rate and the
    /// best processor time in a glance, and the best of those that are always included.
    fn finalists<'c>(
        &mut self,
        ground: &Ground,
        job: &Job,
        mut field: Vec<&'c Contender>,
        notes: &mut Vec<String>,
    ) -> Vec<&'c Contender> {
        let peers: Vec<&Contender> = field.iter().copied().filter(|c| c.is_peer()).collect();
        let wanted = self.settings.finalists;
        // A glance at all of them takes time too.
        if wanted == 0 || peers.len() <= wanted + 1 {
            return field;
        }
        let mut glances: Vec<(&Contender, f64, f64)> = Vec::new();
        for peer in peers {
            match self.turn(ground, job, peer, Work::Glance, 0) {
                Ok(turn) => {
                    let cpu = turn.cpu_us().unwrap_or(f64::INFINITY);
                    glances.push((peer, turn.sample.iops(), cpu));
                }
                Err(error) => self.failed(peer, job.name, &error, notes),
            }
        }
        glances.sort_by(|a, b| b.1.total_cmp(&a.1));
        let frugal = glances.iter().min_by(|a, b| a.2.total_cmp(&b.2)).map(|glance| glance.0);
        let fixture = glances.iter().map(|glance| glance.0).find(|peer| peer.is_fixture());
        let mut kept: Vec<&Contender> =
            glances.iter().take(wanted).map(|glance| glance.0).collect();
        kept.extend(frugal.into_iter().chain(fixture));
        field.retain(|contender| !contender.is_peer() || kept.contains(contender));
        field
    }

    fn failed(&mut self, who: &Contender, job: &str, error: &BenchError, notes: &mut Vec<String>) {
        (self.say)(&format!("{} in {job}: {error}", who.name));
        let failure = without_figure(who, job);
        notes.push(failure.clone());
        if matches!(who.kind, Kind::Snapblk(_)) {
            self.failures.push(failure);
        }
    }

    /// A report without figures.
    fn nothing(&self) -> Report {
        Report {
            machine: machine(),
            scale: self.settings.scale,
            repetitions: self.settings.repetitions,
            stamps: Vec::new(),
            versions: Vec::new(),
            notes: explanations(&self.settings),
            rows: Vec::new(),
        }
    }
}

impl Tally {
    fn add(&mut self, turn: &Turn) {
        self.iops.push(turn.sample.iops());
        self.cpu_us.extend(turn.cpu_us());
        self.p50_us.extend(turn.sample.p50.map(|time| time.as_secs_f64() * 1e6));
        self.idle_ms.extend(turn.idle.map(|time| time.as_secs_f64() * 1e3));
    }

    fn row(self, ground: &Ground, job: &Job, contender: &Contender) -> Option<Row> {
        let of = (&*ground.name, job.name, job.title);
        Some(Row {
            cpu_us: Spread::of(&self.cpu_us),
            p50_us: Spread::of(&self.p50_us),
            idle_ms: Spread::of(&self.idle_ms),
            syscalls: self.syscalls,
            ..Row::new(of, &contender.name, Unit::Iops, self.iops)?
        })
    }
}

fn progress(row: &Row) -> String {
    let (by, unit) = row.unit.shown();
    let Row { ground, job, server, figure, .. } = row;
    format!("{ground:12} {job:24} {server:32} {:9.2} {unit}", figure.median / by)
}

fn load(path: &Path) -> Result<Report, BenchError> {
    let step = format!("read {}", path.display());
    let text = fs::read(path).map_err(BenchError::at(step.clone()))?;
    serde_json::from_slice(&text).map_err(|error| BenchError::at(step)(error.into()))
}

fn keep(path: &Path, report: &Report) -> Result<(), BenchError> {
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        fs::write(path, serde_json::to_string_pretty(report)?)
    };
    write().map_err(BenchError::at(format!("write {}", path.display())))
}

/// The note on a contender that failed.
pub(super) fn without_figure(who: &Contender, job: &str) -> String {
    format!("{} failed in {job} and has no figure there.", who.name)
}

/// The result of a probe.
#[derive(Default)]
pub(super) struct Found {
    pub(super) rows: Vec<Row>,
    pub(super) versions: Vec<Version>,
    /// The notes on peers without figures.
    pub(super) notes: Vec<String>,
}

impl Found {
    /// The result if there was no failure.
    pub(super) fn of(rows: impl IntoIterator<Item = Row>, versions: Vec<Version>) -> Self {
        Self { rows: rows.into_iter().collect(), versions, notes: Vec::new() }
    }
}
