//! How far the process is, from its start to its end.
//!
//! Owns what the next signal does, and the one request to end in order: a signal, or `quit`. Never knows
//! how that is done. Keeps: until a guest may be served a signal ends the process at once, which leaves
//! its files as a kill does, at whichever step of the start; later the first request is for an order,
//! and a signal after it ends the process at once.

use std::io;
use std::process::exit;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};

use super::End;
use crate::signals::{Blocked, HANGUP};

/// How far it is.
#[derive(Default)]
enum Stage {
    /// It starts, and has served nobody.
    #[default]
    Starts,
    /// It serves; who is to end it is told here.
    Serves(Sender<End>),
    /// It ends in order.
    Ends,
}

/// The course of the process.
#[derive(Default)]
pub(super) struct Course(Mutex<Stage>);

impl Course {
    /// Starts the thread that waits for `signals`.
    pub(super) fn follow(self: Arc<Self>, signals: Blocked) -> io::Result<()> {
        let follow = move || {
            loop {
                let signal = signals.wait();
                if self.ends_at_once(signal) {
                    exit(128 + signal.unwrap_or(0));
                }
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(follow).map(drop)
    }

    /// From now on somebody may be served: where it is heard that the process is to end.
    pub(super) fn serves(&self) -> Receiver<End> {
        let (send, ends) = channel();
        *self.stage() = Stage::Serves(send);
        ends
    }

    /// The process is to end in order.
    pub(super) fn end(&self, end: End) {
        if let Stage::Serves(ends) = std::mem::replace(&mut *self.stage(), Stage::Ends) {
            // Nobody listens where the start failed meanwhile: it ends for that.
            let _ = ends.send(end);
        }
    }

    /// It ends, for whichever reason.
    pub(super) fn ends(&self) {
        *self.stage() = Stage::Ends;
    }

    /// Whether this signal ends the process at once. One that does not has asked for an order, but for
    /// SIGHUP while it ends, which comes from the terminal and from its shell.
    fn ends_at_once(&self, signal: Option<i32>) -> bool {
        match std::mem::replace(&mut *self.stage(), Stage::Ends) {
            Stage::Starts => true,
            Stage::Serves(ends) => {
                let _ = ends.send(End::Signal);
                false
            }
            Stage::Ends => signal != Some(HANGUP),
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.lock().expect("stage lock poisoned")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Option<i32> = Some(15);

    #[test]
    fn a_signal_ends_a_start_at_once() {
        assert!([TERM, Some(HANGUP)].iter().all(|&signal| Course::default().ends_at_once(signal)));
    }

    #[test]
    fn the_first_request_is_for_an_order_and_a_signal_after_it_is_not() {
        for by_quit in [false, true] {
            let course = Course::default();
            let ends = course.serves();
            match by_quit {
                true => course.end(End::Quit),
                false => assert!(!course.ends_at_once(TERM)),
            }
            let asked = if by_quit { End::Quit } else { End::Signal };
            assert_eq!(ends.recv(), Ok(asked));
            course.end(End::Quit);
            assert!(ends.recv().is_err(), "it was asked once");
            assert!(!course.ends_at_once(Some(HANGUP)), "the shell's, after the terminal's");
            assert!(course.ends_at_once(TERM));
        }
    }
}
