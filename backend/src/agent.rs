//! Guests' agents (qemu-guest-agent), as far as freezing goes: a guest's file systems are frozen
//! while its disk is suspended.
//!
//! Owns the freeze of a guest from the request to the thaw. Never knows which disk it is for.
//! Keeps that every requested freeze is followed by a thaw: when its [`Frozen`] is dropped, at the
//! latest [`FROZEN`] after the request, and also if the request failed. A thread per freeze
//! ensures this, whatever happens to the command.

mod line;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use line::Line;

/// The time limit for an agent's answers, except to a freeze, which takes as long as the guest's
/// writes before it.
pub const ANSWER: Duration = Duration::from_secs(5);

/// The longest freeze of a guest, from its request. Anything that still needs it then is abandoned.
pub const FROZEN: Duration = Duration::from_secs(10);

/// Why a guest is not frozen.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nothing answers at the socket.
    #[error("cannot connect to the guest agent at {}: {source}; start it, or use skip-lockfs", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It did not answer in time.
    #[error(
        "the guest agent at {} did not answer '{command}' in {} s; see to the agent in the guest, or \
         use skip-lockfs", path.display(), bound.as_secs()
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: &'static str,
        /// The time limit.
        bound: Duration,
    },
    /// The connection broke.
    #[error(
        "the connection to the guest agent at {} broke at '{command}': {source}; see to the agent in \
         the guest, or use skip-lockfs", path.display()
    )]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// Its answer was not one.
    #[error(
        "what the guest agent at {} answered to '{command}' is no answer; see to the agent in the \
         guest, or use skip-lockfs", path.display()
    )]
    Garbage {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: &'static str,
    },
    /// It refused the command.
    #[error("the guest agent at {} refused '{command}': {desc}; see to that, or use skip-lockfs", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The command.
        command: &'static str,
        /// Its reason.
        desc: String,
    },
    /// The freeze ended too early.
    #[error(
        "the guest of the agent at {} was frozen for {} s, which is the most that is allowed, and runs \
         again; try again, or use skip-lockfs", path.display(), bound.as_secs()
    )]
    Expired {
        /// The socket.
        path: PathBuf,
        /// The longest allowed freeze.
        bound: Duration,
    },
    /// No thread could be started for it.
    #[error("no thread could be had to freeze a guest: {0}")]
    Thread(std::io::Error),
}

/// Events of a freeze that its requester does not see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentEvent {
    /// It was ended because it took too long.
    ThawedEarly,
    /// The agent did not confirm its end; the sentence says why.
    ThawFailed(String),
}

/// The limits of a freeze.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// See [`ANSWER`].
    pub answer: Duration,
    /// See [`FROZEN`].
    pub frozen: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds { answer: ANSWER, frozen: FROZEN }
    }
}

/// The receiver of events. Must not block.
pub type AgentSink = Box<dyn Fn(AgentEvent) + Send + Sync>;

/// The agent of one guest.
pub struct Agent {
    path: PathBuf,
    bounds: Bounds,
    events: AgentSink,
    /// The present freeze, if there is one.
    current: Mutex<Weak<Freeze>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Agent {
    /// The agent behind QEMU's socket `path`; does not connect yet.
    pub fn new(path: &Path, bounds: Bounds, events: AgentSink) -> Arc<Agent> {
        Arc::new(Agent { path: path.into(), bounds, events, current: Mutex::default() })
    }

    /// Its socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Freezes the guest's file systems, or joins the present freeze. They are thawed when the last
    /// [`Frozen`] is dropped.
    ///
    /// # Errors
    /// The guest is not frozen then: if it was told to freeze, it was told to thaw.
    pub fn freeze(self: &Arc<Self>) -> Result<Frozen, AgentError> {
        let mut current = self.current();
        if let Some(freeze) = current.upgrade().filter(|freeze| freeze.holds()) {
            return Ok(Frozen(freeze));
        }
        let (release, released) = channel();
        let (outcome, frozen) = channel();
        let state = Arc::new(FreezeState::default());
        let keeper = Keeper { agent: self.clone(), state: state.clone(), released };
        let thread = std::thread::Builder::new()
            .name("freeze".into())
            .spawn(move || keeper.run(&outcome))
            .map_err(AgentError::Thread)?;
        // The thread keeps the time limits, so this returns.
        frozen.recv().unwrap_or_else(|_| Err(self.expired()))?;
        let freeze =
            Freeze { agent: self.clone(), state, release: Some(release), thread: Some(thread) };
        let freeze = Arc::new(freeze);
        *current = Arc::downgrade(&freeze);
        Ok(Frozen(freeze))
    }

    /// Thaws a guest that is frozen although no command needs it: a killed process left it so.
    /// Returns whether it was.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn thaw_what_was_left(&self) -> Result<bool, AgentError> {
        let current = self.current();
        if current.upgrade().is_some_and(|freeze| freeze.holds()) {
            return Ok(false);
        }
        let mut line = self.connect()?;
        let frozen = line.status(self.bounds.answer)? == "frozen";
        if frozen {
            line.thaw(self.bounds.answer)?;
        }
        Ok(frozen)
    }

    fn current(&self) -> MutexGuard<'_, Weak<Freeze>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self) -> Result<Line, AgentError> {
        let mut line = Line::connect(&self.path)?;
        line.sync(self.bounds.answer)?;
        Ok(line)
    }

    fn expired(&self) -> AgentError {
        AgentError::Expired { path: self.path.clone(), bound: self.bounds.frozen }
    }

    /// Tells the guest to thaw: over `line`, and over a new connection if that fails.
    fn thaw(&self, line: &mut Line) -> Result<(), AgentError> {
        // After a silence, only a marked answer shows where the next answer begins.
        let first = line.sync(self.bounds.answer).and_then(|()| line.thaw(self.bounds.answer));
        first.or_else(|_| {
            line.close();
            *line = self.connect()?;
            line.thaw(self.bounds.answer)
        })
    }
}

/// A frozen guest, for as long as this lives and the limit allows. Dropping the last one returns
/// when the guest has been thawed, or did not answer in time.
#[derive(Clone, Debug)]
pub struct Frozen(Arc<Freeze>);

impl Frozen {
    /// Whether the guest is still frozen.
    ///
    /// # Errors
    /// The limit was reached.
    pub fn check(&self) -> Result<(), AgentError> {
        if self.0.holds() { Ok(()) } else { Err(self.0.agent.expired()) }
    }

    /// The operation that needed the freeze is done: an early thaw is not reported any more.
    pub fn served(&self) {
        self.0.state.served.store(true, Ordering::SeqCst);
    }
}

#[derive(Debug, Default)]
struct FreezeState {
    holds: AtomicBool,
    served: AtomicBool,
}

#[derive(Debug)]
struct Freeze {
    agent: Arc<Agent>,
    state: Arc<FreezeState>,
    /// Dropped to thaw the guest.
    release: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Freeze {
    fn holds(&self) -> bool {
        self.state.holds.load(Ordering::SeqCst)
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that freezes a guest panicked");
        }
    }
}

/// The thread that carries one freeze from begin to end.
struct Keeper {
    agent: Arc<Agent>,
    state: Arc<FreezeState>,
    released: Receiver<()>,
}

impl Keeper {
    fn run(self, outcome: &Sender<Result<(), AgentError>>) {
        let Keeper { agent, state, released } = &self;
        let asked = Instant::now();
        let left = || (asked + agent.bounds.frozen).saturating_duration_since(Instant::now());
        let mut line = match agent.connect() {
            Ok(line) => line,
            Err(error) => {
                let _ = outcome.send(Err(error));
                return;
            }
        };
        if let Err(error) = line.freeze(left()) {
            // The freeze may have succeeded nevertheless, or may succeed later.
            self.thaw(&mut line);
            let _ = outcome.send(Err(error));
            return;
        }
        state.holds.store(true, Ordering::SeqCst);
        // The requester waits for this.
        let _ = outcome.send(Ok(()));
        let expired = matches!(released.recv_timeout(left()), Err(RecvTimeoutError::Timeout));
        state.holds.store(false, Ordering::SeqCst);
        if expired && !state.served.load(Ordering::SeqCst) {
            (agent.events)(AgentEvent::ThawedEarly);
        }
        let thawed = self.thaw(&mut line);
        // A guest whose disk is suspended cannot confirm the thaw. It can afterwards.
        if expired && !thawed {
            line.close();
            let _ = released.recv();
            // Another freeze, present or requested, has its own thaw.
            let newer = |current: MutexGuard<'_, Weak<Freeze>>| {
                current.upgrade().is_some_and(|freeze| freeze.holds())
            };
            if !agent.current.try_lock().map_or(true, newer) {
                self.thaw(&mut line);
            }
        }
    }

    /// Whether the agent confirmed the thaw.
    fn thaw(&self, line: &mut Line) -> bool {
        let thawed = self.agent.thaw(line);
        if let Err(error) = &thawed {
            (self.agent.events)(AgentEvent::ThawFailed(error.to_string()));
        }
        thawed.is_ok()
    }
}

#[cfg(test)]
mod tests;
