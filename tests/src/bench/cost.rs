//! The costs of a repetition for the server: processor time and system calls.
//!
//! Owns the reading of the kernel's counters from outside the server. Neither slows the server in a
//! timed repetition: the processor time is the scheduler's own (`schedstat` of each thread,
//! nanoseconds), and system calls are counted in a separate repetition.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};

use crate::server::find_in_path;

/// The tracepoint of all system calls.
const ALL: &str = "raw_syscalls:sys_enter";

/// A measurement that runs during a repetition. It reports errors only when its result is read: one
/// missing figure is no reason to lose the others.
pub trait Meter {
    /// The measurement begins.
    fn start(&mut self);
    /// The measurement ends.
    fn stop(&mut self);
}

/// The processor time of a process, thread by thread. It does not include the kernel's own threads
/// working for the process, except io_uring's workers.
#[derive(Debug)]
pub struct CpuMeter {
    tasks: Option<PathBuf>,
    start: Option<HashMap<String, u64>>,
    spent: Option<Duration>,
}

impl CpuMeter {
    /// A meter of `pid`; without a process it has no result.
    pub fn new(pid: Option<u32>) -> Self {
        let tasks = pid.map(|pid| PathBuf::from(format!("/proc/{pid}/task")));
        Self { tasks, start: None, spent: None }
    }

    /// The time between start and stop; none if the kernel did not report it.
    pub fn spent(&self) -> Option<Duration> {
        self.spent
    }

    fn read(&self) -> Option<HashMap<String, u64>> {
        read_tasks(self.tasks.as_deref()?).ok()
    }
}

impl Meter for CpuMeter {
    fn start(&mut self) {
        self.start = self.read();
    }

    fn stop(&mut self) {
        let (Some(start), Some(now)) = (&self.start, self.read()) else { return };
        let spent = now
            .iter()
            .map(|(task, &time)| time.saturating_sub(start.get(task).copied().unwrap_or(0)))
            .sum();
        self.spent = Some(Duration::from_nanos(spent));
    }
}

/// Nanoseconds of processor time, by thread.
fn read_tasks(tasks: &Path) -> io::Result<HashMap<String, u64>> {
    let mut times = HashMap::new();
    for task in fs::read_dir(tasks)? {
        let task = task?;
        // A thread that ended since the directory was read is gone, with its time.
        let Ok(line) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        let time = line.split_whitespace().next().and_then(|field| field.parse().ok());
        let time = time.ok_or(io::ErrorKind::InvalidData)?;
        times.insert(task.file_name().to_string_lossy().into_owned(), time);
    }
    if times.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(times) }
}

/// A kind of system call that is counted separately.
#[derive(Clone, Copy, Debug)]
pub struct SyscallKind {
    /// Its name, as in the tracepoint after `sys_enter_`.
    pub name: &'static str,
    /// Only calls with matching arguments: an expression over the tracepoint's fields.
    pub filter: Option<&'static str>,
}

/// Counts the system calls of a process with `perf stat` on the tracepoint
/// `raw_syscalls:sys_enter`, which slows each call a little but stops none, unlike ptrace.
#[derive(Debug)]
pub struct SyscallCounter {
    perf: Child,
    control: File,
    answers: File,
    output: PathBuf,
    state: io::Result<()>,
}

impl SyscallCounter {
    /// The method of counting, for the report.
    pub const METHOD: &'static str = "perf stat -e raw_syscalls:sys_enter";

    /// Attaches to all threads of `pid`; its files are in the directory `dir`.
    pub fn attach(pid: u32, dir: &Path) -> io::Result<Self> {
        Self::attach_to(&["-p", &pid.to_string()], dir, &[])
    }

    /// The same for its threads but one called `but`, and counts some kinds separately, too.
    pub fn attach_to_kinds(
        pid: u32,
        but: &str,
        dir: &Path,
        kinds: &[SyscallKind],
    ) -> io::Result<Self> {
        let mut threads = Vec::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = thread?;
            if fs::read_to_string(thread.path().join("comm"))?.trim_end() != but {
                threads.push(thread.file_name().to_string_lossy().into_owned());
            }
        }
        Self::attach_to(&["-t", &threads.join(",")], dir, kinds)
    }

    fn attach_to(whom: &[&str], dir: &Path, kinds: &[SyscallKind]) -> io::Result<Self> {
        let perf = find_in_path("perf").ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "perf (Debian's linux-perf) is not installed")
        })?;
        let [control, answers, output] =
            ["perf.control", "perf.answers", "perf.csv"].map(|name| dir.join(name));
        let fifo = |path: &Path| {
            let _ = fs::remove_file(path);
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            // Opened for reading and writing, so that neither side waits for the other.
            OpenOptions::new().read(true).write(true).open(path)
        };
        let files = (fifo(&control)?, fifo(&answers)?);
        let mut command = Command::new(perf);
        command.args(["stat", "-x,", "-D", "-1", "-e", ALL]);
        for kind in kinds {
            command.arg("-e").arg(format!("syscalls:sys_enter_{}", kind.name));
            command.args(kind.filter.iter().flat_map(|filter| ["--filter", filter]));
        }
        let perf = command
            .args(whom)
            .arg("-o")
            .arg(&output)
            .arg("--control")
            .arg(format!("fifo:{},{}", control.display(), answers.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { perf, control: files.0, answers: files.1, output, state: Ok(()) })
    }

    /// The system calls between start and stop.
    pub fn count(self) -> io::Result<u64> {
        self.counts().map(|counts| counts[0])
    }

    /// The same, followed by the numbers of the kinds that are counted separately.
    pub fn counts(mut self) -> io::Result<Vec<u64>> {
        std::mem::replace(&mut self.state, Ok(()))?;
        let pid = i32::try_from(self.perf.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.ok_or(io::ErrorKind::InvalidInput)?, Signal::INT)?;
        self.perf.wait()?;
        let output = fs::read_to_string(&self.output)?;
        parse_counts(&output).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("perf counted nothing: {output}"))
        })
    }

    /// Sends perf a command, and waits until it has carried it out.
    fn command(&mut self, command: &str) -> io::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(5);
        // The replies do not show that perf has ended: both ends of their pipe are open here.
        const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        self.control.write_all(command.as_bytes())?;
        let begin = Instant::now();
        loop {
            let mut fds = [PollFd::from_borrowed_fd(self.answers.as_fd(), PollFlags::IN)];
            if poll(&mut fds, Some(&LOOK))? != 0 {
                let mut answer = [0; 16];
                return io::Read::read(&mut self.answers, &mut answer).map(drop);
            }
            if let Some(status) = self.perf.try_wait()? {
                return Err(io::Error::other(format!(
                    "perf ended with {status}: it may not count"
                )));
            }
            if begin.elapsed() > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "perf does not answer"));
            }
        }
    }
}

impl Meter for SyscallCounter {
    fn start(&mut self) {
        self.state = self.command("enable\n");
    }

    fn stop(&mut self) {
        if self.state.is_ok() {
            self.state = self.command("disable\n");
        }
    }
}

impl Drop for SyscallCounter {
    fn drop(&mut self) {
        // Fails if it ended normally.
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

/// The counts in the output of `perf stat -x,`, one per line; none if not all calls were counted.
fn parse_counts(output: &str) -> Option<Vec<u64>> {
    let lines = output.lines().filter(|line| line.contains(":sys_enter"));
    let mut counts = lines.map(|line| line.split(',').next()?.parse().ok());
    let all = counts.next()??;
    // A kind that never occurred while a thread ran is "not counted".
    Some(std::iter::once(all).chain(counts.map(Option::unwrap_or_default)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perf_output_is_read() {
        let output = "# started on Sat Nov 21\n\n1234,,raw_syscalls:sys_enter,1010417,100.00,,\n";
        assert_eq!(parse_counts(output), Some(vec![1234]));
        let kinds = format!("{output}7,,syscalls:sys_enter_read,1,100.00,,\n");
        assert_eq!(parse_counts(&kinds), Some(vec![1234, 7]));
        assert_eq!(parse_counts("<not counted>,,raw_syscalls:sys_enter,0,100.00,,"), None);
    }

    #[test]
    fn the_processor_time_of_this_process_grows() {
        let mut meter = CpuMeter::new(Some(std::process::id()));
        let spent = |meter: &CpuMeter| meter.spent().expect("the kernel has schedstat");
        meter.start();
        meter.stop();
        let mut sum = 0_u64;
        while spent(&meter) < Duration::from_millis(1) {
            sum = std::hint::black_box(sum.wrapping_add(1));
            meter.stop();
        }
    }

    #[test]
    fn a_meter_without_a_process_reads_nothing() {
        let mut meter = CpuMeter::new(None);
        meter.start();
        meter.stop();
        assert_eq!(meter.spent(), None);
    }
}
