//! The limits of the file itself: the same requests without a server and without a guest.
//!
//! Owns running `fio` and the loops of system calls.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::job::{Job, Walk};
use super::peer::said_by;
use super::{BenchError, Sample};
use crate::client::Waiting;
use crate::rng::Rng;
use crate::server::pin_thread;

/// How long `fio` runs before it measures, in milliseconds.
const RAMP: u64 = 200;
/// The failed step if the output of `fio` is not as expected.
const MISREAD: &str = "understand what fio says";

/// Runs `job` by `fio` with io_uring and O_DIRECT on `file`, on processor `cpu`, for `seconds`;
/// also returns its processor time.
pub(super) fn fio(
    job: &Job,
    file: &Path,
    seconds: f64,
    cpu: usize,
    seed: u64,
) -> Result<(Sample, Duration), BenchError> {
    let said = run_fio(
        job,
        file,
        cpu,
        seed,
        &[
            "--time_based".to_owned(),
            format!("--runtime={}ms", (seconds * 1e3) as u64),
            format!("--ramp_time={RAMP}ms"),
        ],
    )?;
    figures(&said, job).ok_or_else(not_understood)
}

/// The time that `fio` takes for `bytes` of `job`, with a sync at the end.
pub(super) fn fio_durable(
    job: &Job,
    file: &Path,
    bytes: u64,
    cpu: usize,
    seed: u64,
) -> Result<Duration, BenchError> {
    let amount = [format!("--io_size={bytes}"), "--end_fsync=1".to_owned()];
    let said = run_fio(job, file, cpu, seed, &amount)?;
    said["job_runtime"].as_u64().map(Duration::from_millis).ok_or_else(not_understood)
}

/// Runs `job` by `fio` with the options `more`; returns its output.
fn run_fio(
    job: &Job,
    file: &Path,
    cpu: usize,
    seed: u64,
    more: &[String],
) -> Result<Value, BenchError> {
    let direction = match (job.walk, job.write) {
        (Walk::Random, false) => "randread",
        (Walk::Random, true) => "randwrite",
        (_, false) => "read",
        (_, true) => "write",
    };
    // It looks for completions again and again, and never sleeps.
    let polls = job.ends.client() == Waiting::Poll;
    let said = said_by(
        Command::new("fio")
            .args(["--name=limit", "--ioengine=io_uring", "--direct=1"])
            .args(["--norandommap", "--output-format=json"])
            .arg(format!("--filename={}", file.display()))
            .arg(format!("--rw={direction}"))
            .arg(format!("--bs={}", job.block))
            .arg(format!("--iodepth={}", job.depth))
            .arg(format!("--randseed={}", seed + 1))
            .arg(format!("--cpus_allowed={cpu}"))
            .args(polls.then_some("--iodepth_batch_complete_min=0"))
            .args(more),
    )?;
    let mut said: Value = serde_json::from_str(&said)
        .map_err(|error| BenchError::at(MISREAD)(io::Error::other(error)))?;
    Ok(said["jobs"][0].take())
}

fn not_understood() -> BenchError {
    BenchError::at(MISREAD)(io::ErrorKind::InvalidData.into())
}

fn figures(found: &Value, job: &Job) -> Option<(Sample, Duration)> {
    let side = &found[if job.write { "write" } else { "read" }];
    let elapsed = Duration::from_millis(side["runtime"].as_u64()?);
    let p50 = side["clat_ns"]["percentile"]["50.000000"].as_u64().map(Duration::from_nanos);
    let sample = Sample {
        ios: side["total_ios"].as_u64()?,
        elapsed,
        p50: p50.filter(|_| job.depth == 1),
        gap: Duration::ZERO,
    };
    let percent = found["usr_cpu"].as_f64()? + found["sys_cpu"].as_f64()?;
    Some((sample, elapsed.mul_f64(percent / 100.0)))
}

/// The `n`th empty file in `dir`, as long as the disk.
pub(super) fn fresh(dir: &Path, n: u32, disk: u64) -> Result<PathBuf, BenchError> {
    let path = dir.join(format!("fresh{n}.img"));
    let made = File::create_new(&path).and_then(|file| file.set_len(disk));
    made.map_err(BenchError::at(format!("make {}", path.display())))?;
    Ok(path)
}

/// Runs `job` by a loop of `pread` or `pwrite` on `file`, on processor `cpu`; for `seconds`, if its
/// work is a time.
pub(super) fn syscalls(
    job: &Job,
    file: &Path,
    disk: u64,
    seconds: f64,
    cpu: usize,
    seed: u64,
) -> Result<Sample, BenchError> {
    let (job, open) = (*job, opened(file)?);
    let time = (!job.walk.is_fixed()).then(|| Duration::from_secs_f64(seconds));
    on_processor(cpu, file, move || {
        let carry_out = |buffer: &mut [u8], offset, _| match job.write {
            true => open.write_all_at(buffer, offset),
            false => open.read_exact_at(buffer, offset),
        };
        repeat(&job, disk, time, seed, carry_out)
    })
}

/// Runs the writes of `job` to `origin` on processor `cpu`; before each, the old data is read once
/// and appended to each of `copies`.
pub(super) fn copies(
    job: &Job,
    origin: &Path,
    copies: &[PathBuf],
    disk: u64,
    cpu: usize,
    seed: u64,
) -> Result<Sample, BenchError> {
    let (job, open) = (*job, opened(origin)?);
    let copies = copies.iter().map(|path| opened(path)).collect::<Result<Vec<File>, _>>()?;
    on_processor(cpu, origin, move || {
        let mut old = vec![0; job.block as usize];
        let carry_out = |buffer: &mut [u8], offset, n: u64| {
            open.read_exact_at(&mut old, offset)?;
            copies.iter().try_for_each(|copy| copy.write_all_at(&old, n * job.block))?;
            open.write_all_at(buffer, offset)
        };
        repeat(&job, disk, None, seed, carry_out)
    })
}

fn opened(file: &Path) -> Result<File, BenchError> {
    let open = OpenOptions::new().read(true).write(true).open(file);
    open.map_err(BenchError::at(format!("open {}", file.display())))
}

/// Does `work` on processor `cpu`, in a separate thread, because the client's thread stays on the
/// client's processor.
fn on_processor(
    cpu: usize,
    file: &Path,
    work: impl FnOnce() -> io::Result<Sample> + Send + 'static,
) -> Result<Sample, BenchError> {
    let run = std::thread::spawn(move || pin_thread(cpu).and_then(|()| work()));
    let ended = run.join().unwrap_or_else(|_| Err(io::Error::other("the loop panicked")));
    ended.map_err(BenchError::at(format!("read and write {}", file.display())))
}

/// Carries the requests of `job` out one after the other: each with its bytes, its offset and its
/// number. Ends after `time`, or with the last offset.
fn repeat(
    job: &Job,
    disk: u64,
    time: Option<Duration>,
    seed: u64,
    mut carry_out: impl FnMut(&mut [u8], u64, u64) -> io::Result<()>,
) -> io::Result<Sample> {
    /// Requests between two reads of the clock.
    const STRETCH: u64 = 64;
    // As many buffers as a queue of this depth would use.
    let mut buffers = vec![vec![0_u8; job.block as usize]; job.depth];
    let mut rng = Rng::new(seed);
    for word in buffers.iter_mut().flat_map(|buffer| buffer.chunks_exact_mut(8)) {
        word.copy_from_slice(&rng.next_u64().to_le_bytes());
    }
    let mut offsets = job.offsets(disk, seed);
    let (start, mut ios) = (Instant::now(), 0);
    let is_over = |elapsed| time.is_some_and(|time| elapsed >= time);
    while ios % STRETCH != 0 || !is_over(start.elapsed()) {
        let Some(offset) = offsets.next() else { break };
        carry_out(&mut buffers[ios as usize % job.depth], offset, ios)?;
        ios += 1;
    }
    Ok(Sample { ios, elapsed: start.elapsed(), p50: None, gap: Duration::ZERO })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_fio_says_is_read() {
        let job = Job::matching(&["randread-qd1-poll".to_owned()])[0];
        let said = json!({
            "usr_cpu": 10.0, "sys_cpu": 15.0,
            "read": {"runtime": 2000, "total_ios": 500,
                     "clat_ns": {"percentile": {"50.000000": 90_000}}},
        });
        let (sample, cpu) = figures(&said, &job).unwrap();
        assert_eq!((sample.ios, sample.elapsed), (500, Duration::from_secs(2)));
        assert_eq!(sample.p50, Some(Duration::from_micros(90)));
        assert_eq!(cpu, Duration::from_millis(500));
        assert!(figures(&json!({"read": {}}), &job).is_none());
    }

    #[test]
    fn the_loop_of_system_calls_goes_on_for_its_time() {
        let job = Job::matching(&["randwrite-qd32".to_owned()])[0];
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let time = Duration::from_millis(20);
        let write = |buffer: &mut [u8], offset, _| file.write_all_at(buffer, offset);
        let sample = repeat(&job, 1 << 20, Some(time), 7, write).unwrap();
        assert!(sample.ios >= 64 && sample.elapsed >= time);
    }

    #[test]
    fn what_was_there_is_copied_before_it_is_overwritten() {
        const DISK: u64 = 1 << 20;
        let job = Job::matching(&["origin-first-qd32".to_owned()])[0];
        let dir = tempfile::tempdir().unwrap();
        let [origin, one, two] = [0, 1, 2].map(|n| fresh(dir.path(), n, DISK).unwrap());
        let old: Vec<u8> = (0..DISK).map(|at| (at / 4096) as u8).collect();
        std::fs::write(&origin, &old).unwrap();
        let sample = copies(&job, &origin, &[one.clone(), two.clone()], DISK, 0, 5).unwrap();
        let chunks: Vec<u64> = job.offsets(DISK, 5).collect();
        assert_eq!(sample.ios, chunks.len() as u64);
        let copied: Vec<u8> =
            chunks.iter().flat_map(|&at| old[at as usize..][..4096].to_vec()).collect();
        for copy in [one, two] {
            assert_eq!(std::fs::read(copy).unwrap()[..copied.len()], copied);
        }
        let new = std::fs::read(origin).unwrap();
        assert!(chunks.iter().all(|&at| new[at as usize..][..4096] != old[at as usize..][..4096]));
    }
}
