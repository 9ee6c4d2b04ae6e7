//! The contenders of the benchmark.
//!
//! Owns which contender does which job, and snapblk's set-ups. Never drives a server. All of them
//! serve their files with O_DIRECT, with one queue. Some are not servers: they measure the limits
//! of the file itself, without a guest.

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use snapblk_qmp::client::Client as Qmp;

use super::job::Ends;
use super::qemu::{Aio, Format, Qemu};
use super::template::refused;
use super::{BenchError, Daemon, Ground, Job, Layout, Qcow2, Version, Walk, template};
use crate::server::{Place, Server, ServerCommand, find_in_path, find_snapblk};

/// Layers of the long chain.
const MANY_LAYERS: u32 = 100;

/// The contender that all others are compared with.
pub(super) const OWN: &str = "snapblk";
/// The same contender as the first, on a copy of the image.
pub(super) const AGAIN: &str = "snapblk-again";
/// The mapped overlay.
pub(super) const MAPPED: &str = "snapblk-mapped";
/// The file of that overlay's store as a plain disk.
pub(super) const SAME_FILE: &str = "snapblk-same-file";

/// What snapblk serves in jobs on a plain disk, or as a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// The raw image itself, and in overlay jobs a new overlay.
    Linear,
    /// The same in plain jobs, on a copy of the image: shows how much of a difference is chance.
    Again,
    /// An overlay in which every chunk is mapped.
    Mapped,
    /// The file of that overlay's store as a plain disk: shows what the mapping costs, without the
    /// difference of two files.
    SameFile,
    /// That many layers, the topmost empty.
    Layers(u32),
    /// The raw image with that many new snapshots.
    Origin(u32),
}

/// The kind of a contender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `snapblk serve`.
    Snapblk(Setup),
    /// `qemu-storage-daemon`.
    Qemu(Qemu),
    /// No server: `fio` with io_uring directly on the file.
    Fio,
    /// No server: `pread` or `pwrite` in a loop.
    Syscalls,
    /// No server: before each write, the old data is copied to that many files.
    Copies(u32),
    /// A running server with its own disk: only for plain jobs, because it cannot be given a new
    /// overlay.
    External {
        /// Its socket.
        socket: PathBuf,
        /// Its process, if its processor time is to be measured.
        pid: Option<u32>,
    },
}

/// A contender in the benchmark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    /// Its name in the report and on the command line.
    pub name: String,
    /// Its kind and set-up.
    pub kind: Kind,
}

impl Contender {
    fn new(name: &str, kind: Kind) -> Self {
        Self { name: name.to_owned(), kind }
    }

    /// All contenders with these daemons, snapblk first.
    pub fn all(daemons: &[Daemon]) -> Vec<Self> {
        let mut all = vec![
            Self::own(),
            Self::new(AGAIN, Kind::Snapblk(Setup::Again)),
            Self::new(MAPPED, Kind::Snapblk(Setup::Mapped)),
            Self::new(SAME_FILE, Kind::Snapblk(Setup::SameFile)),
            Self::new("snapblk-100-layers", Kind::Snapblk(Setup::Layers(MANY_LAYERS))),
            Self::new("snapblk-1-layer", Kind::Snapblk(Setup::Layers(1))),
            Self::new("snapblk-1-snapshot", Kind::Snapblk(Setup::Origin(1))),
            Self::new("snapblk-16-snapshots", Kind::Snapblk(Setup::Origin(16))),
            Self::new("fio", Kind::Fio),
            Self::new("syscalls", Kind::Syscalls),
            Self::new("syscalls-1", Kind::Copies(1)),
            Self::new("syscalls-16", Kind::Copies(16)),
        ];
        let setups = daemons.iter().flat_map(Qemu::all);
        all.extend(setups.map(|qemu| Self { name: qemu.name(), kind: Kind::Qemu(qemu) }));
        all
    }

    /// A running server: `NAME=SOCKET` or `NAME=SOCKET,pid=N`.
    pub fn external(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?} is not of the form NAME=SOCKET or NAME=SOCKET,pid=N");
        let (name, rest) = text.split_once('=').ok_or_else(usage)?;
        let (socket, pid) = match rest.split_once(",pid=") {
            Some((socket, pid)) => (socket, Some(pid.parse().map_err(|_| usage())?)),
            None => (rest, None),
        };
        if name.is_empty() || socket.is_empty() {
            return Err(usage());
        }
        Ok(Self::new(name, Kind::External { socket: socket.into(), pid }))
    }

    /// Whether it is one of several set-ups of which only the best are measured in full.
    pub(super) fn is_peer(&self) -> bool {
        matches!(self.kind, Kind::Qemu(_))
    }

    /// How many turns it has in each repetition of a job: those whose difference is smaller than the
    /// spread of five figures have more.
    pub(super) fn turns(&self) -> usize {
        match self.kind {
            Kind::Snapblk(Setup::Mapped | Setup::SameFile) => 3,
            _ => 1,
        }
    }

    /// Whether it is a server.
    pub(super) fn is_server(&self) -> bool {
        !matches!(self.kind, Kind::Fio | Kind::Syscalls | Kind::Copies(_))
    }

    /// Whether it is always measured in full: the default set-ups, and those that are as durable as
    /// snapblk.
    pub(super) fn is_fixture(&self) -> bool {
        let Kind::Qemu(qemu) = &self.kind else { return false };
        match qemu.format {
            Format::Qcow2(qcow2) => qcow2 == Qcow2::DEFAULT,
            Format::CopyBeforeWrite { durable, .. } => durable,
            _ => false,
        }
    }

    /// Whether it takes part in a job on `place`.
    pub fn does(&self, job: &Job, place: Place) -> bool {
        match &self.kind {
            Kind::Snapblk(Setup::Linear) => {
                matches!(job.layout, Layout::Plain | Layout::Overlay | Layout::Null)
            }
            Kind::Snapblk(Setup::Origin(_)) => job.layout == Layout::Origin,
            Kind::Snapblk(Setup::Mapped | Setup::SameFile | Setup::Again) => {
                job.layout == Layout::Plain
            }
            Kind::Snapblk(Setup::Layers(_)) => job.layout == Layout::Chain,
            // Its I/O thread is told to poll; among its ways to wait, `native` is the fastest.
            Kind::Qemu(qemu) if job.ends == Ends::BothPoll && qemu.aio != Aio::Native => false,
            Kind::Qemu(qemu) => qemu.serves(job.layout, place),
            Kind::External { .. } => job.layout == Layout::Plain && job.ends != Ends::OneCore,
            Kind::Fio => job.layout == Layout::Plain && place == Place::Disk,
            Kind::Syscalls => place == Place::Memory && is_done_by_calls(job),
            Kind::Copies(_) => place == Place::Memory && job.layout == Layout::Origin,
        }
    }

    /// The command that serves its disk for `job` on `ground`, with a new overlay if needed; none
    /// if no server is to be started.
    pub(super) fn command(
        &self,
        ground: &Ground,
        job: &Job,
    ) -> Result<Option<ServerCommand>, BenchError> {
        match &self.kind {
            Kind::External { .. } | Kind::Fio | Kind::Syscalls | Kind::Copies(_) => Ok(None),
            Kind::Qemu(qemu) => qemu.command(ground, job.ends == Ends::BothPoll).map(Some),
            Kind::Snapblk(setup) => {
                let command = snapblk(ground, job.layout, *setup)?;
                Ok(Some(match job.ends {
                    Ends::BothPoll => command.arg("--poll"),
                    _ => command,
                }))
            }
        }
    }

    /// The preparation of a server that listens, before the client connects.
    pub(super) fn prepare(&self, server: &Server, ground: &Ground) -> Result<(), BenchError> {
        let Kind::Snapblk(Setup::Origin(snapshots)) = self.kind else { return Ok(()) };
        let mut qmp = Qmp::connect(server.monitor()).map_err(refused)?;
        for n in 1..=snapshots {
            let cow = ground.scratch().path(&format!("overlay/snap{n}.cow"));
            let arguments = json!({"device": "disk0", "name": format!("snap{n}"), "cow": cow});
            qmp.call("snapshot-create", arguments).map_err(refused)?;
        }
        Ok(())
    }

    /// The entry in the report: the program, its version, and its set-up.
    pub(super) fn version(&self) -> Result<Version, BenchError> {
        let (program, setup) = match &self.kind {
            Kind::Snapblk(setup) => (find_snapblk()?, describe(*setup)),
            Kind::Qemu(qemu) => (qemu.daemon.program.clone(), qemu.setup()),
            Kind::Fio => {
                let fio = find_in_path("fio").unwrap_or_else(|| "fio".into());
                let setup = "ioengine=io_uring, direct=1, on the file itself; where the client \
                             polls, iodepth_batch_complete_min=0";
                (fio, setup.to_owned())
            }
            Kind::Syscalls => return Ok(self.called("pread and pwrite", "in a loop, on the file")),
            Kind::Copies(files) => {
                let setup = format!(
                    "for each request a read of the disk, a write to fresh pages of each of \
                     {files} files, a write to the disk"
                );
                return Ok(self.called("pread and pwrite", &setup));
            }
            Kind::External { socket, .. } => {
                let setup = format!("running already at {}", socket.display());
                return Ok(self.called("unknown program", &setup));
            }
        };
        let said = said_by(Command::new(&program).arg("--version"))?;
        Ok(self.called(said.lines().next().unwrap_or_default(), &setup))
    }

    /// This program, with another set-up.
    pub(super) fn set_up_as(&self, name: &str, setup: &str) -> Result<Version, BenchError> {
        let version = self.version()?;
        Ok(Version { name: name.to_owned(), setup: setup.to_owned(), ..version })
    }

    /// snapblk with its default set-up.
    pub(super) fn own() -> Self {
        Self::new(OWN, Kind::Snapblk(Setup::Linear))
    }

    fn called(&self, program: &str, setup: &str) -> Version {
        let (program, setup) = (program.to_owned(), setup.to_owned());
        Version { name: self.name.clone(), program, setup }
    }
}

/// Whether a loop of system calls does the same work as a server: if the ends do not wait for each
/// other, and of overlay jobs only those that write whole clusters in order.
fn is_done_by_calls(job: &Job) -> bool {
    match job.layout {
        Layout::Plain => match job.ends {
            Ends::Sleep => job.depth > 1,
            Ends::BothPoll => job.depth == 1,
            Ends::OneCore | Ends::ClientPolls => false,
        },
        Layout::Overlay => matches!(job.walk, Walk::Once { .. }),
        _ => false,
    }
}

fn snapblk(ground: &Ground, layout: Layout, setup: Setup) -> Result<ServerCommand, BenchError> {
    let command = ServerCommand::snapblk(ground.scratch())?.arg("--num-queues").arg("1");
    let (base, store) = match (layout, setup) {
        (Layout::Null, _) => {
            let line = format!("0 {} zero", ground.disk() / 512);
            return Ok(command.arg("--table").arg(line));
        }
        (_, Setup::Origin(_)) => {
            // With its own state: the image is a plain disk in the next job.
            let state = ground.fresh_overlay_dir()?.join("state");
            let command = command.arg("--blk-file").arg(ground.image("snapblk")?);
            return Ok(command.arg("--state").arg(state));
        }
        (_, Setup::Mapped) => template::mapped(ground)?,
        (_, Setup::SameFile) => {
            // With its own state: that beside the store is the overlay's.
            let state = ground.fresh_overlay_dir()?.join("state");
            let (_, store) = template::mapped(ground)?;
            return Ok(command.arg("--blk-file").arg(store).arg("--state").arg(state));
        }
        (_, Setup::Layers(layers)) => template::chain(ground, layers)?,
        (Layout::Overlay, _) => {
            (ground.image("snapblk")?, ground.fresh_overlay_dir()?.join("store.cow"))
        }
        (_, Setup::Again) => return Ok(command.arg("--blk-file").arg(ground.image(AGAIN)?)),
        _ => return Ok(command.arg("--blk-file").arg(ground.image("snapblk")?)),
    };
    Ok(command.arg("--blk-file").arg(base).arg("--overlay").arg(store))
}

fn describe(setup: Setup) -> String {
    match setup {
        Setup::Linear => "snapblk serve, defaults".to_owned(),
        Setup::Again => "the same on a copy of the image".to_owned(),
        Setup::Mapped => "an overlay in which every chunk was written before".to_owned(),
        Setup::SameFile => "the file of that overlay's store as a plain disk".to_owned(),
        Setup::Origin(n) => format!("{n} snapshots of 4 KiB chunks, each copy durable at once"),
        Setup::Layers(1) => "an empty overlay over the image".to_owned(),
        Setup::Layers(n) => format!("an empty overlay over {} written ones", n - 1),
    }
}

/// Runs a command to its end, and returns its output.
pub(super) fn said_by(command: &mut Command) -> Result<String, BenchError> {
    let step = format!("run {}", command.get_program().display());
    let output = command.output().map_err(BenchError::at(step.clone()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(BenchError::Io { step, source: std::io::Error::other(said) });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_running_server_is_named_with_or_without_its_process() {
        let external = |text| Contender::external(text).map(|c| (c.name, c.kind));
        let kind = |pid| Kind::External { socket: "/run/x.sock".into(), pid };
        assert_eq!(external("spdk=/run/x.sock"), Ok(("spdk".to_owned(), kind(None))));
        assert_eq!(external("spdk=/run/x.sock,pid=12"), Ok(("spdk".to_owned(), kind(Some(12)))));
        assert!(external("/run/x.sock").is_err());
        assert!(external("spdk=/run/x.sock,pid=me").is_err());
    }

    #[test]
    fn every_job_has_contenders_and_every_contender_a_name_of_its_own() {
        let daemons = ["7.2", "10.0"].map(|name| Daemon::named(&format!("{name}=/bin/q")).unwrap());
        let all = Contender::all(&daemons);
        assert_eq!(all.iter().map(|c| &c.name).collect::<HashSet<_>>().len(), all.len());
        for job in Job::matching(&[]) {
            for place in [Place::Memory, Place::Disk].into_iter().filter(|&p| job.is_on(p)) {
                let count = |of: fn(&Contender) -> bool| {
                    all.iter().filter(|c| c.does(&job, place) && of(c)).count()
                };
                let own = count(|c| matches!(c.kind, Kind::Snapblk(_)));
                let wanted = if job.layout == Layout::Chain { (2, 0) } else { (1, 1) };
                assert!(own >= wanted.0 && count(Contender::is_peer) >= wanted.1, "{}", job.name);
            }
        }
    }
}
