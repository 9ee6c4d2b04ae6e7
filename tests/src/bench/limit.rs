//! What the file itself can do: the same requests without a server and without a guest.
//!
//! Owns running `fio` and the loop of system calls. Only jobs that go on for a time are done so.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::job::{Job, Walk};
use super::peer::said_by;
use super::{BenchError, Sample};
use crate::rng::Rng;
use crate::server::pin_thread;

/// How long `fio` runs before it measures, in milliseconds.
const RAMP: u64 = 200;
/// What fails where `fio` says something else than expected.
const MISREAD: &str = "understand what fio says";

/// `job` by `fio` with io_uring and O_DIRECT on `file`, on processor `cpu`, for `seconds`; and its
/// processor time.
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

/// How long `job` takes `fio` for `bytes`, with a sync at the end.
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

/// Has `fio` do `job` as `more` says; what it says of it.
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

/// `job` by a loop of `pread` or `pwrite` on `file`, on processor `cpu`, for `seconds`.
pub(super) fn syscalls(
    job: &Job,
    file: &Path,
    disk: u64,
    seconds: f64,
    cpu: usize,
    seed: u64,
) -> Result<Sample, BenchError> {
    let step = || BenchError::at(format!("read and write {}", file.display()));
    let open = OpenOptions::new().read(true).write(true).open(file).map_err(step())?;
    let job = *job;
    // A thread of its own, since the client's keeps to the client's processor.
    let run = std::thread::spawn(move || {
        pin_thread(cpu)?;
        repeat(&job, &open, disk, Duration::from_secs_f64(seconds), seed)
    });
    let ended = run.join().unwrap_or_else(|_| Err(io::Error::other("the loop panicked")));
    ended.map_err(step())
}

fn repeat(job: &Job, file: &File, disk: u64, time: Duration, seed: u64) -> io::Result<Sample> {
    /// Requests between two looks at the clock.
    const STRETCH: usize = 64;
    // As many buffers as a queue of this depth would go through.
    let mut buffers = vec![vec![0_u8; job.block as usize]; job.depth];
    let mut rng = Rng::new(seed);
    for word in buffers.iter_mut().flat_map(|buffer| buffer.chunks_exact_mut(8)) {
        word.copy_from_slice(&rng.next_u64().to_le_bytes());
    }
    let mut offsets = job.offsets(disk, seed);
    let (start, mut ios) = (Instant::now(), 0);
    loop {
        for _ in 0..STRETCH {
            let Some(offset) = offsets.next() else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            let buffer = &mut buffers[ios % job.depth];
            match job.write {
                true => file.write_all_at(buffer, offset)?,
                false => file.read_exact_at(buffer, offset)?,
            }
            ios += 1;
        }
        let elapsed = start.elapsed();
        if elapsed >= time {
            return Ok(Sample { ios: ios as u64, elapsed, p50: None, gap: Duration::ZERO });
        }
    }
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
        let sample = repeat(&job, &file, 1 << 20, time, 7).unwrap();
        assert!(sample.ios >= 64 && sample.elapsed >= time);
    }
}
