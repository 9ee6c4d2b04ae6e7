//! Running a guest: a real Linux kernel in QEMU, with the test's disks, that executes a script.
//!
//! Owns the QEMU process, the guest's console as lines, and the kernel's log. The images and QEMU's
//! command line belong to `images/`: this runs `images/boot` and never knows how a guest is made,
//! nor what serves its disks. Dropping a [`Guest`] kills and reaps it.
//!
//! The console is the script's standard input and output. A guest that does not answer in time is
//! an error that shows its last lines and the kernel's log.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A disk of the guest. The first one is `/dev/vda`, the second `/dev/vdb`, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disk {
    /// An image that QEMU itself serves, raw and writable.
    File(PathBuf),
    /// An image that QEMU itself serves, raw and read-only.
    ReadOnly(PathBuf),
    /// A disk of an NBD server; each write and flush is passed on at once.
    Nbd {
        /// Its socket.
        socket: PathBuf,
        /// The export's name.
        export: String,
    },
    /// A disk of a vhost-user-blk server.
    Served {
        /// Its socket.
        socket: PathBuf,
        /// Virtqueues offered to the guest.
        queues: u16,
    },
}

/// A guest's configuration.
#[derive(Clone, Debug)]
pub struct GuestConfig {
    /// The shell script that the guest runs; its helpers are in `/lib/snapblk/functions`.
    pub script: String,
    /// At most 25.
    pub disks: Vec<Disk>,
    /// In MiB.
    pub memory: u32,
    /// Virtual processors.
    pub cpus: u32,
    /// Whether the guest may reboot; otherwise a reboot ends it.
    pub reboots: bool,
    /// QEMU's socket for a guest agent, which the script starts; it exists once QEMU runs.
    pub agent: Option<PathBuf>,
    /// The time limit for the guest's whole life, from QEMU's start.
    pub timeout: Duration,
}

impl GuestConfig {
    /// A guest that runs `script`, with 256 MiB, one processor and two minutes.
    pub fn new(script: impl Into<String>) -> Self {
        Self {
            script: script.into(),
            disks: Vec::new(),
            memory: 256,
            cpus: 1,
            reboots: false,
            agent: None,
            timeout: Duration::from_secs(120),
        }
    }

    /// The same with one more disk.
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }
}

/// Why a guest failed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// There are no images to boot.
    #[error("found no guest to boot at {path}; run images/setup first", path = .0.display())]
    NoImages(PathBuf),
    /// An error with QEMU or its files.
    #[error("cannot {act}: {source}")]
    Io {
        /// The operation.
        act: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The time limit was reached.
    #[error("the guest's time was up while waiting for {wanted}\n{said}")]
    Timeout {
        /// The awaited line.
        wanted: String,
        /// Console and kernel log.
        said: String,
    },
    /// The console ended first.
    #[error("the guest ended before {wanted}\n{said}")]
    Ended {
        /// The awaited line.
        wanted: String,
        /// Console and kernel log.
        said: String,
    },
}

/// The result of a guest.
#[derive(Clone, Debug)]
pub struct GuestResult {
    /// The script's exit status.
    pub status: i32,
    /// Every line of the console, in order.
    pub lines: Vec<String>,
    /// The kernel's messages.
    pub kernel_log: String,
}

impl GuestResult {
    /// The words after `key` in each line that starts with it.
    pub fn said<'a>(&'a self, key: &'a str) -> impl Iterator<Item = Vec<&'a str>> {
        self.lines.iter().filter_map(move |line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(key)).then(|| words.collect())
        })
    }

    /// Panics, with all output of the guest, if the script failed.
    #[track_caller]
    pub fn expect_success(&self) {
        let Self { status, lines, kernel_log } = self;
        assert_eq!(*status, 0, "the guest's script failed:\n{}\n{kernel_log}", lines.join("\n"));
    }
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    qemu: Child,
    stdin: ChildStdin,
    console: Receiver<String>,
    lines: Vec<String>,
    files: TempDir,
    deadline: Instant,
}

impl Guest {
    /// Starts QEMU; the script runs a few seconds later.
    pub fn boot(config: &GuestConfig) -> Result<Self, GuestError> {
        let failed = |act| move |source| GuestError::Io { act, source };
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images");
        let made = cache(&images).join("guest.env");
        if !made.is_file() {
            return Err(GuestError::NoImages(made));
        }
        let files = tempfile::tempdir().map_err(failed("make a folder for the guest"))?;
        let script = files.path().join("script");
        fs::write(&script, &config.script).map_err(failed("write the guest's script"))?;
        let mut command = Command::new(images.join("boot"));
        command.arg("--script").arg(&script).arg("--log").arg(files.path().join("kernel.log"));
        arguments(&mut command, config);
        let errors = fs::File::create(files.path().join("qemu.log"));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.map_err(failed("make QEMU's log"))?);
        let mut qemu = command.spawn().map_err(failed("run images/boot"))?;
        let pipes = qemu.stdin.take().zip(qemu.stdout.take());
        let (stdin, stdout) =
            pipes.ok_or_else(|| failed("take QEMU's console")(io::ErrorKind::BrokenPipe.into()))?;
        let deadline = Instant::now() + config.timeout;
        Ok(Self { qemu, stdin, console: read(stdout), lines: Vec::new(), files, deadline })
    }

    /// Waits for a line that starts with `prefix` and returns the rest of it. Earlier lines are
    /// skipped, but kept.
    pub fn wait_for_line(&mut self, prefix: &str) -> Result<String, GuestError> {
        loop {
            match self.next_line() {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(prefix) {
                        return Ok(rest.trim().to_owned());
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let wanted = format!("a line '{prefix}…'");
                    return Err(GuestError::Timeout { wanted, said: self.said() });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let wanted = format!("a line '{prefix}…'");
                    return Err(GuestError::Ended { wanted, said: self.said() });
                }
            }
        }
    }

    /// Sends the script a line on its standard input.
    pub fn send_line(&mut self, line: &str) -> Result<(), GuestError> {
        writeln!(self.stdin, "{line}")
            .and_then(|()| self.stdin.flush())
            .map_err(|source| GuestError::Io { act: "write to the guest's console", source })
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.qemu.id()
    }

    /// Waits until the script has ended and the guest is powered off.
    pub fn finish(mut self) -> Result<GuestResult, GuestError> {
        let status = self.wait_for_line("@exit ")?;
        while let Ok(line) = self.next_line() {
            drop(line); // next_line() remembers it
        }
        let status = status.parse().map_err(|_| GuestError::Ended {
            wanted: format!("an exit status; '{status}' is none"),
            said: self.said(),
        })?;
        Ok(GuestResult { status, lines: self.lines.clone(), kernel_log: self.kernel_log() })
    }

    fn next_line(&mut self) -> Result<String, RecvTimeoutError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let line = self.console.recv_timeout(left)?;
        self.lines.push(line.clone());
        Ok(line)
    }

    fn kernel_log(&self) -> String {
        let bytes = fs::read(self.files.path().join("kernel.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last output of the guest, its kernel and QEMU.
    fn said(&self) -> String {
        let qemu = fs::read_to_string(self.files.path().join("qemu.log")).unwrap_or_default();
        let part = |title: &str, text: &str| format!("--- {title} ---\n{}\n", tail(text));
        part("the script", &self.lines.join("\n"))
            + &part("the kernel", &self.kernel_log())
            + &part("QEMU", &qemu)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The directory for the files that `images/` makes.
fn cache(images: &Path) -> PathBuf {
    std::env::var_os("SNAPBLK_CACHE").map_or_else(|| images.join("cache"), PathBuf::from)
}

fn arguments(command: &mut Command, config: &GuestConfig) {
    command.arg("--memory").arg(config.memory.to_string());
    command.arg("--cpus").arg(config.cpus.to_string());
    if config.reboots {
        command.arg("--reboots");
    }
    if let Some(agent) = &config.agent {
        command.arg("--agent").arg(agent);
    }
    for disk in &config.disks {
        match disk {
            Disk::File(image) => command.arg("--file").arg(image),
            Disk::ReadOnly(image) => command.arg("--readonly").arg(image),
            Disk::Nbd { socket, export } => command.arg("--nbd").arg(socket).arg(export),
            Disk::Served { socket, queues } => {
                command.arg("--served").arg(socket).arg(queues.to_string())
            }
        };
    }
}

/// The console's lines, as they arrive. Ends with QEMU.
fn read(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The last lines of a text.
fn tail(text: &str) -> String {
    const LINES: usize = 40;
    let mut last = VecDeque::with_capacity(LINES + 1);
    for line in text.lines() {
        last.push_back(line);
        if last.len() > LINES {
            last.pop_front();
        }
    }
    last.into_iter().collect::<Vec<_>>().join("\n")
}
