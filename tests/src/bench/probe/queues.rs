//! The gain of a second queue if the server has both processors.
//!
//! Owns the procedure: the rings are filled without a notification, both are announced, and the
//! client sleeps until they are almost empty. Only that time is measured, so the client uses almost
//! nothing of the processors, both of which two workers need.

use std::io;
use std::time::{Duration, Instant};

use super::super::drive::{BenchError, filled_buffers};
use super::super::job::{Job, Offsets};
use super::super::run::Found;
use super::super::{Contender, Ground, Row, Run, Unit};
use super::Probe;
use crate::client::{Buffer, Client, Connect, Queue};
use crate::server::ServerCommand;

/// Descriptors in a ring; a request takes three.
const RING: u16 = 1024;
/// Requests that are announced at once on each queue.
const FILL: usize = RING as usize / 3;
/// How long the client sleeps between two checks.
const NAP: Duration = Duration::from_micros(20);
/// How long a filled ring may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The rates of random reads with two queues and with one.
pub(super) fn measure(run: &Run<'_>, ground: &Ground, probe: &Probe) -> Result<Found, BenchError> {
    let (mut two, mut one) = (Vec::new(), Vec::new());
    for repetition in 0..run.settings.repetitions {
        two.push(rate(run, ground, 2, repetition as u64)?);
        one.push(rate(run, ground, 1, repetition as u64)?);
    }
    let own = Contender::own();
    let versions = vec![
        own.set_up_as("snapblk-2-queues", "two queues, a worker each, on both processors")?,
        own.set_up_as("snapblk-1-queue", "one queue, one worker")?,
    ];
    let rows = [("snapblk-2-queues", two), ("snapblk-1-queue", one)];
    let row = |(name, samples)| Row::new(probe.of(ground), name, Unit::Iops, samples);
    Ok(Found::of(rows.into_iter().filter_map(row), versions))
}

fn rate(run: &Run<'_>, ground: &Ground, queues: usize, seed: u64) -> Result<f64, BenchError> {
    let image = ground.image("snapblk")?;
    let command = ServerCommand::snapblk(ground.scratch())?.arg("--blk-file").arg(image);
    let cpus = vec![run.settings.server_cpu, run.settings.client_cpu];
    let command = command.arg("--num-queues").arg(queues.to_string()).on_cpus(cpus);
    let server = command.start()?;
    let job = Job::RANDOM_READS;
    let mut connect = Connect::to(server.socket()).queues(queues);
    connect.queue_size = RING;
    connect.pool = queues * FILL * job.block as usize;
    let (queues, mut pool) = Client::connect(&connect)?.into_parts();
    let mut rings = Vec::new();
    for (n, queue) in queues.into_iter().enumerate() {
        let idle = filled_buffers(&mut pool, FILL, job.block)?;
        let offsets = job.offsets(ground.disk(), seed * 16 + n as u64);
        rings.push(Ring { queue, idle, offsets });
    }
    let (mut ios, mut time, mut usual) = (0, Duration::ZERO, Duration::ZERO);
    // The workers move to their processors in the first tenth, which does not count.
    let wanted = Duration::from_secs_f64(run.settings.scale.seconds);
    let warm = Instant::now() + wanted / 10;
    while time < wanted {
        for ring in &mut rings {
            ring.fill()?;
        }
        let start = Instant::now();
        let done = work_off(&mut rings, usual * 3 / 4)?;
        usual = start.elapsed();
        if start > warm {
            ios += done;
            time += usual;
        }
    }
    drop(rings);
    server.terminate()?;
    Ok(ios as f64 / time.as_secs_f64())
}

/// A queue, and its requests.
struct Ring {
    queue: Queue,
    idle: Vec<Buffer>,
    offsets: Offsets,
}

impl Ring {
    /// Puts every request on the ring, without a notification.
    fn fill(&mut self) -> Result<(), BenchError> {
        while let Some(buffer) = self.idle.pop() {
            let offset = self.offsets.next().unwrap_or(0);
            self.queue.read(offset, buffer, 1)?;
        }
        Ok(())
    }

    /// Takes all completions.
    fn reap(&mut self) -> Result<(), BenchError> {
        while let Some(done) = self.queue.reap() {
            done.result.map_err(|error| BenchError::Request { doing: "read", error })?;
            self.idle.extend(done.buffer);
        }
        Ok(())
    }
}

/// Announces the rings and sleeps until they are empty, for `quiet` without a check; returns the
/// number of requests.
fn work_off(rings: &mut [Ring], quiet: Duration) -> Result<usize, BenchError> {
    let count = rings.iter().map(|ring| ring.queue.in_flight()).sum();
    for ring in rings.iter_mut() {
        ring.queue.kick()?;
    }
    let deadline = Instant::now() + PATIENCE;
    std::thread::sleep(quiet);
    while rings.iter().any(|ring| ring.queue.in_flight() > 0) {
        if Instant::now() > deadline {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        // The server was told not to interrupt, so the client can only sleep.
        std::thread::sleep(NAP);
        for ring in rings.iter_mut() {
            ring.reap()?;
        }
    }
    Ok(count)
}
