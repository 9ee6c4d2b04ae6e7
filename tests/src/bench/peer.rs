//! The servers in the benchmark and how each is set up.
//!
//! Owns command lines and the making of fresh overlays. Never drives a server. All of them serve
//! their files with O_DIRECT, with one queue.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{BenchError, Ground, Layout, Version};
use crate::server::{ServerCommand, find_in_path, find_qemu_storage_daemon, find_snapblk};

/// How qemu-storage-daemon does I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aio {
    /// Linux AIO (`aio=native`).
    Native,
    /// io_uring (`aio=io_uring`).
    IoUring,
}

impl Aio {
    fn option(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::IoUring => "io_uring",
        }
    }
}

/// What qemu-storage-daemon serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The raw image, written in place.
    Raw,
    /// A fresh qcow2 overlay on the raw image.
    Qcow2 {
        /// The cluster size, as `qemu-img` takes it.
        cluster: &'static str,
        /// Whether clusters have 32 subclusters.
        extended_l2: bool,
    },
}

/// What kind of server a contender is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `snapblk serve`.
    Snapblk,
    /// `qemu-storage-daemon`.
    Qemu {
        /// How it does I/O.
        aio: Aio,
        /// Whether the export is on an I/O thread.
        iothread: bool,
        /// What it serves.
        format: Format,
    },
    /// A server that runs already, with a disk of its own: for plain jobs only, since nobody
    /// here can give it a fresh overlay.
    External {
        /// Where it listens.
        socket: PathBuf,
        /// Its process, where its processor time is to be measured.
        pid: Option<u32>,
    },
}

/// A server in the benchmark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contender {
    /// Its name in the report, and to choose it by.
    pub name: String,
    /// How it is set up.
    pub kind: Kind,
}

/// The peers of a report that nobody asked more of.
const DEFAULT_PEERS: [&str; 2] = ["qsd-raw-native", "qsd-qcow2-64k-native"];

impl Contender {
    fn qemu(name: &str, aio: Aio, iothread: bool, format: Format) -> Self {
        Self { name: name.to_owned(), kind: Kind::Qemu { aio, iothread, format } }
    }

    /// All that can be set up here.
    pub fn all() -> Vec<Self> {
        let qcow2 = |cluster, extended_l2| Format::Qcow2 { cluster, extended_l2 };
        let (native, uring) = (Aio::Native, Aio::IoUring);
        vec![
            Self { name: "snapblk".to_owned(), kind: Kind::Snapblk },
            Self::qemu("qsd-raw-native", native, false, Format::Raw),
            Self::qemu("qsd-raw-native-iothread", native, true, Format::Raw),
            Self::qemu("qsd-raw-uring", uring, false, Format::Raw),
            Self::qemu("qsd-raw-uring-iothread", uring, true, Format::Raw),
            Self::qemu("qsd-qcow2-64k-native", native, false, qcow2("64k", false)),
            Self::qemu("qsd-qcow2-64k-native-iothread", native, true, qcow2("64k", false)),
            Self::qemu("qsd-qcow2-64k-uring", uring, false, qcow2("64k", false)),
            Self::qemu("qsd-qcow2-128k-extl2-native", native, false, qcow2("128k", true)),
            Self::qemu("qsd-qcow2-4k-native", native, false, qcow2("4k", false)),
        ]
    }

    /// snapblk and, for each layout, qemu-storage-daemon as most people run it.
    pub fn defaults() -> Vec<Self> {
        let wanted = |c: &Self| c.kind == Kind::Snapblk || DEFAULT_PEERS.contains(&&*c.name);
        Self::all().into_iter().filter(wanted).collect()
    }

    /// A server that runs already: `NAME=SOCKET` or `NAME=SOCKET,pid=N`.
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
        let kind = Kind::External { socket: socket.into(), pid };
        Ok(Self { name: name.to_owned(), kind })
    }

    /// Whether it takes part in jobs of this layout.
    pub fn serves(&self, layout: Layout) -> bool {
        match self.kind {
            Kind::Snapblk => true,
            Kind::Qemu { format: Format::Raw, .. } | Kind::External { .. } => {
                layout == Layout::Plain
            }
            Kind::Qemu { format: Format::Qcow2 { .. }, .. } => layout == Layout::Overlay,
        }
    }

    /// The command that serves `layout` on `ground`, with a fresh overlay where one is asked for;
    /// none for a server that runs already.
    pub(super) fn command(
        &self,
        ground: &Ground,
        layout: Layout,
    ) -> Result<Option<ServerCommand>, BenchError> {
        let overlay = match (&self.kind, layout) {
            (Kind::External { .. }, _) => return Ok(None),
            (_, Layout::Plain) => None,
            (_, Layout::Overlay) => Some(ground.fresh_overlay_dir()?),
        };
        match self.kind {
            Kind::External { .. } => Ok(None),
            Kind::Snapblk => {
                let image = ground.image("snapblk")?;
                let command = ServerCommand::snapblk(ground.scratch())?;
                let command = command.arg("--blk-file").arg(image);
                Ok(Some(match overlay {
                    None => command,
                    Some(dir) => command.arg("--overlay").arg(dir.join("store.cow")),
                }))
            }
            Kind::Qemu { aio, iothread, format } => {
                let image = ground.image("qemu")?;
                let mut command = ServerCommand::qemu_storage_daemon(ground.scratch())?;
                for arg in qemu_disk(&image, overlay.as_deref(), aio, format)? {
                    command = command.arg(arg);
                }
                Ok(Some(with_qemu_export(command, iothread)))
            }
        }
    }

    /// What the report names: the program, its version, and how it was run.
    pub(super) fn version(&self) -> Result<Version, BenchError> {
        let (program, setup) = match &self.kind {
            Kind::Snapblk => (find_snapblk()?, "snapblk serve, defaults".to_owned()),
            Kind::External { socket, .. } => {
                let setup = format!("running already at {}", socket.display());
                return Ok(Version {
                    name: self.name.clone(),
                    program: "unknown program".to_owned(),
                    setup,
                });
            }
            Kind::Qemu { aio, iothread, format } => {
                let format = match format {
                    Format::Raw => "raw".to_owned(),
                    Format::Qcow2 { cluster, extended_l2: false } => {
                        format!("qcow2 on raw, cluster_size={cluster}")
                    }
                    Format::Qcow2 { cluster, extended_l2: true } => {
                        format!("qcow2 on raw, cluster_size={cluster},extended_l2=on")
                    }
                };
                let thread = if *iothread { "iothread" } else { "no iothread" };
                let aio = aio.option();
                let setup = format!("{format}, cache.direct=on, aio={aio}, {thread}");
                (find_qemu_storage_daemon()?, setup)
            }
        };
        let said = run(Command::new(&program).arg("--version"))?;
        let program = said.lines().next().unwrap_or_default().to_owned();
        Ok(Version { name: self.name.clone(), program, setup })
    }
}

/// The block nodes, the topmost called `disk`. Makes the overlay.
fn qemu_disk(
    image: &Path,
    overlay: Option<&Path>,
    aio: Aio,
    format: Format,
) -> Result<Vec<String>, BenchError> {
    let file = |node: &str, path: &Path, more: &str| {
        format!(
            "driver=file,node-name={node},filename={},cache.direct=on,aio={}{more}",
            path.display(),
            aio.option()
        )
    };
    let nodes = match (format, overlay) {
        (Format::Qcow2 { cluster, extended_l2 }, Some(dir)) => {
            let path = dir.join("overlay.qcow2");
            make_qcow2(image, &path, cluster, extended_l2)?;
            vec![
                file("image", image, ",read-only=on"),
                "driver=raw,node-name=base,file=image,read-only=on".to_owned(),
                file("overlay", &path, ""),
                "driver=qcow2,node-name=disk,file=overlay,backing=base".to_owned(),
            ]
        }
        _ => vec![file("image", image, ""), "driver=raw,node-name=disk,file=image".to_owned()],
    };
    Ok(nodes.into_iter().flat_map(|node| ["--blockdev".to_owned(), node]).collect())
}

fn with_qemu_export(command: ServerCommand, iothread: bool) -> ServerCommand {
    let mut export = format!(
        "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=1,addr.type=unix,\
         addr.path={}",
        command.socket().display()
    );
    let mut command = command;
    if iothread {
        command = command.arg("--object").arg("iothread,id=thread");
        export.push_str(",iothread=thread");
    }
    command.arg("--export").arg(export)
}

fn make_qcow2(
    image: &Path,
    overlay: &Path,
    cluster: &str,
    extended_l2: bool,
) -> Result<(), BenchError> {
    let qemu_img = find_in_path("qemu-img").ok_or_else(|| BenchError::Io {
        step: "find qemu-img (Debian's qemu-utils)".to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    let extended_l2 = if extended_l2 { "on" } else { "off" };
    let options = format!("cluster_size={cluster},extended_l2={extended_l2}");
    run(Command::new(qemu_img)
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-o", &options, "-b"])
        .arg(image)
        .arg(overlay))
    .map(drop)
}

/// Runs a command to its end, and gives what it said.
fn run(command: &mut Command) -> Result<String, BenchError> {
    let step = || format!("run {}", command.get_program().display());
    let step = step();
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
    fn every_default_peer_exists_and_every_layout_has_one() {
        let defaults = Contender::defaults();
        assert_eq!(defaults.len(), 1 + DEFAULT_PEERS.len());
        for layout in [Layout::Plain, Layout::Overlay] {
            assert_eq!(defaults.iter().filter(|c| c.serves(layout)).count(), 2);
        }
    }
}
