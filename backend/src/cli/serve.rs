//! `snapblk serve`: the requested configuration, disk by disk.
//!
//! Owns the options, and which of them go together. Each `--name` opens a group: the options
//! after it, up to the next `--name`, belong to that disk; options before the first belong to a
//! disk called `disk0`. Never serves anything.

use std::path::PathBuf;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches, value_parser};

use snapblk_store::exception::Arena;

use crate::cli::size;
use crate::server::{DiskSocket, DiskSource, MAX_QUEUES};
pub use crate::server::{FlushInterval, OnFull};

mod file;
mod limit;
mod run;
#[cfg(test)]
mod tests;

/// The default name of a disk.
const DEFAULT_NAME: &str = "disk0";

/// What is wrong with options that say something of no file.
const WITHOUT_A_FILE: &str = "has --read-only or --overlay without --blk-file";

/// What the help says of `--force`.
const FORCE: &str = "For all disks: use an overlay although its base has changed since; allow commits \
                     into a base that was opened read-only (which destroys other overlays on it), \
                     and tables that make an exported disk shorter";

/// The arguments of `snapblk serve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serve {
    /// A file with further configuration.
    pub config: Option<PathBuf>,
    /// The monitor's socket.
    pub monitor: Option<PathBuf>,
    /// The limit for exception tables in memory, in bytes; none for no limit.
    pub table_memory: Option<u64>,
    /// The directory for the rest of the tables; none for that of the state file.
    pub table_dir: Option<PathBuf>,
    /// When first writes to stores that no guest flushes are made durable; none if not given.
    pub flush_interval: Option<FlushInterval>,
    /// The state file; none for one beside a store.
    pub state: Option<PathBuf>,
    /// Whether some checks are overridden.
    pub force: bool,
    /// The disks of the command line, in order; none is allowed only with a configuration file, or
    /// with a monitor to create them.
    pub disks: Vec<Disk>,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its name.
    pub name: String,
    /// Its source.
    pub source: SourceOptions,
    /// Its front-end's socket; none for a disk that only other disks use.
    pub socket: Option<DiskSocket>,
    /// Virtqueues offered; none for one per core.
    pub num_queues: Option<u16>,
    /// What happens when a store is full; none if not given.
    pub on_full: Option<OnFull>,
    /// The socket of the guest's agent.
    pub guest_agent: Option<PathBuf>,
    /// Whether its workers never sleep.
    pub poll: bool,
}

/// What the options say a disk is made of, each of them as it was given. Which of them go together is
/// known once those of the command line and of the configuration file are combined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceOptions {
    /// Lines of a device-mapper table; each is a line, or `@` and the path of a file of lines.
    pub table: Vec<String>,
    /// A file.
    pub blk_file: Option<PathBuf>,
    /// The guest may only read the file.
    pub read_only: bool,
    /// The store for the guest's writes, which is created if missing.
    pub overlay: Option<PathBuf>,
}

impl SourceOptions {
    /// Refuses options that exclude each other, whatever is added to them.
    ///
    /// # Errors
    /// Which, for a sentence about the disk.
    fn check(&self) -> Result<(), &'static str> {
        match (&self.blk_file, self.table.is_empty()) {
            (Some(_), false) => Err("has both --blk-file and --table; leave one out"),
            (None, false) if self.need_a_file() => Err(WITHOUT_A_FILE),
            _ if self.read_only && self.overlay.is_some() => {
                Err("has both --read-only and --overlay, which is there to be written")
            }
            _ => Ok(()),
        }
    }

    /// The source that they define.
    ///
    /// # Errors
    /// Options that cannot be combined, or too few, for a sentence about the disk.
    fn resolved(&self) -> Result<DiskSource, &'static str> {
        self.check()?;
        let SourceOptions { table, blk_file, read_only, overlay } = self.clone();
        match blk_file {
            Some(path) => Ok(DiskSource::File { path, read_only, overlay }),
            None if !table.is_empty() => Ok(DiskSource::Lines(table)),
            None if self.need_a_file() => Err(WITHOUT_A_FILE),
            None => Err("is made of nothing: give --blk-file or --table"),
        }
    }

    /// Whether they leave the source to the configuration file.
    fn are_open(&self) -> bool {
        self.table.is_empty() && self.blk_file.is_none()
    }

    fn need_a_file(&self) -> bool {
        self.read_only || self.overlay.is_some()
    }

    /// Takes from `known` what these do not say. A table takes the place of a file with all that is
    /// said of it, and a file that of a table.
    fn fill_in(&mut self, known: SourceOptions) {
        if !self.table.is_empty() {
            return;
        }
        if self.blk_file.is_none() {
            self.table = known.table;
            self.blk_file = known.blk_file;
        }
        // An overlay is what makes a file that is only read a disk that can be written.
        self.read_only |= known.read_only && self.overlay.is_none();
        self.overlay = self.overlay.take().or(known.overlay);
    }
}

/// Where a disk's front-end connects, by these options.
fn socket_of(path: Option<PathBuf>, fd: Option<i32>) -> Result<Option<DiskSocket>, &'static str> {
    match (path, fd) {
        (Some(_), Some(_)) => Err("has both --socket-path and --fd; leave one out"),
        (Some(path), None) => Ok(Some(DiskSocket::Path(path))),
        (None, fd) => Ok(fd.map(DiskSocket::Fd)),
    }
}

fn table_memory(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text)?;
    if bytes < Arena::LEAST {
        return Err(format!("{text} is too little for exception tables; give 8M or more"));
    }
    Ok(bytes)
}

fn flush_interval(text: &str) -> Result<FlushInterval, String> {
    text.parse()
}

fn on_full(text: &str) -> Result<OnFull, String> {
    text.parse()
}

fn one(id: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(id).long(id).value_name(value).help(help)
}

/// An option that is allowed once per disk may be repeated; the groups are separated later.
fn each(id: &'static str, value: &'static str, help: &'static str) -> Arg {
    one(id, value, help).action(ArgAction::Append)
}

fn flag(id: &'static str, help: &'static str) -> Arg {
    let arg = Arg::new(id).long(id).help(help).action(ArgAction::Append);
    arg.num_args(0).default_missing_value("true").value_parser(value_parser!(bool))
}

fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(text_path)
}

/// The options that are the process's.
fn settings(command: Command) -> Command {
    command
        .next_line_help(true)
        .arg(
            one(
                "config",
                "FILE.toml",
                "Disks and settings from a file, under the names of the options; what is given \
                     here wins",
            )
            .value_parser(path()),
        )
        .arg(
            one(
                "monitor",
                "PATH",
                "Create the monitor's socket (QMP) here, for 'snapblk ctl PATH'",
            )
            .value_parser(path()),
        )
        .arg(
            one(
                "table-memory",
                "SIZE",
                "Keep no more of the exception tables in memory (64M, for instance); the rest \
                     is in a file [default: all of them]",
            )
            .value_parser(table_memory),
        )
        .arg(
            one("table-dir", "DIR", "Where that file lies [default: beside the state file]")
                .value_parser(path()),
        )
        .arg(
            one(
                "flush-interval",
                "30s|never",
                "Make first writes to stores durable after this time, where no guest flushes \
                     them [default: 30s]",
            )
            .value_parser(flush_interval),
        )
        .arg(
            each(
                "state",
                "FILE",
                "Keep devices and snapshots across restarts in this file [default: beside the \
                     store]",
            )
            .value_parser(path()),
        )
        .arg(flag("force", FORCE))
}

/// The options that each disk has.
fn disks(command: Command) -> Command {
    command
        .next_help_heading("Disks (each --name opens a group of the options after it)")
        .arg(each("name", "NAME", "Name of the disk [default: disk0]"))
        .arg(each(
            "table",
            "LINE|@FILE",
            "A line of its device-mapper table, as in '0 131072 linear /dev/sdb 0', or a file \
                 of lines",
        ))
        .arg(each("blk-file", "FILE", "A plain disk in this file").value_parser(path()))
        .arg(flag("read-only", "With --blk-file: the guest may only read"))
        .arg(
            each(
                "overlay",
                "STORE",
                "With --blk-file: the guest writes this store, which is made where missing, \
                     and the file stays as it is",
            )
            .value_parser(path()),
        )
        .arg(
            each(
                "socket-path",
                "PATH",
                "Create the socket here that the front-end (QEMU, say) connects to",
            )
            .value_parser(path()),
        )
        .arg(
            each("fd", "N", "Use this inherited socket: listening, or a front-end's connection")
                .value_parser(value_parser!(i32).range(0..)),
        )
        .arg(
            each("num-queues", "N", "Virtqueues [default: one a processor, 16 at most]")
                .value_parser(value_parser!(u16).range(1..=i64::from(MAX_QUEUES))),
        )
        .arg(
            each(
                "on-full",
                "fail|wait=30s",
                "Where a write finds no room, in a store or below a plain disk, let it fail, or \
                     wait this long for room (ms, s or m) [default: fail]",
            )
            .value_parser(on_full),
        )
        .arg(
            each(
                "guest-agent",
                "SOCKET",
                "Before a snapshot, let the guest freeze its file systems, through this socket \
                     of its agent (QEMU's for qemu-guest-agent)",
            )
            .value_parser(path()),
        )
        .arg(flag(
            "poll",
            "Never sleep while a front-end is connected: a core for each queue, and the \
                 shortest way for each request",
        ))
}

impl Args for Serve {
    fn augment_args(command: Command) -> Command {
        disks(settings(command)).next_help_heading(None::<&str>)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Serve::augment_args(command)
    }
}

/// A path that can be used in tables, the state file and the monitor.
fn text_path(path: PathBuf) -> Result<PathBuf, &'static str> {
    match path.to_str() {
        Some(_) => Ok(path),
        None => Err("names of files must be UTF-8, since tables are text; rename it, or give a \
                     link to it that is"),
    }
}

impl FromArgMatches for Serve {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Serve, Error> {
        let config: Option<PathBuf> = matches.get_one("config").cloned();
        let monitor: Option<PathBuf> = matches.get_one("monitor").cloned();
        let table_memory: Option<u64> = matches.get_one("table-memory").copied();
        let table_dir: Option<PathBuf> = matches.get_one("table-dir").cloned();
        let flush_interval = matches.get_one("flush-interval").copied();
        let known = config.is_some() || monitor.is_some();
        let groups = groups(matches);
        if groups.is_empty() && !known {
            return Err(usage(
                ErrorKind::MissingRequiredArgument,
                "there is nothing to serve: give --blk-file, --table, --config or --monitor",
            ));
        }
        let disks = groups
            .iter()
            .map(|group| group.disk(matches, config.is_some()))
            .collect::<Result<Vec<Disk>, Error>>()?;
        for (at, disk) in disks.iter().enumerate() {
            if disks[..at].iter().any(|earlier| earlier.name == disk.name) {
                let name = &disk.name;
                return Err(conflict(format!("two disks are called '{name}'; give them names")));
            }
        }
        if table_dir.is_some() && table_memory.is_none() && config.is_none() {
            return Err(conflict("--table-dir is given without --table-memory".into()));
        }
        // Whichever disk it is given after, it is the process's.
        let mut states = matches.get_many("state").unwrap_or_default();
        let state: Option<PathBuf> = states.next().cloned();
        if states.any(|other| Some(other) != state.as_ref()) {
            return Err(conflict("a process has one state file; give --state once".into()));
        }
        let force = matches.get_many::<bool>("force").is_some_and(|given| given.len() > 0);
        Ok(Serve { config, monitor, table_memory, table_dir, flush_interval, state, force, disks })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Serve::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The options of one disk: those at these positions of the command line.
#[derive(Debug)]
struct Group {
    name: String,
    from: usize,
    to: usize,
}

/// The groups in order. Options before the first `--name` form a group if there are any.
fn groups(matches: &ArgMatches) -> Vec<Group> {
    const OF_A_DISK: [&str; 10] = [
        "table",
        "blk-file",
        "read-only",
        "overlay",
        "socket-path",
        "fd",
        "num-queues",
        "on-full",
        "guest-agent",
        "poll",
    ];
    let names: Vec<&String> = matches.get_many("name").unwrap_or_default().collect();
    let starts: Vec<usize> = matches.indices_of("name").unwrap_or_default().collect();
    let first = starts.first().copied().unwrap_or(usize::MAX);
    let mut groups = Vec::new();
    let unnamed = |id| matches.indices_of(id).unwrap_or_default().any(|at| at < first);
    if OF_A_DISK.into_iter().any(unnamed) {
        groups.push(Group { name: DEFAULT_NAME.to_owned(), from: 0, to: first });
    }
    for (at, name) in names.into_iter().enumerate() {
        let to = starts.get(at + 1).copied().unwrap_or(usize::MAX);
        groups.push(Group { name: name.clone(), from: starts[at], to });
    }
    groups
}

impl Group {
    /// All values of an option in this group.
    fn all<T: Clone + Send + Sync + 'static>(&self, matches: &ArgMatches, id: &str) -> Vec<T> {
        let places = matches.indices_of(id).unwrap_or_default();
        let values = matches.get_many::<T>(id).unwrap_or_default();
        places
            .zip(values)
            .filter(|(at, _)| (self.from..self.to).contains(at))
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// The value of an option that is allowed once per disk.
    fn one<T: Clone + Send + Sync + 'static>(
        &self,
        matches: &ArgMatches,
        id: &str,
    ) -> Result<Option<T>, Error> {
        let mut all = self.all(matches, id);
        if all.len() > 1 {
            let name = &self.name;
            return Err(conflict(format!("--{id} is given more than once for disk '{name}'")));
        }
        Ok(all.pop())
    }

    fn disk(&self, matches: &ArgMatches, config: bool) -> Result<Disk, Error> {
        let (path, fd) = (self.one(matches, "socket-path")?, self.one(matches, "fd")?);
        let socket = socket_of(path, fd).map_err(|what| self.wrong(what))?;
        Ok(Disk {
            name: self.name.clone(),
            source: self.source(matches, config)?,
            socket,
            num_queues: self.one(matches, "num-queues")?,
            on_full: self.one(matches, "on-full")?,
            guest_agent: self.one(matches, "guest-agent")?,
            poll: self.one::<bool>(matches, "poll")?.is_some(),
        })
    }

    fn source(&self, matches: &ArgMatches, config: bool) -> Result<SourceOptions, Error> {
        let source = SourceOptions {
            table: self.all(matches, "table"),
            blk_file: self.one(matches, "blk-file")?,
            read_only: self.one::<bool>(matches, "read-only")?.is_some(),
            overlay: self.one(matches, "overlay")?,
        };
        let checked = if config { source.check() } else { source.resolved().map(drop) };
        checked.map_err(|what| self.wrong(what))?;
        Ok(source)
    }

    fn wrong(&self, what: &str) -> Error {
        conflict(format!("disk '{}' {what}", self.name))
    }
}

fn conflict(message: String) -> Error {
    usage(ErrorKind::ArgumentConflict, &message)
}

fn usage(kind: ErrorKind, message: &str) -> Error {
    // Formatted here, because clap would otherwise show the usage of the whole program.
    let mut command = Serve::augment_args(Command::new("serve").bin_name("snapblk serve"));
    Error::raw(kind, message).format(&mut command)
}
