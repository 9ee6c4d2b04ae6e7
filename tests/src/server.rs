//! Running a server: a program with a vhost-user socket and a process id.
//!
//! Owns the process, the place of its files, and finding the program. Never knows what the server
//! does: [`ServerCommand::snapblk`] and [`ServerCommand::qemu_storage_daemon`] differ only in the
//! program that they run.
//!
//! A [`ServerCommand`] can be started any number of times, so that tests can restart a server with
//! the same arguments; dropping a [`Server`] kills and reaps it.

mod child;
mod scratch;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

pub(crate) use child::settle;
pub use child::{output, spawn};
pub use scratch::{Place, Scratch, disk_dir};

/// How long a server may take to listen, or to end after a request.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a server does not run, or did not end.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The program was not found.
    #[error("{program} was not found{looked}; {remedy}")]
    Missing {
        /// The program.
        program: &'static str,
        /// The places that were searched.
        looked: String,
        /// The remedy.
        remedy: &'static str,
    },
    /// The program could not be started, watched or signalled.
    #[error("cannot run {program}: {source}", program = .program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The server ended before it listened.
    #[error("{command} ended with {status} before it listened on its socket; it said:\n{stderr}")]
    Ended {
        /// The command line.
        command: String,
        /// Its exit status.
        status: ExitStatus,
        /// Its standard error.
        stderr: String,
    },
    /// The server takes too long.
    #[error("{command} did not {act} within {PATIENCE:?}; it said:\n{stderr}")]
    Slow {
        /// The command line.
        command: String,
        /// What was awaited.
        act: &'static str,
        /// Its standard error.
        stderr: String,
    },
}

/// The `snapblk` to test: `$SNAPBLK`, or the one built beside the running test.
pub fn find_snapblk() -> Result<PathBuf, ServerError> {
    if let Some(path) = named_in("SNAPBLK") {
        return Ok(path);
    }
    let built = scratch::build_dir().map(|dir| dir.join("snapblk"));
    match built {
        Some(path) if path.is_file() => Ok(path),
        other => Err(ServerError::Missing {
            program: "snapblk",
            looked: other.map(|path| format!(" at {}", path.display())).unwrap_or_default(),
            remedy: "build it with `cargo build -p snapblk` (with --release for the benchmark), or \
                     name it in the environment variable SNAPBLK",
        }),
    }
}

/// The `qemu-storage-daemon` to compare with: the first of `$QEMU_STORAGE_DAEMON`, or the one in
/// `PATH`.
pub fn find_qemu_storage_daemon() -> Result<PathBuf, ServerError> {
    if let Some(first) = named_qemu_storage_daemons().into_iter().next() {
        return Ok(first);
    }
    find_in_path("qemu-storage-daemon").ok_or(ServerError::Missing {
        program: "qemu-storage-daemon",
        looked: " in PATH".to_owned(),
        remedy: "install Debian's package qemu-utils or qemu-system-common, or name it in the \
                 environment variable QEMU_STORAGE_DAEMON",
    })
}

/// All programs in `$QEMU_STORAGE_DAEMON`, a colon-separated list like `PATH`.
pub fn named_qemu_storage_daemons() -> Vec<PathBuf> {
    let Some(list) = std::env::var_os("QEMU_STORAGE_DAEMON") else { return Vec::new() };
    std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty()).map(absolute).collect()
}

/// The program that the environment variable `variable` names.
fn named_in(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(|path| absolute(path.into()))
}

/// Servers run in their own directories, so a relative path is made absolute first.
pub(crate) fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

/// The program `name` in the directories of `PATH`.
pub fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// A server's program, arguments and paths.
#[derive(Clone, Debug)]
pub struct ServerCommand {
    program: PathBuf,
    args: Vec<OsString>,
    dir: PathBuf,
    socket: PathBuf,
    monitor: PathBuf,
    /// Sockets that must listen before the server counts as started.
    awaited: Vec<PathBuf>,
    /// The processors that it is bound to; if empty, those of the thread that starts it.
    cpus: Vec<usize>,
}

impl ServerCommand {
    /// `program` without arguments, in `scratch`'s directory and with its socket paths.
    pub fn new(program: PathBuf, scratch: &Scratch) -> Self {
        let socket = scratch.socket("vhost.sock");
        Self {
            program,
            args: Vec::new(),
            dir: scratch.dir().to_owned(),
            awaited: vec![socket.clone()],
            socket,
            monitor: scratch.socket("monitor.sock"),
            cpus: Vec::new(),
        }
    }

    /// `snapblk serve` with its socket and its monitor; the caller adds the disk.
    pub fn snapblk(scratch: &Scratch) -> Result<Self, ServerError> {
        let mut command = Self::new(find_snapblk()?, scratch);
        let (socket, monitor) = (command.socket.clone(), command.monitor.clone());
        command.awaited.push(monitor.clone());
        Ok(command.arg("serve").arg("--socket-path").arg(socket).arg("--monitor").arg(monitor))
    }

    /// `snapblk serve` with only its monitor; the caller adds disks and their sockets.
    pub fn snapblk_monitor(scratch: &Scratch) -> Result<Self, ServerError> {
        let mut command = Self::new(find_snapblk()?, scratch);
        command.awaited = vec![command.monitor.clone()];
        let monitor = command.monitor.clone();
        Ok(command.arg("serve").arg("--monitor").arg(monitor))
    }

    /// The same without waiting for the disk's socket, which a monitor command creates.
    pub fn awaiting_monitor_alone(mut self) -> Self {
        self.awaited = vec![self.monitor.clone()];
        self
    }

    /// The monitor's socket.
    pub fn monitor(&self) -> &Path {
        &self.monitor
    }

    /// `qemu-storage-daemon`; its exports must use [`ServerCommand::socket`].
    pub fn qemu_storage_daemon(scratch: &Scratch) -> Result<Self, ServerError> {
        Ok(Self::new(find_qemu_storage_daemon()?, scratch))
    }

    /// The same with one more argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// The same, run by another program, which gets this program and its arguments after its own.
    pub fn run_by(mut self, program: PathBuf, args: impl IntoIterator<Item = OsString>) -> Self {
        let own = std::mem::replace(&mut self.program, program);
        self.args.splice(..0, args.into_iter().chain([own.into()]));
        self
    }

    /// The same, bound to one processor.
    pub fn on_cpu(self, cpu: usize) -> Self {
        self.on_cpus(vec![cpu])
    }

    /// The same, bound to these processors.
    pub fn on_cpus(mut self, cpus: Vec<usize>) -> Self {
        self.cpus = cpus;
        self
    }

    /// The socket that the front end connects to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts the program and waits until it listens.
    pub fn start(&self) -> Result<Server, ServerError> {
        let mut server = self.begin()?;
        server.wait_until_it_listens()?;
        Ok(server)
    }

    /// Starts the program, and does not wait until it listens.
    pub fn begin(&self) -> Result<Server, ServerError> {
        let failed = |source| ServerError::Run { program: self.program.clone(), source };
        let stderr = self.dir.join("stderr.log");
        let log = File::create(&stderr).map_err(failed)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = spawn_on(&mut command, &self.cpus).map_err(failed)?;
        Ok(Server { child, command: self.clone(), stderr })
    }

    /// Starts the program and kills it after `life`, at whatever stage of its start.
    pub fn start_and_kill(&self, life: Duration) -> Result<(), ServerError> {
        let server = self.begin()?;
        std::thread::sleep(life);
        server.kill()
    }

    fn line(&self) -> String {
        let mut line = self.program.display().to_string();
        for arg in &self.args {
            line.push(' ');
            line.push_str(&arg.to_string_lossy());
        }
        line
    }
}

/// Spawns `command` on this thread's processors, or only on `cpus` if there are any: a child
/// inherits the processors of the thread that spawns it.
fn spawn_on(command: &mut Command, cpus: &[usize]) -> io::Result<Child> {
    if cpus.is_empty() {
        return spawn(command);
    }
    let before = sched_getaffinity(None)?;
    keep_to(cpus)?;
    let child = spawn(command);
    sched_setaffinity(None, &before)?;
    child
}

/// Binds the calling thread to processor `cpu`.
pub fn pin_thread(cpu: usize) -> io::Result<()> {
    keep_to(&[cpu])
}

/// Binds the calling thread to the processors `cpus`.
fn keep_to(cpus: &[usize]) -> io::Result<()> {
    let mut only = CpuSet::new();
    cpus.iter().for_each(|&cpu| only.set(cpu));
    Ok(sched_setaffinity(None, &only)?)
}

/// The kinds of a process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// All of its present memory.
    Now,
    /// The most that it has had.
    Most,
    /// Its present anonymous memory. Exact, unlike the others, which lag by some pages per
    /// processor.
    Own,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    command: ServerCommand,
    stderr: PathBuf,
}

impl Server {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process's memory in bytes.
    pub fn memory(&self, memory: Memory) -> io::Result<u64> {
        let (file, name) = match memory {
            Memory::Now => ("status", "VmRSS:"),
            Memory::Most => ("status", "VmHWM:"),
            Memory::Own => ("smaps_rollup", "Anonymous:"),
        };
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.pid()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.map(|kib| kib << 10).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The socket that the front end connects to.
    pub fn socket(&self) -> &Path {
        &self.command.socket
    }

    /// The monitor's socket.
    pub fn monitor(&self) -> &Path {
        &self.command.monitor
    }

    /// Its standard error so far.
    pub fn stderr(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_else(|error| format!("(unreadable: {error})"))
    }

    /// Sends SIGKILL, and waits for its end.
    pub fn kill(mut self) -> Result<(), ServerError> {
        let dead = self.child.kill().and_then(|()| self.child.wait());
        dead.map(drop).map_err(|source| self.failed(source))
    }

    /// Sends SIGTERM, and waits for its exit status.
    pub fn terminate(mut self) -> Result<ExitStatus, ServerError> {
        self.signal(Signal::TERM)?;
        self.wait("end after SIGTERM")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), ServerError> {
        let pid = self.raw_pid()?;
        kill_process(pid, signal).map_err(|error| self.failed(error.into()))
    }

    /// Sends SIGSTOP, and waits until all its threads have stopped: everything sent afterwards is
    /// there, complete, when it continues.
    pub fn halt(&self) -> Result<(), ServerError> {
        self.signal(Signal::STOP)?;
        let stopped = waitpid(Some(self.raw_pid()?), WaitOptions::UNTRACED);
        let stopped = stopped.map_err(|error| self.failed(error.into()))?;
        match stopped {
            Some((_, status)) if status.stopped() => Ok(()),
            _ => Err(self.failed(io::Error::other("it ended instead of standing still"))),
        }
    }

    /// Waits for its end; `act` names what is awaited.
    pub fn wait(&mut self, act: &'static str) -> Result<ExitStatus, ServerError> {
        let ended = self.raw_pid().and_then(|pid| {
            let pidfd = pidfd_open(pid, PidfdFlags::empty());
            let pidfd = pidfd.map_err(|error| self.failed(error.into()))?;
            let timeout = Timespec::try_from(PATIENCE)
                .map_err(|error| self.failed(io::Error::other(error)))?;
            poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&timeout))
                .map_err(|error| self.failed(error.into()))
        })?;
        if ended == 0 {
            return Err(self.slow(act));
        }
        self.child.wait().map_err(|source| self.failed(source))
    }

    /// The kernel lists a UNIX socket's path with the flag "accepts connections" once it listens.
    /// Reading that list leaves the server's first connection to the test.
    fn wait_until_it_listens(&mut self) -> Result<(), ServerError> {
        let deadline = Instant::now() + PATIENCE;
        while !self.all_listen()? {
            let ended = self.child.try_wait().map_err(|source| self.failed(source))?;
            if let Some(status) = ended {
                let (command, stderr) = (self.command.line(), self.stderr());
                return Err(ServerError::Ended { command, status, stderr });
            }
            if Instant::now() > deadline {
                return Err(self.slow("listen on its socket"));
            }
            // There is no event for another process's listen().
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn all_listen(&self) -> Result<bool, ServerError> {
        for socket in &self.command.awaited {
            if !is_listening(socket).map_err(|source| self.failed(source))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn raw_pid(&self) -> Result<Pid, ServerError> {
        i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| self.failed(io::ErrorKind::InvalidInput.into()))
    }

    fn failed(&self, source: io::Error) -> ServerError {
        ServerError::Run { program: self.command.program.clone(), source }
    }

    fn slow(&self, act: &'static str) -> ServerError {
        ServerError::Slow { command: self.command.line(), act, stderr: self.stderr() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails if it is dead and reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a socket bound to `path` accepts connections, by the kernel's list (proc(5)).
fn is_listening(path: &Path) -> io::Result<bool> {
    const FLAGS: usize = 3;
    const STREAM: usize = 4;
    const PATH: usize = 7;
    const ACCEPTS: &str = "00010000";
    let path = path.to_string_lossy();
    Ok(fs::read_to_string("/proc/net/unix")?.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(PATH) == Some(&path.as_ref())
            && fields[FLAGS] == ACCEPTS
            && fields[STREAM] == "0001"
    }))
}
