//! What a repetition cost the server: processor time and system calls.
//!
//! Owns the reading of the kernel's counters from outside the server. Neither slows the server in
//! a timed repetition: the processor time is the scheduler's own (`schedstat` of each thread,
//! nanoseconds), and system calls are counted in a repetition of their own.

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

/// Something that runs while a repetition is measured. It keeps its errors to itself until it is
/// asked for its reading: a figure less is no reason to lose the others.
pub trait Meter {
    /// The measurement begins.
    fn start(&mut self);
    /// The measurement ends.
    fn stop(&mut self);
}

/// The processor time of a process, thread by thread. Work that the kernel does in threads of its
/// own for the process is not in it; io_uring's workers are.
#[derive(Debug)]
pub struct CpuMeter {
    tasks: Option<PathBuf>,
    start: Option<HashMap<String, u64>>,
    spent: Option<Duration>,
}

impl CpuMeter {
    /// A meter of `pid`; one without a process reads nothing.
    pub fn new(pid: Option<u32>) -> Self {
        let tasks = pid.map(|pid| PathBuf::from(format!("/proc/{pid}/task")));
        Self { tasks, start: None, spent: None }
    }

    /// The time between start and stop; none where the kernel did not tell.
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

/// Nanoseconds on a processor, by thread.
fn read_tasks(tasks: &Path) -> io::Result<HashMap<String, u64>> {
    let mut times = HashMap::new();
    for task in fs::read_dir(tasks)? {
        let task = task?;
        // A thread that ended since the directory was read is gone, and so is its time.
        let Ok(line) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        let time = line.split_whitespace().next().and_then(|field| field.parse().ok());
        let time = time.ok_or(io::ErrorKind::InvalidData)?;
        times.insert(task.file_name().to_string_lossy().into_owned(), time);
    }
    if times.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(times) }
}

/// A kind of system call that is counted apart.
#[derive(Clone, Copy, Debug)]
pub struct SyscallKind {
    /// Its name, as the tracepoint's is behind `sys_enter_`.
    pub name: &'static str,
    /// Only those with such arguments: an expression over the tracepoint's fields.
    pub filter: Option<&'static str>,
}

/// Counts the system calls of a process with `perf stat` on the tracepoint
/// `raw_syscalls:sys_enter`, which slows each of them a little and stops none, as ptrace would.
#[derive(Debug)]
pub struct SyscallCounter {
    perf: Child,
    control: File,
    answers: File,
    output: PathBuf,
    state: io::Result<()>,
}

impl SyscallCounter {
    /// How the count is made, for the report.
    pub const METHOD: &'static str = "perf stat -e raw_syscalls:sys_enter";

    /// Attaches to all threads of `pid`; its files go into the directory `dir`.
    pub fn attach(pid: u32, dir: &Path) -> io::Result<Self> {
        Self::attach_to_kinds(pid, dir, &[])
    }

    /// The same, and counts some kinds apart, too.
    pub fn attach_to_kinds(pid: u32, dir: &Path, kinds: &[SyscallKind]) -> io::Result<Self> {
        let perf = find_in_path("perf").ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "perf (Debian's linux-perf) is not installed")
        })?;
        let [control, answers, output] =
            ["perf.control", "perf.answers", "perf.csv"].map(|name| dir.join(name));
        let fifo = |path: &Path| {
            let _ = fs::remove_file(path);
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            // Open for both ends, so that neither side waits for the other to come.
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
            .arg("-p")
            .arg(pid.to_string())
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

    /// The same, and behind that number those of the kinds that are counted apart.
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

    /// Says something to perf, and waits until it has done so.
    fn command(&mut self, command: &str) -> io::Result<()> {
        const PATIENCE: Duration = Duration::from_secs(5);
        // Its end is no event among its answers: both ends of those are open here.
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
        // Fails where it ended as it should.
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

/// The counts in what `perf stat -x,` writes, a line each; none where all calls were not counted.
fn parse_counts(output: &str) -> Option<Vec<u64>> {
    let lines = output.lines().filter(|line| line.contains(":sys_enter"));
    let mut counts = lines.map(|line| line.split(',').next()?.parse().ok());
    let all = counts.next()??;
    // What never happened while a thread ran is "not counted".
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
