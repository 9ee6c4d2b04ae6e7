//! `--config FILE.toml`: the configuration from a file.
//!
//! Owns the file's keys, which are the options' names, and how the file is combined with the
//! command line: the command line wins, disk by disk and key by key; disks that it does not name
//! come after those that it does. Never serves anything.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use snapblk_store::lines::{MOST_SAID, shown};

use super::{Disk, OnFull, Serve, SourceOptions, flush_interval, on_full, socket_of, table_memory};
use crate::cli::CliError;
use crate::server::MAX_QUEUES;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    monitor: Option<PathBuf>,
    table_memory: Option<Value>,
    table_dir: Option<PathBuf>,
    flush_interval: Option<Value>,
    state: Option<PathBuf>,
    #[serde(default)]
    force: bool,
    #[serde(default)]
    disk: Vec<FileDisk>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct FileDisk {
    name: Option<String>,
    table: Option<Lines>,
    blk_file: Option<PathBuf>,
    #[serde(default)]
    read_only: bool,
    overlay: Option<PathBuf>,
    socket_path: Option<PathBuf>,
    fd: Option<i32>,
    num_queues: Option<i64>,
    #[serde(default)]
    poll: bool,
    on_full: Option<String>,
    guest_agent: Option<PathBuf>,
}

/// An option's value, as text or as a number.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a number")]
enum Value {
    Text(String),
    Number(i64),
}

impl Value {
    fn text(self) -> String {
        match self {
            Value::Text(text) => text,
            Value::Number(number) => number.to_string(),
        }
    }
}

/// A table: one line, or several.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
enum Lines {
    One(String),
    Several(Vec<String>),
}

impl Lines {
    fn all(self) -> Vec<String> {
        match self {
            Lines::One(line) => vec![line],
            Lines::Several(lines) => lines,
        }
    }
}

impl Serve {
    /// The command line combined with the configuration file.
    ///
    /// # Errors
    /// The file cannot be read, or its content is not valid.
    pub fn with_file(&self) -> Result<Serve, CliError> {
        let Some(path) = &self.config else { return Ok(self.clone()) };
        let text = std::fs::read_to_string(path).map_err(CliError::io("read", path))?;
        self.joined(path, &text)
    }

    pub(super) fn joined(&self, path: &Path, text: &str) -> Result<Serve, CliError> {
        // What it says of the file may be most of the file.
        let wrong = |why: String| {
            CliError::Usage(format!("{}: {}", path.display(), shown(&why, MOST_SAID)))
        };
        let file: File = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = text.get(..start).map_or(0, |before| before.matches('\n').count()) + 1;
            wrong(format!("line {line}: {}", error.message().replace('\n', "; ")))
        })?;
        let mut disks = Vec::new();
        for disk in file.disk {
            let disk = disk.read().map_err(wrong)?;
            if disks.iter().any(|other: &Disk| other.name == disk.name) {
                return Err(wrong(format!(
                    "two disks are called '{}'; give them names",
                    disk.name
                )));
            }
            disks.push(disk);
        }
        let mut serve = self.clone();
        serve.monitor = serve.monitor.or(file.monitor);
        let known = file.table_memory.map(|value| table_memory(&value.text()));
        let known = known.transpose().map_err(wrong)?;
        serve.table_memory = serve.table_memory.or(known);
        serve.table_dir = serve.table_dir.or(file.table_dir);
        serve.state = serve.state.or(file.state);
        serve.force |= file.force;
        let known = file.flush_interval.map(|value| flush_interval(&value.text())).transpose();
        serve.flush_interval = serve.flush_interval.or(known.map_err(wrong)?);
        if serve.table_dir.is_some() && serve.table_memory.is_none() {
            return Err(wrong("table-dir is given without table-memory".into()));
        }
        for disk in &mut serve.disks {
            let at = disks.iter().position(|known| known.name == disk.name);
            let name = disk.name.clone();
            match at.map(|at| disks.remove(at)) {
                Some(known) => disk.fill_in(known),
                None if disk.source.are_open() => {
                    return Err(wrong(format!("there is no disk '{name}' in it")));
                }
                None => {}
            }
            disk.source.resolved().map_err(|what| {
                wrong(format!("disk '{name}', of this file and of the command line, {what}"))
            })?;
        }
        for disk in &disks {
            disk.source.resolved().map_err(|what| wrong(of_the_file(&disk.name, what)))?;
        }
        serve.disks.append(&mut disks);
        if serve.disks.is_empty() && serve.monitor.is_none() {
            return Err(wrong("there is nothing to serve: give a [[disk]] or a monitor".into()));
        }
        Ok(serve)
    }
}

/// A sentence about a disk of the file, whose keys are the options without their dashes.
fn of_the_file(name: &str, what: &str) -> String {
    format!("disk '{name}' {}", what.replace("--", ""))
}

impl FileDisk {
    fn read(self) -> Result<Disk, String> {
        let name = self.name.unwrap_or_else(|| super::DEFAULT_NAME.to_owned());
        let of = |what: &str| of_the_file(&name, what);
        let source = SourceOptions {
            table: self.table.map(Lines::all).unwrap_or_default(),
            blk_file: self.blk_file,
            read_only: self.read_only,
            overlay: self.overlay,
        };
        source.check().map_err(of)?;
        // With the option's error message.
        let queues = |given: i64| match u16::try_from(given) {
            Ok(queues @ 1..=MAX_QUEUES) => Ok(queues),
            _ => Err(format!(
                "invalid value '{given}' for 'num-queues' of disk '{name}': {given} is not in \
                 1..={MAX_QUEUES}"
            )),
        };
        let num_queues = self.num_queues.map(queues).transpose()?;
        let on_full: Option<OnFull> = self.on_full.as_deref().map(on_full).transpose()?;
        Ok(Disk {
            source,
            socket: socket_of(self.socket_path, self.fd).map_err(of)?,
            num_queues,
            poll: self.poll,
            on_full,
            guest_agent: self.guest_agent,
            name,
        })
    }
}

impl Disk {
    /// Takes the settings that this does not have from `known`.
    fn fill_in(&mut self, known: Disk) {
        self.source.fill_in(known.source);
        self.socket = self.socket.take().or(known.socket);
        self.num_queues = self.num_queues.or(known.num_queues);
        self.poll |= known.poll;
        self.on_full = self.on_full.or(known.on_full);
        self.guest_agent = self.guest_agent.take().or(known.guest_agent);
    }
}
