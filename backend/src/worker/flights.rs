//! The requests of one ring that are in flight, by the head of their chain.
//!
//! Owns a slot for every descriptor that a chain can begin with, made when the ring is started and
//! then reused, and the guest memories that requests in flight still point into. Never knows how a
//! request is being carried out.

use std::sync::Arc;

use snapblk_store::request::Token;
use snapblk_store::units::Sector;

use crate::binding::GuestData;
use crate::memory::GuestMemory;
use crate::request::{BlkRange, RequestSlot};

/// One request in flight, or room for one.
#[derive(Debug)]
struct Flight {
    slot: RequestSlot,
    busy: bool,
    next_range: usize,
    /// The place of its data, for [`Flights::range_of`]; none if it goes to the guest.
    sector: Option<Sector>,
    /// The memory that its addresses refer to.
    generation: u32,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    flights: Vec<Flight>,
    busy: usize,
}

impl Flights {
    /// Room for a ring of `size` descriptors. Nothing may be in flight.
    pub(crate) fn resize(&mut self, size: u16) {
        debug_assert_eq!(self.busy, 0);
        self.flights.resize_with(usize::from(size), || Flight {
            slot: RequestSlot::with_room(),
            busy: false,
            next_range: 0,
            sector: None,
            generation: 0,
        });
    }

    /// The slot for the chain that begins at `head`; none if there is no such descriptor, or if a
    /// chain that begins there is already in flight.
    #[inline]
    pub(crate) fn open(&mut self, head: u16, generation: u32) -> Option<&mut RequestSlot> {
        let flight = self.flights.get_mut(usize::from(head)).filter(|flight| !flight.busy)?;
        flight.busy = true;
        flight.next_range = 0;
        flight.generation = generation;
        self.busy += 1;
        Some(&mut flight.slot)
    }

    /// A request in flight ends: returns what is needed to complete it, and the generation of its
    /// memory.
    #[inline]
    pub(crate) fn close(&mut self, head: u16) -> (&RequestSlot, u32) {
        let flight = &mut self.flights[usize::from(head)];
        debug_assert!(flight.busy, "request {head} ends twice");
        flight.busy = false;
        self.busy -= 1;
        (&flight.slot, flight.generation)
    }

    /// Records the place of a request's data; none if it goes to the guest.
    #[inline]
    pub(crate) fn goes_to(&mut self, head: u16, sector: Option<Sector>) {
        self.flights[usize::from(head)].sector = sector;
    }

    /// The recorded place of a request's data, and its length in bytes.
    pub(crate) fn range_of(&self, head: u16) -> Option<(Sector, u64)> {
        let flight = &self.flights[usize::from(head)];
        let len = flight.slot.data.iter().map(|piece| piece.iov_len as u64).sum();
        Some((flight.sector?, len))
    }

    /// The next of the request's ranges, each once.
    pub(crate) fn next_range(&mut self, head: u16) -> Option<BlkRange> {
        let flight = &mut self.flights[usize::from(head)];
        let range = flight.slot.ranges.get(flight.next_range).copied()?;
        flight.next_range += 1;
        Some(range)
    }

    /// Requests in flight.
    pub(crate) fn len(&self) -> usize {
        self.busy
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.busy == 0
    }

    /// How many requests point into the memory of that generation.
    fn count_of(&self, generation: u32) -> usize {
        self.flights.iter().filter(|f| f.busy && f.generation == generation).count()
    }
}

impl GuestData for Flights {
    #[inline]
    fn push_iovecs(&self, token: Token, offset: u32, len: u32, out: &mut Vec<libc::iovec>) {
        let Some(flight) = self.flights.get(token.0 as usize) else { return };
        let (mut skip, mut want) = (offset as usize, len as usize);
        for piece in &flight.slot.data {
            if want == 0 {
                return;
            }
            if skip >= piece.iov_len {
                skip -= piece.iov_len;
                continue;
            }
            let take = want.min(piece.iov_len - skip);
            let base = piece.iov_base.cast::<u8>().wrapping_add(skip);
            out.push(libc::iovec { iov_base: base.cast(), iov_len: take });
            want -= take;
            skip = 0;
        }
        debug_assert_eq!(want, 0, "more data asked for than request {} has", token.0);
    }
}

/// The guest's memory as it is, and as it was for requests that began before it changed.
#[derive(Debug, Default)]
pub(crate) struct Memories {
    current: Arc<GuestMemory>,
    generation: u32,
    retired: Vec<Retired>,
}

#[derive(Debug)]
struct Retired {
    generation: u32,
    memory: Arc<GuestMemory>,
    users: usize,
}

impl Memories {
    /// As it is now.
    #[inline]
    pub(crate) fn current(&self) -> &GuestMemory {
        &self.current
    }

    /// The name of the memory as it is now.
    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// It changes; what requests in flight point into stays mapped.
    pub(crate) fn replace(&mut self, memory: Arc<GuestMemory>, flights: &Flights) {
        let users = flights.count_of(self.generation);
        let memory = std::mem::replace(&mut self.current, memory);
        if users > 0 {
            self.retired.push(Retired { generation: self.generation, memory, users });
        }
        self.generation = self.generation.wrapping_add(1);
    }

    /// As it was when a request of that generation began.
    #[inline]
    pub(crate) fn of(&self, generation: u32) -> &GuestMemory {
        if generation == self.generation {
            return &self.current;
        }
        let retired = self.retired.iter().find(|r| r.generation == generation);
        retired.map_or(&self.current, |r| &r.memory)
    }

    /// A request of that generation ended.
    #[inline]
    pub(crate) fn left(&mut self, generation: u32) {
        if generation != self.generation
            && let Some(at) = self.retired.iter().position(|r| r.generation == generation)
        {
            self.retired[at].users -= 1;
            if self.retired[at].users == 0 {
                self.retired.swap_remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flights(pieces: &[usize]) -> Flights {
        let mut flights = Flights::default();
        flights.resize(4);
        let slot = flights.open(2, 0).unwrap();
        slot.data = pieces
            .iter()
            .enumerate()
            .map(|(n, &iov_len)| libc::iovec {
                iov_base: std::ptr::without_provenance_mut((n + 1) * 0x1000),
                iov_len,
            })
            .collect();
        flights
    }

    #[test]
    fn a_part_of_the_data_is_cut_out_of_its_pieces() {
        let flights = flights(&[0x200, 0x400, 0x200]);
        let mut out = Vec::new();
        flights.push_iovecs(Token(2), 0x300, 0x400, &mut out);
        let out: Vec<_> = out.iter().map(|p| (p.iov_base.addr(), p.iov_len)).collect();
        assert_eq!(out, [(0x2100, 0x300), (0x3000, 0x100)]);
    }

    #[test]
    fn a_head_in_flight_or_out_of_range_has_no_slot() {
        let mut flights = flights(&[512]);
        assert!(flights.open(2, 0).is_none());
        assert!(flights.open(4, 0).is_none());
        flights.close(2);
        assert!(flights.is_empty());
        assert!(flights.open(2, 0).is_some());
    }

    #[test]
    fn memory_lives_until_the_last_request_that_points_into_it() {
        let mut memories = Memories::default();
        let mut flights = flights(&[512]);
        let first = Arc::new(GuestMemory::anonymous(0x1000, 0));
        memories.current = first.clone();
        memories.replace(Arc::default(), &flights);
        assert_eq!(Arc::strong_count(&first), 2);
        let (_, generation) = flights.close(2);
        memories.left(generation);
        assert_eq!(Arc::strong_count(&first), 1);
    }
}
