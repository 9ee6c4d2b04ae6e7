//! One contender's turn at one job: a new server, a session, the measurement, the end.
//!
//! Owns the steps of a turn. Never decides whose turn it is.

use std::path::PathBuf;
use std::time::Duration;

use super::cost::{CpuMeter, Meter, SyscallCounter};
use super::drive::{BenchError, Driver, Sample};
use super::job::{CLUSTER, Ends, Job, Scale};
use super::{Contender, Ground, Kind, Layout, Run, limit};
use crate::client::{Client, Connect};
use crate::server::Server;

/// The duration of a glance.
const GLANCE: Duration = Duration::from_millis(300);
/// How long after the last request an idle server is measured, and for how long.
const IDLE: Duration = Duration::from_secs(1);

/// The work in a turn.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// A repetition, and optionally a measurement of the idle server.
    Full {
        /// Whether the idle server is measured.
        then_idle: bool,
    },
    /// A short measurement of the rate.
    Glance,
}

/// The result of one turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    pub(super) sample: Sample,
    /// The server's processor time.
    pub(super) cpu: Option<Duration>,
    /// The server's processor time in a second without requests.
    pub(super) idle: Option<Duration>,
}

impl Turn {
    /// Microseconds of processor time per request.
    pub(super) fn cpu_us(&self) -> Option<f64> {
        self.cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / self.sample.ios.max(1) as f64)
    }
}

impl Run<'_> {
    /// One turn of `contender`.
    pub(super) fn turn(
        &self,
        ground: &Ground,
        job: &Job,
        contender: &Contender,
        work: Work,
        seed: u64,
    ) -> Result<Turn, BenchError> {
        if let Some(turn) = self.without_server(ground, job, contender, seed)? {
            return Ok(turn);
        }
        let (server, mut driver) = self.set_up(ground, job, contender)?;
        driver.prepare(seed)?;
        let pid = pid(contender, server.as_ref());
        let mut meter = CpuMeter::new(pid);
        let (sample, then_idle) = match work {
            Work::Glance => (driver.glance(GLANCE, seed, &mut meter)?, false),
            Work::Full { then_idle } => {
                (driver.measure(&self.settings.scale, seed, &mut meter)?, then_idle)
            }
        };
        let idle = then_idle.then(|| idle_time(pid)).flatten();
        drop(driver);
        stop(contender, server)?;
        Ok(Turn { sample, cpu: meter.spent(), idle })
    }

    /// A turn in which system calls are counted; none if that is impossible, and a note says why.
    pub(super) fn syscalls(
        &self,
        ground: &Ground,
        job: &Job,
        contender: &Contender,
        notes: &mut Vec<String>,
    ) -> Option<f64> {
        self.counted(ground, job, contender).unwrap_or_else(|error| {
            let note = format!("System calls could not be counted: {error}.");
            if !notes.contains(&note) {
                notes.push(note);
            }
            None
        })
    }

    fn counted(
        &self,
        ground: &Ground,
        job: &Job,
        contender: &Contender,
    ) -> Result<Option<f64>, BenchError> {
        if !contender.is_server() {
            return Ok(None);
        }
        let (server, mut driver) = self.set_up(ground, job, contender)?;
        let seed = self.settings.repetitions as u64;
        driver.prepare(seed)?;
        let Some(pid) = pid(contender, server.as_ref()) else { return Ok(None) };
        let attached = SyscallCounter::attach(pid, ground.scratch().dir());
        let mut counter = attached.map_err(BenchError::at("start perf"))?;
        let sample = driver.glance(GLANCE, seed, &mut counter)?;
        let count = counter.count();
        drop(driver);
        stop(contender, server)?;
        let count = count.map_err(BenchError::at("count with perf"))?;
        Ok(Some(count as f64 / sample.ios.max(1) as f64))
    }

    /// The turn of a contender that is not a server.
    fn without_server(
        &self,
        ground: &Ground,
        job: &Job,
        contender: &Contender,
        seed: u64,
    ) -> Result<Option<Turn>, BenchError> {
        let cpu = self.settings.server_cpu;
        let Scale { disk, seconds } = self.settings.scale;
        let (sample, spent) = match contender.kind {
            Kind::Fio => {
                let (sample, cpu) = limit::fio(job, &ground.image("limit")?, seconds, cpu, seed)?;
                (sample, Some(cpu))
            }
            Kind::Syscalls => {
                let file = match job.layout {
                    Layout::Overlay => limit::fresh(&ground.fresh_overlay_dir()?, 0, disk)?,
                    _ => ground.image("limit")?,
                };
                (limit::syscalls(job, &file, disk, seconds, cpu, seed)?, None)
            }
            Kind::Copies(files) => {
                let dir = ground.fresh_overlay_dir()?;
                let paths: Result<Vec<PathBuf>, BenchError> =
                    (0..files).map(|n| limit::fresh(&dir, n, disk)).collect();
                let origin = ground.image("limit")?;
                (limit::copies(job, &origin, &paths?, disk, cpu, seed)?, None)
            }
            _ => return Ok(None),
        };
        Ok(Some(Turn { sample, cpu: spent, idle: None }))
    }

    /// A new server and a session with it.
    fn set_up(
        &self,
        ground: &Ground,
        job: &Job,
        contender: &Contender,
    ) -> Result<(Option<Server>, Driver), BenchError> {
        let cpu = match job.ends {
            Ends::OneCore => self.settings.client_cpu,
            _ => self.settings.server_cpu,
        };
        let server = match contender.command(ground, job)? {
            Some(command) => {
                let server = command.on_cpu(cpu).start()?;
                contender.prepare(&server, ground)?;
                Some(server)
            }
            None => None,
        };
        let socket = match (&contender.kind, &server) {
            (Kind::External { socket, .. }, _) => socket.clone(),
            (_, Some(server)) => server.socket().to_owned(),
            (_, None) => PathBuf::new(),
        };
        let driver = session(socket, job, self.settings.scale.disk)?;
        Ok((server, driver))
    }
}

/// A session for `job` with the server at `socket`, whose disk has `disk` bytes or more.
pub(super) fn session(socket: PathBuf, job: &Job, disk: u64) -> Result<Driver, BenchError> {
    let block = job.block.max(if job.half_written { CLUSTER } else { 0 }) as usize;
    let pool = (job.depth + 8) * block.next_multiple_of(4096);
    let mut connect = Connect::to(socket).pool(pool);
    connect.waiting = job.ends.client();
    Driver::new(Client::connect(&connect)?, *job, disk)
}

fn pid(contender: &Contender, server: Option<&Server>) -> Option<u32> {
    match contender.kind {
        Kind::External { pid, .. } => pid,
        _ => server.map(Server::pid),
    }
}

/// The processor time of `pid` in a second, a second after the last request.
fn idle_time(pid: Option<u32>) -> Option<Duration> {
    let mut meter = CpuMeter::new(pid);
    std::thread::sleep(IDLE);
    meter.start();
    std::thread::sleep(IDLE);
    meter.stop();
    meter.spent()
}

/// Ends a server: snapblk in an orderly way, so that its owed chunks are not left for the next
/// one's time. A peer is killed, because its files are not reused, and 7.2 with an I/O thread may
/// hang.
fn stop(contender: &Contender, server: Option<Server>) -> Result<(), BenchError> {
    match (&contender.kind, server) {
        (Kind::Qemu(_), Some(server)) => Ok(server.kill()?),
        (_, Some(server)) => Ok(server.terminate().map(drop)?),
        (_, None) => Ok(()),
    }
}
