//! The load of the power cut tests: runs in a guest beside snapblk, writes stamped sectors to its
//! disk, flushes, takes snapshots and rolls back, and leaves a mark of each step on its own disk.
//!
//!   powercut-load overlay|origin SOCKET MARKS SEED ROUNDS [SNAPBLK MONITOR STORE STORE]
//!
//! Never reads: the disks' log shows the expected content.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, ExitCode};
use std::time::Duration;

use snapblk_tests::client::{Buffer, Client, Connect, Queue};
use snapblk_tests::powercut::{BATCH, Batched, MARK, Mark};
use snapblk_tests::rng::Rng;
use snapblk_tests::verify::stamp::{Generation, SECTOR, stamp_run};

/// Linux's O_DIRECT on x86-64 and most others: a mark must not wait in a cache.
const O_DIRECT: i32 = 0o40_000;
/// The most sectors in a write.
const MOST: u64 = 16;
/// The number of flushes; writes have smaller ones.
const FLUSH: u64 = u64::MAX;

type Failed = Box<dyn std::error::Error>;

/// Memory suitable for direct I/O.
#[repr(align(4096))]
struct Page([u8; MARK]);

struct Load {
    queue: Queue,
    idle: Vec<Buffer>,
    marks: File,
    rng: Rng,
    sectors: u64,
    generation: u32,
    /// The generation that a flush in flight covers.
    flushing: Option<u32>,
}

impl Load {
    fn start(socket: &str, marks: &str, seed: u64) -> Result<Load, Failed> {
        let client = Client::connect(&Connect {
            timeout: Duration::from_secs(60),
            ..Connect::to(socket).pool(1 << 20)
        })?;
        let sectors = client.info().capacity / SECTOR as u64;
        let (mut queues, mut pool) = client.into_parts();
        let idle =
            (0..BATCH).map(|_| pool.buffer(MOST as usize * SECTOR)).collect::<Result<_, _>>()?;
        let marks = OpenOptions::new().write(true).custom_flags(O_DIRECT).open(marks)?;
        let (queue, rng) = (queues.swap_remove(0), Rng::new(seed));
        Ok(Load { queue, idle, marks, rng, sectors, generation: 1, flushing: None })
    }

    fn mark(&self, mark: &Mark) -> Result<(), Failed> {
        let page = Box::new(Page(mark.encode()));
        Ok(self.marks.write_all_at(&page.0, 0)?)
    }

    /// Writes that do not overlap; some are adjacent.
    fn choose(&mut self) -> Vec<Batched> {
        let mut writes: Vec<Batched> = Vec::new();
        for _ in 0..1 + self.rng.below(BATCH as u64) {
            let scale = 1 << self.rng.below(MOST.ilog2().into());
            let sectors = 1 + self.rng.below(scale);
            // Half of them go to a small part, which is thus overwritten often.
            let room = if self.rng.chance(50) { self.sectors } else { self.sectors / 8 };
            let first = self.rng.below(room - sectors);
            let overlaps = |w: &Batched| {
                first < u64::from(w.first + w.sectors) && u64::from(w.first) < first + sectors
            };
            if writes.iter().any(overlaps) {
                continue;
            }
            self.generation += 1;
            let (first, sectors) = (first as u32, sectors as u32);
            writes.push(Batched { generation: self.generation, first, sectors });
        }
        writes
    }

    /// One batch, and possibly a flush during or after it.
    fn round(&mut self) -> Result<(), Failed> {
        let before = self.generation;
        let writes = self.choose();
        self.mark(&Mark::Batch(writes.clone()))?;
        let beside = self.rng.chance(30);
        for (n, write) in writes.iter().enumerate() {
            if beside && n == writes.len() / 2 {
                self.send_flush(before)?;
            }
            let mut buffer = self.idle.pop().ok_or("no buffer is left")?;
            let mut bytes = vec![0; write.sectors as usize * SECTOR];
            stamp_run(u64::from(write.first), Generation(write.generation), &mut bytes);
            buffer.set_part(0, bytes.len());
            buffer.store(&bytes);
            let at = u64::from(write.first) * SECTOR as u64;
            self.queue.write(at, buffer, u64::from(write.generation)).map_err(|e| e.source)?;
        }
        self.wait()?;
        if self.rng.chance(40) { self.flush() } else { Ok(()) }
    }

    fn send_flush(&mut self, upto: u32) -> Result<(), Failed> {
        if self.flushing.is_none() {
            self.flushing = Some(upto);
            self.queue.flush(FLUSH).map_err(|e| e.source)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failed> {
        self.send_flush(self.generation)?;
        self.wait()
    }

    /// Waits until nothing is in flight.
    fn wait(&mut self) -> Result<(), Failed> {
        self.queue.kick()?;
        while self.queue.in_flight() > 0 {
            let Some(completion) = self.queue.reap() else {
                if !self.queue.wait(Duration::from_secs(60))? {
                    return Err("the disk does not answer".into());
                }
                continue;
            };
            completion.result?;
            self.idle.extend(completion.buffer);
            if completion.user == FLUSH
                && let Some(upto) = self.flushing.take()
            {
                self.mark(&Mark::Flushed(upto))?;
            }
        }
        Ok(())
    }

    fn rounds(&mut self, rounds: u64) -> Result<(), Failed> {
        (0..rounds).try_for_each(|_| self.round())
    }
}

/// `snapblk ctl`.
struct Control<'a> {
    snapblk: &'a str,
    monitor: &'a str,
}

impl Control<'_> {
    fn run(&self, arguments: &str) -> Result<String, Failed> {
        let mut command = Command::new(self.snapblk);
        command.args(["ctl", self.monitor]).args(arguments.split(' '));
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        Err(format!("{arguments}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }
}

/// Two snapshots of different chunk sizes, and a rollback to the first.
fn with_snapshots(load: &mut Load, rounds: u64, arguments: &[String]) -> Result<(), Failed> {
    let [snapblk, monitor, first, second] = arguments else {
        return Err("which snapblk, monitor and stores?".into());
    };
    let control = Control { snapblk, monitor };
    let take = |load: &mut Load, n, how: &str| {
        load.flush()?;
        control.run(&format!("snapshot disk0 {how} --existing"))?;
        load.mark(&Mark::Taken(n))
    };
    load.rounds(rounds / 4)?;
    take(load, 0, &format!("a --cow {first} --chunk-size 512 --persistent P"))?;
    load.rounds(rounds)?;
    take(load, 1, &format!("b --cow {second} --chunk-size 4096 --persistent PO"))?;
    load.rounds(rounds)?;
    load.flush()?;
    load.mark(&Mark::MergeAsked(0))?;
    control.run("merge disk0 a --job-id merge")?;
    load.mark(&Mark::MergeBegun(0))?;
    load.rounds(rounds)?;
    while !control.run("jobs --json")?.trim().trim_matches(['[', ']']).is_empty() {
        load.round()?;
    }
    load.mark(&Mark::MergeEnded(0))?;
    load.rounds(rounds / 2)
}

fn run(arguments: &[String]) -> Result<(), Failed> {
    let [mode, socket, marks, seed, rounds, rest @ ..] = arguments else {
        return Err("usage: see the top of this file".into());
    };
    let mut load = Load::start(socket, marks, seed.parse()?)?;
    let rounds = rounds.parse()?;
    match mode.as_str() {
        "overlay" => load.rounds(3 * rounds),
        "origin" => with_snapshots(&mut load, rounds, rest),
        other => Err(format!("there is no mode '{other}'").into()),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("powercut-load FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}
