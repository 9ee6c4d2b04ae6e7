//! The interface of a running process: commands, answers, errors and events as plain data.
//!
//! Owns the vocabulary of the monitor (`docs/monitor.md`; QEMU's QAPI where they share a name): every
//! argument with its type, unit and wire name, written once; [`shape`] derives the rest (checks,
//! introspection) from it. Never knows how a command is transmitted or encoded, which commands are served, or how one is carried
//! out. Sizes and offsets are bytes, paths are relative to the server's working directory.

pub mod answer;
pub mod command;
pub mod event;
pub mod job;
pub mod shape;

pub use answer::Answer;
pub use command::Command;
pub use event::Event;

crate::choice! {
    /// The kind of an error; the sentence beside it has all details.
    pub enum ErrorClass {
        /// The command does not exist, or is not allowed now.
        CommandNotFound = "CommandNotFound",
        /// No device has that name.
        DeviceNotFound = "DeviceNotFound",
        /// The device exists, but has no table, or must not be suspended.
        DeviceNotActive = "DeviceNotActive",
        /// Any other error.
        GenericError = "GenericError",
    }
}

/// Why a command was not carried out. It changed nothing, but for the cases in `docs/monitor.md`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct CommandError {
    /// The kind, for programs.
    pub class: ErrorClass,
    /// One sentence for users: what was wrong, and what to do.
    pub desc: String,
}

impl CommandError {
    /// An error of class `GenericError`.
    pub fn generic(desc: impl Into<String>) -> Self {
        CommandError { class: ErrorClass::GenericError, desc: desc.into() }
    }

    /// No device is called `name`.
    pub fn device_not_found(name: &str) -> Self {
        CommandError {
            class: ErrorClass::DeviceNotFound,
            desc: format!("Device '{name}' not found"),
        }
    }

    /// There is no such command.
    pub fn command_not_found(desc: impl Into<String>) -> Self {
        CommandError { class: ErrorClass::CommandNotFound, desc: desc.into() }
    }
}
