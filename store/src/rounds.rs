//! An operation that one worker at a time carries out, for all that need it: a commit of a store, a
//! sync of a file.
//!
//! Owns who leads the running round, whether another is wanted, and who is woken at its end. Never
//! knows the operation, nor how it ended: a leader says elsewhere that its round failed, *before* it
//! ends the round, and who waited looks there afterwards.
//!
//! One at a time also because the system tells of an error once: of two syncs of a file that overlap,
//! one returns the error and the other succeeds. Whoever waits for a round that began after its own
//! call learns of every error that was told before.
//!
//! Keeps I17: who waits registers, and then looks again.

use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::wake::{Waiters, WakeSet, WorkerBit};

/// A promise: the round with this number covers what the holder wrote before it joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// What a worker that needs a round must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// Lead it, for itself and all workers that join meanwhile.
    Lead(Ticket),
    /// Wait: another worker leads one.
    Wait(Ticket),
}

/// How far a worker is that needs a round: see [`Rounds::advance`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The round has ended.
    Ended,
    /// It is woken when the running round ends.
    Wait,
    /// It leads the round.
    Lead,
}

/// The end of a round, for its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "workers that joined sleep until they are woken"]
pub struct RoundEnd {
    /// The workers to wake.
    pub wake: WakeSet,
    /// Another round, which the leader of this one leads too.
    pub lead: Option<Ticket>,
}

const RUNNING: u64 = 1;
const WANTED: u64 = 2;
const ROUND: u64 = 4;

/// See the module's description.
#[derive(Debug)]
pub struct Rounds {
    /// `rounds started << 2 | another is wanted | one is running`.
    word: AtomicU64,
    joiners: Waiters,
}

impl Default for Rounds {
    fn default() -> Self {
        Rounds { word: AtomicU64::new(0), joiners: Waiters::default() }
    }
}

impl Rounds {
    /// Asks for a round that covers everything written before this call. A round that is already
    /// running may have missed it, so the ticket is for the next one. `bit` is the worker's; it is
    /// woken when the running round ends. A worker told to wait must ask [`Rounds::poll`] once more
    /// before it sleeps.
    pub fn join(&self, bit: WorkerBit) -> Join {
        let mut word = self.word.load(Ordering::Acquire);
        loop {
            let running = word & RUNNING != 0;
            let new = if running { word | WANTED } else { word + ROUND + RUNNING };
            match self.word.compare_exchange(word, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) if running => {
                    self.joiners.add(bit);
                    return Join::Wait(Ticket((word >> 2) + 1));
                }
                Ok(_) => return Join::Lead(Ticket((word >> 2) + 1)),
                Err(now) => word = now,
            }
        }
    }

    /// One step towards a round that covers everything written before the first call, which takes the
    /// ticket.
    pub fn advance(&self, ticket: &mut Option<Ticket>, bit: WorkerBit) -> Turn {
        loop {
            if let Some(ticket) = *ticket {
                if self.poll(ticket, bit) {
                    return Turn::Ended;
                }
                // It is registered: the end of the running round wakes it (I17). If none runs, a
                // stopping leader ended its own round before it could know of this one.
                if self.is_running() {
                    return Turn::Wait;
                }
            }
            match self.join(bit) {
                Join::Wait(joined) => *ticket = Some(joined),
                Join::Lead(joined) => {
                    *ticket = Some(joined);
                    return Turn::Lead;
                }
            }
        }
    }

    /// Whether the round of `ticket` has ended; if not, `bit` is woken when the running one does.
    pub fn poll(&self, ticket: Ticket, bit: WorkerBit) -> bool {
        self.joiners.add(bit);
        fence(Ordering::SeqCst);
        self.ended() >= ticket.0
    }

    /// Whether a round is running. A waiting worker whose ticket has not ended joins again if none
    /// is running.
    pub fn is_running(&self) -> bool {
        self.word.load(Ordering::SeqCst) & RUNNING != 0
    }

    /// The leader's round has ended. With `again`, and if a worker wants another round, the caller
    /// leads that too.
    pub fn end(&self, again: bool) -> RoundEnd {
        let mut word = self.word.load(Ordering::Acquire);
        let lead = loop {
            debug_assert!(word & RUNNING != 0);
            let lead = again && word & WANTED != 0;
            let new = (word & !(WANTED | RUNNING)) + if lead { ROUND + RUNNING } else { 0 };
            match self.word.compare_exchange(word, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break lead.then_some(Ticket(new >> 2)),
                Err(now) => word = now,
            }
        };
        fence(Ordering::SeqCst);
        RoundEnd { wake: self.joiners.take(), lead }
    }

    fn ended(&self) -> u64 {
        let word = self.word.load(Ordering::SeqCst);
        (word >> 2) - (word & RUNNING)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    const BITS: [WorkerBit; 3] = [WorkerBit::of(0), WorkerBit::of(1), WorkerBit::of(2)];

    fn ended(wake: &[WorkerBit], lead: Option<Ticket>) -> RoundEnd {
        let wake = wake.iter().fold(WakeSet::NONE, |set, &bit| set | bit.into());
        RoundEnd { wake, lead }
    }

    #[test]
    fn who_joins_a_running_round_waits_for_the_next() {
        let rounds = Rounds::default();
        assert_eq!(rounds.join(BITS[0]), Join::Lead(Ticket(1)));
        assert_eq!(rounds.join(BITS[1]), Join::Wait(Ticket(2)));
        assert!(!rounds.poll(Ticket(1), BITS[2]));
        assert_eq!(rounds.end(true), ended(&BITS[1..], Some(Ticket(2))));
        assert!(rounds.poll(Ticket(1), BITS[2]));
        assert!(!rounds.poll(Ticket(2), BITS[1]));
        assert_eq!(rounds.end(true), ended(&BITS[1..], None));
        assert!(rounds.poll(Ticket(2), BITS[1]));
        assert!(!rounds.is_running());
    }

    #[test]
    fn who_waits_leads_where_a_stopping_leader_left() {
        let rounds = Rounds::default();
        let (mut first, mut second) = (None, None);
        assert_eq!(rounds.advance(&mut first, BITS[0]), Turn::Lead);
        assert_eq!(rounds.advance(&mut second, BITS[1]), Turn::Wait);
        assert_eq!(rounds.end(false), ended(&BITS[1..2], None));
        assert_eq!(rounds.advance(&mut first, BITS[0]), Turn::Ended);
        assert_eq!(rounds.advance(&mut second, BITS[1]), Turn::Lead);
        let _ = rounds.end(true);
        assert_eq!(rounds.advance(&mut second, BITS[1]), Turn::Ended);
    }
}
