//! `snapblk ctl MONITOR <verb> …`: the monitor on the command line.
//!
//! Owns the words of the command line, one verb for each of the monitor's commands, and how
//! answers are shown. Never knows what a command does: it talks to the monitor like any other
//! client, and its errors are the monitor's sentences.

mod follow;
mod jobs;
mod render;
pub mod size;
mod transaction;
mod verb;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};
use snapblk_qmp::client::{Client, ClientError};
use snapblk_qmp::server::MAX_CLIENTS;
use snapblk_store::control::answer::{BlockExportInfo, DeviceInfo};
use snapblk_store::control::job::JobInfo;

pub use verb::Verb;

/// Control a running server
///
/// Files are named as the server finds them, from the directory that it was started in; those of
/// '@FILE' alone are read here. Sizes take K, M, G and T.
#[derive(clap::Args, Debug)]
pub struct CtlArgs {
    /// The monitor's socket, as given to `snapblk serve --monitor`
    pub monitor: PathBuf,

    /// Print what the monitor answers, as JSON, one value a line
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// Why a verb was not carried out.
#[derive(Debug, thiserror::Error)]
enum CtlError {
    /// Nothing listens there, or access is denied.
    #[error(
        "monitor {path:?} cannot be reached: {source}; is `snapblk serve --monitor {shown}` running?",
        shown = path.display()
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: ClientError,
    },
    /// It hung up instead of a greeting.
    #[error(
        "monitor {path:?} closed the connection without a greeting: it serves {MAX_CLIENTS} clients \
         at a time, and as many are connected, or it is just ending; end one of them and try again"
    )]
    TurnedAway {
        /// The socket.
        path: PathBuf,
    },
    /// The monitor's own sentence, or an error of the connection.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// A file named on the command line cannot be read.
    #[error("table file {path:?} cannot be read: {source}")]
    TableFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// An awaited job failed.
    #[error("job '{id}' {what}")]
    Job {
        /// The job.
        id: String,
        /// Its result.
        what: String,
    },
    /// The events that were followed may not be all.
    #[error(
        "the monitor closed the connection without the event SHUTDOWN: the server was killed, or \
         events were not read in time and are lost; `status` tells whether it runs"
    )]
    Lost,
    /// Standard output cannot be written.
    #[error("the answer cannot be printed: {0}")]
    Output(#[from] io::Error),
}

/// Carries a verb out. 0: done; 1: not done, with one sentence on standard error.
pub fn run(args: &CtlArgs) -> ExitCode {
    let mut out = io::stdout().lock();
    match carry_out(args, &mut out).and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has gone.
        Err(CtlError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("snapblk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(args: &CtlArgs, out: &mut impl Write) -> Result<(), CtlError> {
    // Wrong arguments are reported before anything is connected or changed.
    let request = args.verb.request()?;
    let path = || args.monitor.clone();
    let mut client = Client::connect(&args.monitor).map_err(|error| match error {
        ClientError::HungUp => CtlError::TurnedAway { path: path() },
        source => CtlError::Unreachable { path: path(), source },
    })?;
    match &args.verb {
        Verb::Status => return status(args.json, &mut client, out),
        Verb::Watch => {
            let bars = !args.json && io::stderr().is_terminal();
            return follow::watch(&mut client, args.json, bars, out);
        }
        Verb::Wait { job, complete } => {
            return follow::wait(&mut client, job, *complete, args.json, out);
        }
        _ => {}
    }
    let answer = client.call(request.command, request.arguments)?;
    let begun = match &args.verb {
        Verb::Merge(merge) => Some((merge.job(), merge.wait, merge.hint())),
        Verb::Commit(commit) => Some((commit.job(), commit.wait, commit.hint())),
        _ => None,
    };
    if let Some((job, wait, hint)) = begun {
        if wait {
            return follow::wait(&mut client, &job, true, args.json, out);
        }
        if !args.json {
            writeln!(out, "job {job} has begun; {hint}")?;
            return Ok(());
        }
    }
    if args.json {
        writeln!(out, "{answer}")?;
        return Ok(());
    }
    show(&args.verb, answer, out)
}

/// Prints an answer for the user; nothing if it is empty.
fn show(verb: &Verb, answer: Value, out: &mut impl Write) -> Result<(), CtlError> {
    match verb {
        Verb::Devices { .. } => render::devices(&decode::<Vec<DeviceInfo>>(answer)?, out)?,
        Verb::Table { device: None, .. } => render::tables(&decode::<Vec<_>>(answer)?, out)?,
        Verb::Table { .. } => render::lines(&decode::<Vec<_>>(answer)?, out)?,
        Verb::Exports => render::exports(&decode::<Vec<BlockExportInfo>>(answer)?, out)?,
        Verb::Jobs => render::jobs(&decode::<Vec<JobInfo>>(answer)?, out)?,
        Verb::QueryStatus => {
            let status = answer.get("status").and_then(Value::as_str).unwrap_or_default();
            writeln!(out, "{status}")?;
        }
        Verb::Version => {
            let package = answer.get("package").and_then(Value::as_str).unwrap_or_default();
            writeln!(out, "{package}")?;
        }
        Verb::Commands => render::names(&answer, out)?,
        Verb::Schema => writeln!(out, "{answer:#}")?,
        Verb::Resume { .. } => {
            if let Some(warning) = answer.get("warning").and_then(Value::as_str) {
                eprintln!("snapblk: {warning}");
            }
        }
        Verb::Message { .. } => {
            if let Some(text) = answer.as_str().filter(|text| !text.is_empty()) {
                writeln!(out, "{text}")?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Devices, exports and jobs in one view.
fn status(json: bool, client: &mut Client, out: &mut impl Write) -> Result<(), CtlError> {
    let nothing = || json!({});
    if json {
        let status = json!({
            "devices": client.call("query-devices", nothing())?,
            "exports": client.call("query-block-exports", nothing())?,
            "jobs": client.call("query-jobs", nothing())?,
        });
        writeln!(out, "{status}")?;
        return Ok(());
    }
    render::devices(&client.ask::<Vec<DeviceInfo>>("query-devices", nothing())?, out)?;
    writeln!(out)?;
    render::exports(&client.ask::<Vec<BlockExportInfo>>("query-block-exports", nothing())?, out)?;
    writeln!(out)?;
    render::jobs(&client.ask::<Vec<JobInfo>>("query-jobs", nothing())?, out)?;
    Ok(())
}

fn decode<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, ClientError> {
    serde_json::from_value(answer).map_err(|error| ClientError::Protocol(error.to_string()))
}

#[cfg(test)]
mod tests;
