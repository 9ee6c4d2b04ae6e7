//! One client's conversation: greeting, negotiation, commands and their replies.
//!
//! Owns the envelope of a message (`execute`, `arguments`, `id`), the commands allowed before and
//! after the negotiation, and the form of errors. Never knows threads or sockets; the effect of
//! commands belongs to the [`Handler`], that of job commands to [`Jobs`]. Sentences about the
//! envelope are QEMU's own, because clients show them to users.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use serde::Serialize;
use serde_json::{Map, Value};
use snapblk_store::control::{Answer, Command, CommandError};

use crate::commands::{
    Call, CommandInfo, Commands, QmpCapabilities, QmpCapability, RunState, SessionCommand,
    StatusInfo, VersionInfo, VersionTriple,
};
use crate::events::Events;
use crate::jobs::Jobs;
use crate::schema::{SchemaInfo, schema};
use crate::wire::ParseError;

/// Carries commands out. Called by the threads of several clients at once.
pub trait Handler: Send + Sync {
    /// Carries `command` out completely or not at all, and returns then.
    fn execute(&self, command: Command) -> Result<Answer, CommandError>;
}

/// The state shared by all sessions of a process.
pub struct Monitor {
    commands: Commands,
    handler: Arc<dyn Handler>,
    jobs: Arc<Jobs>,
    events: Arc<Events>,
    stopping: AtomicBool,
}

impl Monitor {
    /// A monitor that serves `commands`.
    pub fn new(commands: Commands, handler: Arc<dyn Handler>, jobs: Arc<Jobs>) -> Arc<Self> {
        let events = jobs.events().clone();
        Arc::new(Monitor { commands, handler, jobs, events, stopping: AtomicBool::new(false) })
    }

    /// The source of events.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// From now on `query-status` says that the process is about to stop.
    pub fn announce_stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

/// The state of the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Mode {
    /// Only `qmp_capabilities` is allowed.
    Negotiation = 0,
    /// All commands.
    Command = 1,
    /// All commands, some of them possibly out of band.
    OutOfBand = 2,
}

/// A reply, as printed.
#[derive(Debug, Serialize)]
pub struct Reply {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Value>,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Return(Returned),
    Error { class: &'static str, desc: String },
}

/// The result of a command.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Returned {
    Answer(Answer),
    Version(VersionInfo),
    Status(StatusInfo),
    Commands(Vec<CommandInfo>),
    Schema(Vec<SchemaInfo>),
}

/// The first message to a client.
#[derive(Debug, Serialize)]
pub struct Greeting {
    #[serde(rename = "QMP")]
    qmp: Offer,
}

#[derive(Debug, Serialize)]
struct Offer {
    version: VersionInfo,
    capabilities: Vec<QmpCapability>,
}

/// One client's conversation.
pub struct Session {
    monitor: Arc<Monitor>,
    mode: AtomicU8,
}

impl Session {
    /// A new conversation.
    pub fn new(monitor: Arc<Monitor>) -> Self {
        Session { monitor, mode: AtomicU8::new(Mode::Negotiation as u8) }
    }

    /// The first message for the client.
    pub fn greeting(&self) -> Greeting {
        let offer = Offer { version: version(), capabilities: vec![QmpCapability::Oob] };
        Greeting { qmp: offer }
    }

    /// Whether the client gets events: after the negotiation.
    pub fn is_negotiated(&self) -> bool {
        self.mode() != Mode::Negotiation
    }

    /// Whether the client has enabled out-of-band execution.
    pub fn is_out_of_band(&self) -> bool {
        self.mode() == Mode::OutOfBand
    }

    /// Whether `message` is to be executed before earlier messages.
    pub fn overtakes(&self, message: &Value) -> bool {
        self.is_out_of_band()
            && message.get("exec-oob").is_some()
            && message.get("execute").is_none()
    }

    /// The reply to input that is not JSON.
    pub fn refuse(&self, error: &ParseError) -> Reply {
        Reply::new(None, Err(CommandError::generic(error.to_string())))
    }

    /// Carries out the command in `message`, and returns the reply.
    pub fn answer(&self, message: Value) -> Reply {
        let Value::Object(mut message) = message else {
            let error = CommandError::generic("QMP input must be a JSON object");
            return Reply::new(None, Err(error));
        };
        let id = message.remove("id");
        Reply::new(id, self.decode(message).and_then(|call| self.carry_out(call)))
    }

    fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Acquire) {
            0 => Mode::Negotiation,
            1 => Mode::Command,
            _ => Mode::OutOfBand,
        }
    }

    /// The command in a message, without its id.
    fn decode(&self, mut message: Map<String, Value>) -> Result<Call, CommandError> {
        let mode = self.mode();
        let verb = executing_member(&message, mode == Mode::OutOfBand)?;
        let name = match message.remove(verb) {
            Some(Value::String(name)) => name,
            _ => String::new(),
        };
        match (mode, name.as_str()) {
            (Mode::Negotiation, "qmp_capabilities") => {}
            (Mode::Negotiation, _) => {
                return Err(CommandError::command_not_found(
                    "Expecting capabilities negotiation with 'qmp_capabilities'",
                ));
            }
            (_, "qmp_capabilities") => {
                return Err(CommandError::command_not_found(
                    "Capabilities negotiation is already complete, command ignored",
                ));
            }
            _ => {}
        }
        let command = self.monitor.commands.get(&name).ok_or_else(|| {
            CommandError::command_not_found(format!("The command {name} has not been found"))
        })?;
        if verb == "exec-oob" && !command.out_of_band {
            let desc = format!("The command {name} does not support OOB");
            return Err(CommandError::generic(desc));
        }
        let arguments = message.remove("arguments").unwrap_or_else(|| Map::new().into());
        command.decode(arguments)
    }

    fn carry_out(&self, call: Call) -> Result<Returned, CommandError> {
        match call {
            Call::Session(command) => self.own(command),
            Call::Job(command) => self.monitor.jobs.execute(&command).map(Returned::Answer),
            Call::Handler(command) => {
                // A panic in one command must not end the conversation, or the process.
                catch_unwind(AssertUnwindSafe(|| self.monitor.handler.execute(command)))
                    .unwrap_or_else(|_| {
                        Err(CommandError::generic(
                            "Internal error: the command was not carried out to its end, \
                             please report what the log says",
                        ))
                    })
                    .map(Returned::Answer)
            }
        }
    }

    fn own(&self, command: SessionCommand) -> Result<Returned, CommandError> {
        Ok(match command {
            SessionCommand::Capabilities(QmpCapabilities { enable }) => {
                let enable = enable.unwrap_or_default();
                let mode = if enable.contains(&QmpCapability::Oob) {
                    Mode::OutOfBand
                } else {
                    Mode::Command
                };
                self.mode.store(mode as u8, Ordering::Release);
                Returned::Answer(Answer::DONE)
            }
            SessionCommand::Version => Returned::Version(version()),
            SessionCommand::Status => {
                let stopping = self.monitor.stopping.load(Ordering::Relaxed);
                let status = if stopping { RunState::Shutdown } else { RunState::Running };
                Returned::Status(StatusInfo { running: !stopping, status })
            }
            SessionCommand::Commands => Returned::Commands(
                self.monitor
                    .commands
                    .iter()
                    .map(|command| CommandInfo { name: command.name.to_owned() })
                    .collect(),
            ),
            SessionCommand::Schema => Returned::Schema(schema(&self.monitor.commands)),
        })
    }
}

impl Reply {
    fn new(id: Option<Value>, result: Result<Returned, CommandError>) -> Self {
        let outcome = match result {
            Ok(returned) => Outcome::Return(returned),
            Err(CommandError { class, desc }) => Outcome::Error { class: class.as_str(), desc },
        };
        Reply { id, outcome }
    }
}

/// The member that names the command, if all members of the message, without its id, are known and
/// of the right type.
fn executing_member(
    message: &Map<String, Value>,
    out_of_band: bool,
) -> Result<&'static str, CommandError> {
    let mut verb = None;
    for (key, value) in message {
        let found = match key.as_str() {
            "execute" => "execute",
            "exec-oob" if out_of_band => "exec-oob",
            "arguments" if value.is_object() => continue,
            "arguments" => {
                return Err(CommandError::generic(
                    "QMP input member 'arguments' must be an object",
                ));
            }
            _ => {
                let desc = format!("QMP input member '{key}' is unexpected");
                return Err(CommandError::generic(desc));
            }
        };
        if !value.is_string() {
            let desc = format!("QMP input member '{key}' must be a string");
            return Err(CommandError::generic(desc));
        }
        if let Some(other) = verb.replace(found) {
            let desc = format!("QMP input member '{found}' clashes with '{other}'");
            return Err(CommandError::generic(desc));
        }
    }
    verb.ok_or_else(|| CommandError::generic("QMP input lacks member 'execute'"))
}

/// The program's version.
fn version() -> VersionInfo {
    let number = |text: &str| text.parse().unwrap_or(0);
    VersionInfo {
        qemu: VersionTriple {
            major: number(env!("CARGO_PKG_VERSION_MAJOR")),
            minor: number(env!("CARGO_PKG_VERSION_MINOR")),
            micro: number(env!("CARGO_PKG_VERSION_PATCH")),
        },
        package: concat!("snapblk ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

#[cfg(test)]
mod tests;
