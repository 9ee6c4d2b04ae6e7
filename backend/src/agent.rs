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

/// How long an agent may take to answer anything but a freeze, which takes as long as what the guest
/// has to write first.
pub const ANSWER: Duration = Duration::from_secs(5);

/// How long a guest is frozen at most, from when it was asked to be. What still holds it then is given
/// up.
pub const FROZEN: Duration = Duration::from_secs(10);

/// Why a guest is not frozen.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody answers there.
    #[error("cannot connect to the guest agent at {}: {source}; start it, or use skip-lockfs", path.display())]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It was silent.
    #[error(
        "the guest agent at {} did not answer '{command}' in {} s; see to the agent in the guest, or \
         use skip-lockfs", path.display(), bound.as_secs()
    )]
    Silent {
        /// Where.
        path: PathBuf,
        /// What it was asked.
        command: &'static str,
        /// How long it had.
        bound: Duration,
    },
    /// It was cut off.
    #[error(
        "the connection to the guest agent at {} broke at '{command}': {source}; see to the agent in \
         the guest, or use skip-lockfs", path.display()
    )]
    Broken {
        /// Where.
        path: PathBuf,
        /// What it was asked.
        command: &'static str,
        /// How.
        source: std::io::Error,
    },
    /// It said what no agent says.
    #[error(
        "what the guest agent at {} answered to '{command}' is no answer; see to the agent in the \
         guest, or use skip-lockfs", path.display()
    )]
    Garbage {
        /// Where.
        path: PathBuf,
        /// What it was asked.
        command: &'static str,
    },
    /// It refused.
    #[error("the guest agent at {} refused '{command}': {desc}; see to that, or use skip-lockfs", path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// What it was asked.
        command: &'static str,
        /// What it said.
        desc: String,
    },
    /// The freeze was over too early.
    #[error(
        "the guest of the agent at {} was frozen for {} s, which is the most that is allowed, and runs \
         again; try again, or use skip-lockfs", path.display(), bound.as_secs()
    )]
    Expired {
        /// Where.
        path: PathBuf,
        /// How long.
        bound: Duration,
    },
    /// There is no thread for it.
    #[error("no thread could be had to freeze a guest: {0}")]
    Thread(std::io::Error),
}

/// What happens to a freeze that whoever asked for it does not see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentEvent {
    /// It was ended because it lasted too long.
    ThawedEarly,
    /// The agent did not confirm that it has ended; the sentence says why.
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

/// Who is told of events. Must not block.
pub type AgentSink = Box<dyn Fn(AgentEvent) + Send + Sync>;

/// The agent of one guest.
pub struct Agent {
    path: PathBuf,
    bounds: Bounds,
    events: AgentSink,
    /// The freeze that lasts, if one does.
    current: Mutex<Weak<Freeze>>,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Agent {
    /// The agent behind QEMU's socket `path`; nobody is connected to yet.
    pub fn new(path: &Path, bounds: Bounds, events: AgentSink) -> Arc<Agent> {
        Arc::new(Agent { path: path.into(), bounds, events, current: Mutex::default() })
    }

    /// Its socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Freezes the guest's file systems, or joins a freeze that lasts. It is thawed when the last
    /// [`Frozen`] is gone.
    ///
    /// # Errors
    /// The guest is not frozen then: it was told to thaw if it had been told to freeze.
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
        // The thread keeps to the bounds, so this ends.
        frozen.recv().unwrap_or_else(|_| Err(self.expired()))?;
        let freeze =
            Freeze { agent: self.clone(), state, release: Some(release), thread: Some(thread) };
        let freeze = Arc::new(freeze);
        *current = Arc::downgrade(&freeze);
        Ok(Frozen(freeze))
    }

    /// Thaws a guest that is frozen although nobody here holds it: a process that was killed left it
    /// so. Whether it was.
    ///
    /// # Errors
    /// Where nobody answers.
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

    /// Tells the guest to thaw: over `line`, and over a new connection where that brings nothing.
    fn thaw(&self, line: &mut Line) -> Result<(), AgentError> {
        // After a silence only the marked answer tells where the conversation is.
        let first = line.sync(self.bounds.answer).and_then(|()| line.thaw(self.bounds.answer));
        first.or_else(|_| {
            line.close();
            *line = self.connect()?;
            line.thaw(self.bounds.answer)
        })
    }
}

/// A guest that is frozen, for as long as this lives and the bound allows. Dropping the last one
/// returns when the guest has been thawed, or did not answer in time.
#[derive(Clone, Debug)]
pub struct Frozen(Arc<Freeze>);

impl Frozen {
    /// Whether the guest is frozen still.
    ///
    /// # Errors
    /// The bound was reached.
    pub fn check(&self) -> Result<(), AgentError> {
        if self.0.holds() { Ok(()) } else { Err(self.0.agent.expired()) }
    }

    /// What the guest was frozen for has happened: an early thaw is no news to anyone.
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
    /// Dropped to let the guest go.
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

/// Who sees one freeze through.
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
            // It may have come to pass nevertheless, or come to pass later.
            self.thaw(&mut line);
            let _ = outcome.send(Err(error));
            return;
        }
        state.holds.store(true, Ordering::SeqCst);
        // Who asked waits for it.
        let _ = outcome.send(Ok(()));
        let expired = matches!(released.recv_timeout(left()), Err(RecvTimeoutError::Timeout));
        state.holds.store(false, Ordering::SeqCst);
        if expired && !state.served.load(Ordering::SeqCst) {
            (agent.events)(AgentEvent::ThawedEarly);
        }
        let thawed = self.thaw(&mut line);
        // A guest whose disk stands still cannot say that it is thawed. It can afterwards.
        if expired && !thawed {
            line.close();
            let _ = released.recv();
            // Another freeze, or one that is being asked for, has its own thaw.
            let newer = |current: MutexGuard<'_, Weak<Freeze>>| {
                current.upgrade().is_some_and(|freeze| freeze.holds())
            };
            if !agent.current.try_lock().map_or(true, newer) {
                self.thaw(&mut line);
            }
        }
    }

    /// Whether the agent said that it has.
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
