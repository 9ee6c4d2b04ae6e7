//! The permitted content of each sector of a disk.
//!
//! Owns the model of the disk and the requests in flight. Never does I/O. A sector has one
//! permitted content, or several if virtio permits several: after a discard, and if a request was
//! in flight when the server died. A read that finds one of them settles it.
//!
//! Invariant: of two requests in flight whose ranges overlap, both are reads. [`Ledger::claim`]
//! refuses the second of any other pair, so the permitted result of a read does not depend on
//! timing.

use std::collections::BTreeMap;
use std::ops::Range;

use super::stamp::{Found, Generation, SECTOR, is_stamp, stamp_run};

/// The effect of a request on the sectors in its range, once it has succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// None: a read.
    Observe,
    /// They get this generation: a write.
    Store(Generation),
    /// They read as zeroes.
    Zero,
    /// They read as before, or as zeroes: a discard.
    Forget,
}

/// Identifies a request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

#[derive(Clone, Debug)]
struct Claim {
    ticket: Ticket,
    sectors: Range<u64>,
    effect: Effect,
}

/// A sector without a permitted content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sector {sector} (byte {}) holds {found}, and must hold {}", .sector * SECTOR as u64, list(.permitted))]
pub struct Mismatch {
    /// The sector.
    pub sector: u64,
    /// Its content.
    pub found: Found,
    /// The permitted contents.
    pub permitted: Vec<Generation>,
}

fn list(permitted: &[Generation]) -> String {
    let names: Vec<String> = permitted
        .iter()
        .map(|&generation| match generation {
            Generation::ZEROES => "zeroes".to_owned(),
            Generation(g) => format!("generation {g}"),
        })
        .collect();
    names.join(" or ")
}

/// The model of one disk.
#[derive(Clone, Debug)]
pub struct Ledger {
    certain: Vec<Generation>,
    uncertain: BTreeMap<u64, Vec<Generation>>,
    claims: Vec<Claim>,
    newest: u32,
    tickets: u64,
}

impl Ledger {
    /// A disk of `sectors` sectors, all zeroes.
    pub fn zeroed(sectors: u64) -> Self {
        Self::filled(sectors, Generation::ZEROES)
    }

    /// A disk of `sectors` sectors stamped with generation 1, as in [`Ledger::image`].
    pub fn stamped(sectors: u64) -> Self {
        Self::filled(sectors, Generation(1))
    }

    fn filled(sectors: u64, generation: Generation) -> Self {
        let certain = vec![generation; sectors as usize];
        Self { certain, uncertain: BTreeMap::new(), claims: Vec::new(), newest: 1, tickets: 0 }
    }

    /// The disk that `bytes` were read from, at any moment between this model's and now: each
    /// sector is as here, or was written since by a request with a newer generation.
    ///
    /// # Errors
    /// The first sector that is neither.
    pub fn later(&self, bytes: &[u8]) -> Result<Self, Mismatch> {
        let mut later = self.clone();
        for (sector, bytes) in (0..).zip(bytes.chunks_exact(SECTOR)) {
            match Found::new(bytes) {
                Found::Stamp { sector: named, generation }
                    if named == sector && generation.0 > self.newest =>
                {
                    later.set(sector, generation);
                    later.newest = later.newest.max(generation.0);
                }
                _ => later.check(sector, bytes)?,
            }
        }
        Ok(later)
    }

    /// Restores the content of `then`; generations continue from their present number.
    pub fn roll_back(&mut self, then: &Self) {
        self.certain.clone_from(&then.certain);
        self.uncertain.clone_from(&then.uncertain);
    }

    /// The bytes of a whole disk with generation 1.
    pub fn image(sectors: u64) -> Vec<u8> {
        let mut bytes = vec![0; sectors as usize * SECTOR];
        stamp_run(0, Generation(1), &mut bytes);
        bytes
    }

    /// The size of the disk in sectors.
    pub fn sectors(&self) -> u64 {
        self.certain.len() as u64
    }

    /// Sectors with more than one permitted content.
    pub fn uncertain(&self) -> usize {
        self.uncertain.len()
    }

    /// A generation that no write has used.
    pub fn next_generation(&mut self) -> Generation {
        self.newest += 1;
        Generation(self.newest)
    }

    /// Records a request that is about to be submitted; none if it would race with another one.
    pub fn claim(&mut self, sectors: Range<u64>, effect: Effect) -> Option<Ticket> {
        let races = |claim: &Claim| {
            claim.sectors.start < sectors.end
                && sectors.start < claim.sectors.end
                && !(claim.effect == Effect::Observe && effect == Effect::Observe)
        };
        if sectors.end > self.sectors() || self.claims.iter().any(races) {
            return None;
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.claims.push(Claim { ticket, sectors, effect });
        Some(ticket)
    }

    /// The request succeeded: its effect is permanent.
    pub fn acknowledge(&mut self, ticket: Ticket) {
        let Some(claim) = self.take(ticket) else { return };
        for sector in claim.sectors {
            match claim.effect {
                Effect::Observe => {}
                Effect::Store(generation) => self.set(sector, generation),
                Effect::Zero => self.set(sector, Generation::ZEROES),
                Effect::Forget => self.permit(sector, Generation::ZEROES),
            }
        }
    }

    /// The request was never submitted: it has no effect.
    pub fn withdraw(&mut self, ticket: Ticket) {
        self.take(ticket);
    }

    /// The server died: each request in flight had its effect on any of its sectors, or none.
    pub fn lose_in_flight(&mut self) {
        for claim in std::mem::take(&mut self.claims) {
            for sector in claim.sectors {
                match claim.effect {
                    Effect::Observe => {}
                    Effect::Store(generation) => self.permit(sector, generation),
                    Effect::Zero | Effect::Forget => self.permit(sector, Generation::ZEROES),
                }
            }
        }
    }

    /// Compares the bytes read from sector `first`, and settles their uncertain contents.
    pub fn check(&mut self, first: u64, bytes: &[u8]) -> Result<(), Mismatch> {
        for (sector, bytes) in (first..).zip(bytes.chunks_exact(SECTOR)) {
            let expected = self.certain[sector as usize];
            let Some(permitted) = self.uncertain.get(&sector) else {
                if is_stamp(sector, expected, bytes) {
                    continue;
                }
                let found = Found::new(bytes);
                return Err(Mismatch { sector, found, permitted: vec![expected] });
            };
            let held = permitted.iter().copied().find(|&g| is_stamp(sector, g, bytes));
            let Some(generation) = held else {
                let permitted = permitted.clone();
                return Err(Mismatch { sector, found: Found::new(bytes), permitted });
            };
            self.set(sector, generation);
        }
        Ok(())
    }

    fn take(&mut self, ticket: Ticket) -> Option<Claim> {
        let at = self.claims.iter().position(|claim| claim.ticket == ticket)?;
        Some(self.claims.swap_remove(at))
    }

    fn set(&mut self, sector: u64, generation: Generation) {
        self.uncertain.remove(&sector);
        self.certain[sector as usize] = generation;
    }

    fn permit(&mut self, sector: u64, generation: Generation) {
        let certain = self.certain[sector as usize];
        let permitted = self.uncertain.entry(sector).or_insert_with(|| vec![certain]);
        if !permitted.contains(&generation) {
            permitted.push(generation);
        }
        if permitted.len() == 1 {
            self.uncertain.remove(&sector);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(sector: u64, generation: u32) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR];
        stamp_run(sector, Generation(generation), &mut bytes);
        bytes
    }

    #[test]
    fn a_write_counts_from_its_acknowledgement() {
        let mut ledger = Ledger::stamped(8);
        let generation = ledger.next_generation();
        let ticket = ledger.claim(2..4, Effect::Store(generation)).unwrap();
        assert!(ledger.check(2, &bytes(2, 1)).is_ok());
        ledger.acknowledge(ticket);
        let mismatch = ledger.check(2, &bytes(2, 1)).unwrap_err();
        assert_eq!(
            mismatch.to_string(),
            "sector 2 (byte 1024) holds sector 2 of generation 1, and must hold generation 2"
        );
        assert!(ledger.check(2, &bytes(2, 2)).is_ok());
        assert!(ledger.check(4, &bytes(4, 1)).is_ok());
    }

    #[test]
    fn only_reads_may_overlap() {
        let mut ledger = Ledger::zeroed(16);
        let read = ledger.claim(0..4, Effect::Observe).unwrap();
        assert!(ledger.claim(2..6, Effect::Observe).is_some());
        assert!(ledger.claim(3..4, Effect::Zero).is_none());
        assert!(ledger.claim(6..8, Effect::Zero).is_some());
        assert!(ledger.claim(7..9, Effect::Observe).is_none());
        assert!(ledger.claim(15..17, Effect::Observe).is_none(), "past the end");
        ledger.acknowledge(read);
        assert!(ledger.claim(0..2, Effect::Forget).is_some());
    }

    #[test]
    fn a_lost_write_may_be_there_or_not_but_not_both() {
        let mut ledger = Ledger::stamped(4);
        let generation = ledger.next_generation();
        ledger.claim(0..2, Effect::Store(generation)).unwrap();
        ledger.lose_in_flight();
        assert_eq!(ledger.uncertain(), 2);
        assert!(ledger.check(0, &bytes(0, 3)).is_err());
        assert!(ledger.check(0, &bytes(0, 2)).is_ok());
        assert!(ledger.check(0, &bytes(0, 1)).is_err(), "it was seen to be there");
        assert!(ledger.check(1, &bytes(1, 1)).is_ok());
        assert!(ledger.check(1, &bytes(1, 2)).is_err(), "it was seen not to be there");
    }

    #[test]
    fn a_later_moment_holds_what_was_there_or_what_came_since() {
        let mut ledger = Ledger::stamped(2);
        let generation = ledger.next_generation();
        let ticket = ledger.claim(0..1, Effect::Store(generation)).unwrap();
        ledger.acknowledge(ticket);
        let disk = |a, b| [bytes(0, a), bytes(1, b)].concat();
        assert!(ledger.later(&disk(2, 3)).is_ok_and(|mut l| l.check(0, &disk(2, 3)).is_ok()));
        assert!(ledger.later(&disk(1, 3)).is_err(), "from before");
        assert!(ledger.later(&[bytes(0, 2), bytes(0, 3)].concat()).is_err(), "another sector's");
        let mut now = ledger.clone();
        now.roll_back(&Ledger::stamped(2));
        assert!(now.check(0, &disk(1, 1)).is_ok());
        assert_eq!(now.next_generation(), Generation(3));
    }

    #[test]
    fn a_discarded_sector_reads_old_or_zeroes() {
        for found in [0, 1] {
            let mut ledger = Ledger::stamped(1);
            let ticket = ledger.claim(0..1, Effect::Forget).unwrap();
            ledger.acknowledge(ticket);
            assert!(ledger.check(0, &bytes(0, found)).is_ok());
            assert!(ledger.check(0, &bytes(0, 1 - found)).is_err());
        }
    }
}
