//! The set-ups of qemu-storage-daemon.
//!
//! Owns its command lines and the making of qcow2 overlays. Never drives it. Every set-up has
//! `cache.direct=on` and one queue.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::peer::said_by;
use super::{BenchError, Daemon, Ground, Layout};
use crate::server::{Place, ServerCommand, find_in_path};

/// How long an I/O thread may poll before it sleeps, in jobs in which `snapblk` never sleeps: longer
/// than any pause between requests, in nanoseconds. The default is 32768.
const POLLS_FOR: u64 = 1_000_000_000;

/// How qemu-storage-daemon does I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aio {
    /// Linux AIO (`aio=native`).
    Native,
    /// io_uring (`aio=io_uring`).
    IoUring,
    /// System calls in threads (`aio=threads`).
    Threads,
}

impl Aio {
    /// The value of the option `aio`.
    pub(super) fn option(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::IoUring => "io_uring",
            Self::Threads => "threads",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::IoUring => "uring",
            other => other.option(),
        }
    }
}

/// The format of a qcow2 overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qcow2 {
    /// The cluster size, as an option of `qemu-img`.
    pub cluster: &'static str,
    /// Whether clusters have 32 subclusters.
    pub extended_l2: bool,
}

impl Qcow2 {
    /// The default of `qemu-img`.
    pub const DEFAULT: Self = Self { cluster: "64k", extended_l2: false };
    /// Small clusters.
    pub const SMALL: Self = Self { cluster: "4k", extended_l2: false };
    /// Subclusters of 4 KiB.
    pub const EXTENDED: Self = Self { cluster: "128k", extended_l2: true };

    /// Makes the overlay `path` on the raw image `base`.
    pub(super) fn make(self, base: &Path, path: &Path) -> Result<(), BenchError> {
        let [format, raw, backing] = ["-F", "raw", "-b"].map(OsStr::new);
        self.create(&[format, raw, backing, base.as_os_str(), path.as_os_str()])
    }

    /// Makes an empty image `path` for a disk of `bytes` bytes.
    pub(super) fn make_empty(self, path: &Path, bytes: u64) -> Result<(), BenchError> {
        self.create(&[path.as_os_str(), OsStr::new(&bytes.to_string())])
    }

    fn create(self, args: &[&OsStr]) -> Result<(), BenchError> {
        let qemu_img = find_in_path("qemu-img").ok_or_else(|| BenchError::Io {
            step: "find qemu-img (Debian's qemu-utils)".to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let options = self.options();
        let create = ["create", "-q", "-f", "qcow2", "-o", &options];
        said_by(Command::new(qemu_img).args(create).args(args)).map(drop)
    }

    fn name(self) -> String {
        let extended = if self.extended_l2 { "-extl2" } else { "" };
        format!("{}{extended}", self.cluster)
    }

    fn options(self) -> String {
        let extended_l2 = if self.extended_l2 { "on" } else { "off" };
        format!("cluster_size={},extended_l2={extended_l2}", self.cluster)
    }
}

/// What qemu-storage-daemon serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The raw image, written in place.
    Raw,
    /// A new qcow2 overlay on the raw image.
    Qcow2(Qcow2),
    /// The raw image below a `copy-before-write` filter, which copies to a new qcow2 image.
    CopyBeforeWrite {
        /// The format of that image.
        target: Qcow2,
        /// Whether every write to it is synchronous (`chattr +S`), so that the copy is durable
        /// before the guest's write.
        durable: bool,
    },
    /// Nothing: `null-co`.
    Null,
}

/// One set-up of qemu-storage-daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// The program and version.
    pub daemon: Daemon,
    /// How it does I/O.
    pub aio: Aio,
    /// Whether the export is on an I/O thread.
    pub iothread: bool,
    /// What it serves.
    pub format: Format,
}

impl Qemu {
    /// Every set-up of `daemon`.
    pub(super) fn all(daemon: &Daemon) -> Vec<Self> {
        let mut all = Vec::new();
        let mut add = |aio, iothread, format| {
            all.push(Self { daemon: daemon.clone(), aio, iothread, format });
        };
        for aio in [Aio::Native, Aio::IoUring] {
            add(aio, false, Format::Raw);
            add(aio, true, Format::Raw);
        }
        add(Aio::Threads, false, Format::Raw);
        for qcow2 in [Qcow2::DEFAULT, Qcow2::SMALL, Qcow2::EXTENDED] {
            for aio in [Aio::Native, Aio::IoUring] {
                add(aio, false, Format::Qcow2(qcow2));
                add(aio, true, Format::Qcow2(qcow2));
            }
            add(Aio::Threads, false, Format::Qcow2(qcow2));
        }
        for target in [Qcow2::DEFAULT, Qcow2::SMALL, Qcow2::EXTENDED] {
            for durable in [false, true] {
                for iothread in [false, true] {
                    add(Aio::Native, iothread, Format::CopyBeforeWrite { target, durable });
                }
            }
        }
        add(Aio::Native, false, Format::Null);
        add(Aio::Native, true, Format::Null);
        all
    }

    /// Its name in the report.
    pub(super) fn name(&self) -> String {
        let Self { daemon, aio, iothread, format } = self;
        let (daemon, aio) = (&daemon.name, aio.name());
        let thread = if *iothread { "-iothread" } else { "" };
        match format {
            Format::Raw => format!("qsd-{daemon}-raw-{aio}{thread}"),
            Format::Null => format!("qsd-{daemon}-null{thread}"),
            Format::Qcow2(qcow2) => format!("qsd-{daemon}-qcow2-{}-{aio}{thread}", qcow2.name()),
            Format::CopyBeforeWrite { target, durable } => {
                let durable = if *durable { "-durable" } else { "" };
                format!("qsd-{daemon}-cbw-{}{durable}-{aio}{thread}", target.name())
            }
        }
    }

    /// Its set-up, for the report.
    pub(super) fn setup(&self) -> String {
        let thread = match self.iothread {
            true => "iothread (in busy jobs with poll-max-ns=1 s)",
            false => "no iothread",
        };
        let disk = match self.format {
            Format::Raw => "raw".to_owned(),
            Format::Null => return format!("null-co, {thread}"),
            Format::Qcow2(qcow2) => format!("qcow2 on raw, {}", qcow2.options()),
            Format::CopyBeforeWrite { target, durable } => {
                let durable = if durable { ", synchronous (chattr +S)" } else { "" };
                format!("copy-before-write on raw, to qcow2 with {}{durable}", target.options())
            }
        };
        format!("{disk}, cache.direct=on, aio={}, {thread}", self.aio.option())
    }

    /// Whether it takes part in jobs of this layout on `place`.
    pub(super) fn serves(&self, layout: Layout, place: Place) -> bool {
        match layout {
            Layout::Plain => self.format == Format::Raw,
            Layout::Overlay => matches!(self.format, Format::Qcow2(_)),
            Layout::Null => self.format == Format::Null,
            Layout::Origin => match self.format {
                // In memory nothing is durable, and all writes are synchronous.
                Format::CopyBeforeWrite { durable, .. } => !durable || place == Place::Disk,
                _ => false,
            },
            Layout::Chain => false,
        }
    }

    /// The command that serves its disk on `ground`, with a new qcow2 overlay. With `polls` its I/O
    /// thread is to poll rather than sleep.
    pub(super) fn command(
        &self,
        ground: &Ground,
        polls: bool,
    ) -> Result<ServerCommand, BenchError> {
        let mut command = ServerCommand::new(self.daemon.program.clone(), ground.scratch());
        for node in self.nodes(ground)? {
            command = command.arg("--blockdev").arg(node);
        }
        let mut export = export(&command);
        if self.iothread {
            let polls = if polls { format!(",poll-max-ns={POLLS_FOR}") } else { String::new() };
            command = command.arg("--object").arg(format!("iothread,id=thread{polls}"));
            export.push_str(",iothread=thread");
        }
        Ok(command.arg("--export").arg(export))
    }

    /// The block nodes, the topmost called `disk`.
    fn nodes(&self, ground: &Ground) -> Result<Vec<String>, BenchError> {
        if self.format == Format::Null {
            return Ok(vec![format!("driver=null-co,node-name=disk,size={}", ground.disk())]);
        }
        let image = ground.image("qemu")?;
        let path = || ground.fresh_overlay_dir().map(|dir| dir.join("overlay.qcow2"));
        let file = |node: &str, path: &Path| file_node(node, path, self.aio);
        match self.format {
            Format::Raw | Format::Null => {
                Ok(vec![file("image", &image), "driver=raw,node-name=disk,file=image".to_owned()])
            }
            Format::Qcow2(qcow2) => {
                let path = path()?;
                qcow2.make(&image, &path)?;
                Ok(vec![
                    file("image", &image) + ",read-only=on",
                    "driver=raw,node-name=base,file=image,read-only=on".to_owned(),
                    file("overlay", &path),
                    "driver=qcow2,node-name=disk,file=overlay,backing=base".to_owned(),
                ])
            }
            Format::CopyBeforeWrite { target, durable } => {
                let path = path()?;
                target.make_empty(&path, ground.disk())?;
                if durable {
                    synchronous(&path).map_err(BenchError::at("make a file synchronous"))?;
                }
                Ok(vec![
                    file("image", &image),
                    "driver=raw,node-name=base,file=image".to_owned(),
                    file("copies", &path),
                    "driver=qcow2,node-name=snapshot,file=copies".to_owned(),
                    "driver=copy-before-write,node-name=disk,file=base,target=snapshot".to_owned(),
                ])
            }
        }
    }
}

/// Makes every write to `path` wait until it is durable, as `chattr +S` does.
fn synchronous(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let flags = ioctl_getflags(&file)?;
    Ok(ioctl_setflags(&file, flags | IFlags::SYNC)?)
}

/// A node for a file, with O_DIRECT.
pub(super) fn file_node(node: &str, path: &Path, aio: Aio) -> String {
    let (path, aio) = (path.display(), aio.option());
    format!("driver=file,node-name={node},filename={path},cache.direct=on,aio={aio}")
}

/// The export of the node `disk` at the command's socket.
pub(super) fn export(command: &ServerCommand) -> String {
    let socket = command.socket().display();
    format!(
        "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=1,addr.type=unix,\
         addr.path={socket}"
    )
}
