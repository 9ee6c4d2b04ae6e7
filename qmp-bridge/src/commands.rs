//! The commands that are served: one registration each, which defines the check of the arguments,
//! their decoding, `query-commands` and `query-qmp-schema`.
//!
//! Owns names, and the types of each command's arguments and result. Never knows what a command
//! does. A command that is not registered does not exist for clients.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;
use snapblk_store::control::CommandError;
use snapblk_store::control::answer::{BlockExportInfo, DeviceInfo, Resumption};
use snapblk_store::control::command::{Command, Nothing};
use snapblk_store::control::job::{BlockJobSetSpeed, JobCommand, JobId, JobInfo, JobVerb};
use snapblk_store::control::shape::{Described, Shape};
use snapblk_store::{choice, record};

use crate::check::check;
use crate::schema::SchemaInfo;

/// A decoded command, by the part that carries it out.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// The session.
    Session(SessionCommand),
    /// The job registry.
    Job(JobCommand),
    /// The handler.
    Handler(Command),
}

/// The commands that a session answers itself.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionCommand {
    /// `qmp_capabilities`
    Capabilities(QmpCapabilities),
    /// `query-version`
    Version,
    /// `query-status`
    Status,
    /// `query-commands`
    Commands,
    /// `query-qmp-schema`
    Schema,
}

choice! {
    /// The capabilities that a client may enable.
    pub enum QmpCapability {
        /// Commands that may be executed out of band.
        Oob = "oob",
    }
}

record! {
    /// Arguments of `qmp_capabilities`.
    pub struct QmpCapabilities {
        /// The capabilities to enable.
        enable: Option<Vec<QmpCapability>>,
    }
}

record! {
    /// A version.
    pub struct VersionTriple {
        /// Incremented for incompatible changes.
        major: u32,
        /// Incremented for features.
        minor: u32,
        /// Incremented for corrections.
        micro: u32,
    }
}

record! {
    /// The result of `query-version`.
    pub struct VersionInfo {
        /// The program's version; clients of QEMU expect it under this name.
        qemu: VersionTriple,
        /// The program's name and version.
        package: String,
    }
}

choice! {
    /// Whether the process serves (the values of QEMU's `RunState` that are possible here).
    pub enum RunState {
        /// It does.
        Running = "running",
        /// It is about to stop.
        Shutdown = "shutdown",
    }
}

record! {
    /// The result of `query-status`.
    pub struct StatusInfo {
        /// Whether it serves.
        running: bool,
        /// The same as an enumeration.
        status: RunState,
    }
}

record! {
    /// An element of the result of `query-commands`.
    pub struct CommandInfo {
        /// The command.
        name: String,
    }
}

/// The definition of a command.
pub struct Registration {
    /// Its name.
    pub name: &'static str,
    /// Its arguments: a record or a union.
    pub arguments: Shape,
    /// Its result.
    pub returns: Shape,
    /// Whether it may be executed out of band (`exec-oob`): only a command that never waits.
    pub out_of_band: bool,
    decode: Box<dyn Fn(Value) -> serde_json::Result<Call> + Send + Sync>,
}

impl Registration {
    /// A command with arguments `A` and result `R`.
    fn new<A, R>(name: &'static str, call: impl Fn(A) -> Call + Send + Sync + 'static) -> Self
    where
        A: Described + DeserializeOwned,
        R: Described,
    {
        Registration {
            name,
            arguments: A::shape(),
            returns: R::shape(),
            out_of_band: false,
            decode: Box::new(move |value| serde_json::from_value(value).map(&call)),
        }
    }

    fn out_of_band(self) -> Self {
        Registration { out_of_band: true, ..self }
    }

    /// The call with `arguments`, which are checked first.
    pub fn decode(&self, arguments: Value) -> Result<Call, CommandError> {
        check(&arguments, &self.arguments)?;
        (self.decode)(arguments).map_err(|error| CommandError::generic(error.to_string()))
    }
}

/// A command that the handler carries out.
fn handled<A, R>(name: &'static str, command: fn(A) -> Command) -> Registration
where
    A: Described + DeserializeOwned + 'static,
    R: Described,
{
    Registration::new::<A, R>(name, move |arguments| Call::Handler(command(arguments)))
}

/// A verb of a job. Its driver may wait, for a suspend or for workers.
fn verb(name: &'static str, verb: JobVerb) -> Registration {
    Registration::new::<JobId, Nothing>(name, move |JobId { id }| {
        Call::Job(JobCommand::Tell { verb, id })
    })
}

/// A query that the session answers.
fn question<R: Described>(name: &'static str, command: SessionCommand) -> Registration {
    Registration::new::<Nothing, R>(name, move |Nothing {}| Call::Session(command.clone()))
        .out_of_band()
}

/// The commands that are served.
fn served() -> Vec<Registration> {
    vec![
        Registration::new::<_, Nothing>("qmp_capabilities", |enable| {
            Call::Session(SessionCommand::Capabilities(enable))
        }),
        question::<VersionInfo>("query-version", SessionCommand::Version),
        question::<StatusInfo>("query-status", SessionCommand::Status),
        question::<Vec<CommandInfo>>("query-commands", SessionCommand::Commands),
        question::<Vec<SchemaInfo>>("query-qmp-schema", SessionCommand::Schema),
        Registration::new::<_, Vec<JobInfo>>("query-jobs", |Nothing {}| {
            Call::Job(JobCommand::Query)
        })
        .out_of_band(),
        verb("job-pause", JobVerb::Pause),
        verb("job-resume", JobVerb::Resume),
        verb("job-cancel", JobVerb::Cancel),
        verb("job-complete", JobVerb::Complete),
        verb("job-finalize", JobVerb::Finalize),
        verb("job-dismiss", JobVerb::Dismiss).out_of_band(),
        Registration::new::<BlockJobSetSpeed, Nothing>("block-job-set-speed", |arguments| {
            Call::Job(JobCommand::SetSpeed(arguments))
        }),
        handled::<_, Nothing>("device-create", Command::DeviceCreate),
        handled::<_, Nothing>("device-remove", Command::DeviceRemove),
        handled::<_, Nothing>("table-load", Command::TableLoad),
        handled::<_, Nothing>("table-clear", Command::TableClear),
        handled::<_, Nothing>("device-suspend", Command::DeviceSuspend),
        handled::<_, Resumption>("device-resume", Command::DeviceResume),
        handled::<_, String>("device-message", Command::DeviceMessage),
        handled::<_, Vec<DeviceInfo>>("query-devices", Command::QueryDevices),
        handled::<_, Nothing>("snapshot-create", Command::SnapshotCreate),
        handled::<_, Nothing>("snapshot-merge", Command::SnapshotMerge),
        handled::<_, Nothing>("snapshot-delete", Command::SnapshotDelete),
        handled::<_, Nothing>("block_resize", Command::BlockResize),
        handled::<_, Nothing>("block-set-write-threshold", Command::BlockSetWriteThreshold),
        handled::<_, Nothing>("blockdev-snapshot-sync", Command::BlockdevSnapshotSync),
        handled::<_, Nothing>("transaction", Command::Transaction),
        handled::<_, Nothing>("block-commit", Command::BlockCommit),
        handled::<_, Nothing>("block-export-add", Command::BlockExportAdd),
        handled::<_, Nothing>("block-export-del", Command::BlockExportDel),
        handled::<_, Vec<BlockExportInfo>>("query-block-exports", |Nothing {}| {
            Command::QueryBlockExports
        }),
        handled::<_, Nothing>("quit", |Nothing {}| Command::Quit),
    ]
}

/// The table of commands.
pub struct Commands {
    by_name: BTreeMap<&'static str, Registration>,
}

impl Default for Commands {
    fn default() -> Self {
        Commands::new(served())
    }
}

impl Commands {
    /// A table of these commands; the later one of two with the same name.
    pub fn new(registrations: impl IntoIterator<Item = Registration>) -> Self {
        let by_name = registrations.into_iter().map(|command| (command.name, command)).collect();
        Commands { by_name }
    }

    /// The command `name`.
    pub fn get(&self, name: &str) -> Option<&Registration> {
        self.by_name.get(name)
    }

    /// All commands, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Registration> {
        self.by_name.values()
    }
}

#[cfg(test)]
mod tests;
