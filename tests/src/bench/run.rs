//! A run of the benchmark: every job, every file system, every contender in turn.
//!
//! Owns the order of things. In each repetition of a job every contender has its turn, a fresh
//! process each time and the only one that runs; the order turns round from one repetition to the
//! next, so that a machine that drifts drifts for all of them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::cost::{CpuMeter, SyscallCounter};
use super::drive::{BenchError, Driver, Sample};
use super::job::{CLUSTER, Job, Layout, Scale};
use super::report::{Report, Row};
use super::stats::Spread;
use super::{Contender, Ground, Kind};
use crate::client::{Client, Connect, Waiting};
use crate::server::{Place, Server, pin_thread};

/// How a run is to be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which jobs.
    pub jobs: Vec<Job>,
    /// Which servers; the others are compared with the first.
    pub contenders: Vec<Contender>,
    /// On which file systems.
    pub places: Vec<Place>,
    /// A directory on disk, if not in the build directory.
    pub dir: Option<PathBuf>,
    /// How large the work is.
    pub scale: Scale,
    /// Repetitions of each figure.
    pub repetitions: usize,
    /// Whether system calls are counted, in a repetition more.
    pub count_syscalls: bool,
    /// The processor of the servers.
    pub server_cpu: usize,
    /// The processor of the client.
    pub client_cpu: usize,
    /// How the client waits.
    pub waiting: Waiting,
}

/// One repetition.
struct Turn {
    sample: Sample,
    cpu: Option<Duration>,
}

/// What one contender's repetitions of one job came to.
#[derive(Default)]
struct Tally {
    iops: Vec<f64>,
    cpu_us: Vec<f64>,
    syscalls: Option<f64>,
}

/// A run that is under way.
pub struct Run {
    settings: Settings,
    notes: Vec<String>,
}

impl Run {
    /// Prepares a run: the calling thread becomes the client and keeps to its processor.
    pub fn new(settings: Settings) -> Result<Self, BenchError> {
        let cpu = settings.client_cpu;
        pin_thread(cpu).map_err(BenchError::at(format!("keep the client on processor {cpu}")))?;
        Ok(Self { settings, notes: Vec::new() })
    }

    /// Does it all. `progress` hears of each figure as it is found.
    pub fn report(mut self, progress: &mut dyn FnMut(&Row)) -> Result<Report, BenchError> {
        let settings = self.settings.clone();
        let versions =
            settings.contenders.iter().map(Contender::version).collect::<Result<_, _>>()?;
        let mut rows = Vec::new();
        for &place in &settings.places {
            let ground = Ground::new(place, settings.dir.as_deref(), settings.scale.disk)?;
            for job in &settings.jobs {
                for row in self.job(&ground, job)? {
                    progress(&row);
                    rows.push(row);
                }
            }
        }
        let machine = machine();
        let mut notes = explanations(&settings);
        notes.extend(self.notes);
        let Settings { scale, repetitions, .. } = settings;
        Ok(Report { machine, scale, repetitions, versions, notes, rows })
    }

    fn job(&mut self, ground: &Ground, job: &Job) -> Result<Vec<Row>, BenchError> {
        let settings = self.settings.clone();
        let mut turns: Vec<(&Contender, Tally)> = settings
            .contenders
            .iter()
            .filter(|contender| contender.serves(job.layout))
            .map(|contender| (contender, Tally::default()))
            .collect();
        for repetition in 0..settings.repetitions {
            for (contender, tally) in &mut turns {
                let turn = self.timed(ground, job, contender, repetition as u64)?;
                tally.iops.push(turn.sample.iops());
                tally.cpu_us.extend(turn.cpu.map(|cpu| per_request(cpu, turn.sample)));
            }
            turns.reverse();
        }
        if settings.repetitions % 2 == 1 {
            turns.reverse();
        }
        if settings.count_syscalls {
            for (contender, tally) in &mut turns {
                tally.syscalls = self.counted(ground, job, contender)?;
            }
        }
        let row = |(contender, tally): (&Contender, Tally)| {
            Some(Row {
                ground: ground.name.clone(),
                job: job.name.to_owned(),
                title: job.title.to_owned(),
                server: contender.name.clone(),
                block: job.block,
                iops: Spread::of(&tally.iops)?,
                cpu_us: Spread::of(&tally.cpu_us),
                syscalls: tally.syscalls,
                samples: tally.iops,
            })
        };
        Ok(turns.into_iter().filter_map(row).collect())
    }

    /// One timed repetition.
    fn timed(
        &self,
        ground: &Ground,
        job: &Job,
        contender: &Contender,
        seed: u64,
    ) -> Result<Turn, BenchError> {
        let (server, mut driver) = self.set_up(ground, job, contender)?;
        driver.prepare(seed)?;
        let mut meter = CpuMeter::new(pid(contender, server.as_ref()));
        let sample = driver.measure(&self.settings.scale, seed, &mut meter)?;
        drop(driver);
        stop(server)?;
        Ok(Turn { sample, cpu: meter.spent() })
    }

    /// A repetition in which system calls are counted; none where that cannot be.
    fn counted(
        &mut self,
        ground: &Ground,
        job: &Job,
        contender: &Contender,
    ) -> Result<Option<f64>, BenchError> {
        let (server, mut driver) = self.set_up(ground, job, contender)?;
        let seed = self.settings.repetitions as u64;
        driver.prepare(seed)?;
        let Some(pid) = pid(contender, server.as_ref()) else { return Ok(None) };
        let mut counter = match SyscallCounter::attach(pid, ground.scratch().dir()) {
            Ok(counter) => counter,
            Err(error) => return Ok(self.uncounted(&error)),
        };
        // Long enough to count, short enough to be bearable for what perf slows.
        let scale = Scale { seconds: self.settings.scale.seconds.min(0.5), ..self.settings.scale };
        let sample = driver.measure(&scale, seed, &mut counter)?;
        let count = counter.count();
        drop(driver);
        stop(server)?;
        Ok(match count {
            Ok(count) => Some(count as f64 / sample.ios.max(1) as f64),
            Err(error) => self.uncounted(&error),
        })
    }

    fn uncounted(&mut self, error: &std::io::Error) -> Option<f64> {
        let note = format!("System calls could not be counted: {error}.");
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
        None
    }

    /// A fresh server and a session with it.
    fn set_up(
        &self,
        ground: &Ground,
        job: &Job,
        contender: &Contender,
    ) -> Result<(Option<Server>, Driver), BenchError> {
        let server = match contender.command(ground, job.layout)? {
            Some(command) => Some(command.on_cpu(self.settings.server_cpu).start()?),
            None => None,
        };
        let socket = match (&contender.kind, &server) {
            (Kind::External { socket, .. }, _) => socket.clone(),
            (_, Some(server)) => server.socket().to_owned(),
            (_, None) => PathBuf::new(),
        };
        let block = job.block.max(if job.half_written { CLUSTER } else { 0 }) as usize;
        let pool = (job.depth + 8) * block.next_multiple_of(4096);
        let mut connect = Connect::to(socket).pool(pool);
        connect.waiting = self.settings.waiting;
        let driver = Driver::new(Client::connect(&connect)?, *job, self.settings.scale.disk)?;
        Ok((server, driver))
    }
}

fn pid(contender: &Contender, server: Option<&Server>) -> Option<u32> {
    match contender.kind {
        Kind::External { pid, .. } => pid,
        _ => server.map(Server::pid),
    }
}

/// Ends a server the way it likes best: nothing it owes is left for the next one's time.
fn stop(server: Option<Server>) -> Result<(), BenchError> {
    if let Some(server) = server {
        server.terminate()?;
    }
    Ok(())
}

fn per_request(cpu: Duration, sample: Sample) -> f64 {
    cpu.as_secs_f64() * 1e6 / sample.ios.max(1) as f64
}

/// Processor, number of them, kernel.
fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{model}, {cores} processors, Linux {}", kernel.trim())
}

/// What a reader must know of any run.
fn explanations(settings: &Settings) -> Vec<String> {
    let Scale { disk, seconds } = settings.scale;
    let waits = match settings.waiting {
        Waiting::Sleep => "sleeps until it is called",
        Waiting::Poll => "polls",
    };
    let overlays = settings.jobs.iter().any(|job| job.layout == Layout::Overlay);
    let mut notes = vec![
        format!(
            "Median, smallest and largest of {} repetitions; the servers take turns, each in a \
             fresh process on processor {}, the client on processor {}, where it {waits}.",
            settings.repetitions, settings.server_cpu, settings.client_cpu
        ),
        format!(
            "Disks of {} MiB, written in full, O_DIRECT, one queue; jobs without a fixed amount \
             of work run {seconds} s.",
            disk >> 20
        ),
        "\"first ÷ this\" is the median of a job's first server over this one's; `better` and \
         `worse` where no repetition of the one reaches one of the other, else `par`."
            .to_owned(),
        "CPU is the server's own, all threads, user and system, from the scheduler's counters."
            .to_owned(),
    ];
    if overlays {
        notes.push(
            "Each repetition of an overlay job has a fresh overlay; first writes are a fixed \
             number of requests, the same for every server."
                .to_owned(),
        );
    }
    if settings.count_syscalls {
        notes.push(format!(
            "System calls are from a repetition of their own under `{}`; calls that io_uring \
             saves are not in it, nor is what its kernel threads do.",
            SyscallCounter::METHOD
        ));
    }
    notes
}
