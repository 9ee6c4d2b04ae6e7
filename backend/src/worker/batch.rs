//! A batch: chains off the ring, taken apart and begun, a group at a time.
//!
//! Owns how many are taken before something else has its turn. Never knows what a chain looks like,
//! nor what becomes of a request that the engine takes. What the engine will look at for a request is asked
//! for when its header is read, and a group is taken apart as a whole before the first of it is begun: far
//! tables come near while the rest of a chain, and other chains, are taken apart.

use snapblk_store::io::{Action, IoOp, Seg, Tag};
use snapblk_store::request::{Op, Token};
use snapblk_store::units::Sector;

use super::answers::ENOUGH_BYTES;
use super::{OWN_TAG, Worker};
use crate::binding::{DeviceEngine, DeviceIo};
use crate::request::Asked;

/// Chains taken from the ring before anything else has its turn.
const BATCH: usize = 64;
/// Chains taken before what they ask of a disk is handed over, and completions are looked for and
/// shown to the driver: while both work on these, the next ones are prepared.
const GROUP: usize = 4;
/// Chains taken before the engine goes on with them, where its I/O ends at once, or with as many
/// bytes as a driver is told of: as above. Where I/O takes its time, the engine has a batch as a
/// whole.
const STEP_EVERY: usize = 8;
const _: () = assert!(BATCH.is_multiple_of(GROUP) && STEP_EVERY.is_multiple_of(GROUP));

impl<E: DeviceEngine, I: DeviceIo> Worker<E, I> {
    /// Takes what the guest made available: a batch at most, give or take a group.
    pub(super) fn take_batch(&mut self) -> bool {
        if !self.is_serving() {
            return false;
        }
        let (mut taken, mut asked) = (0, 0);
        while taken < BATCH {
            let (count, bytes) = self.take_group();
            if taken == 0 && count > 0 {
                self.note_depth(count);
            }
            taken += count;
            asked += bytes;
            if count < GROUP && !self.refill_goes_on() {
                break;
            }
            let enough = taken % STEP_EVERY == 0 || asked >= ENOUGH_BYTES;
            if enough && self.io.is_synchronous() {
                asked = 0;
                self.drive();
                self.reap();
                self.drive();
            } else {
                self.hand_over_part();
                self.reap();
            }
            self.interrupt_between();
        }
        self.report_broken_ring();
        taken > 0
    }

    /// Hands over what is queued where there are more chains behind it: the disk works while those
    /// are prepared, which takes about as long. What the engine is to gather stays behind. With a
    /// driver that polls it costs more than it brings.
    fn hand_over_part(&mut self) {
        let waits = !self.io.is_synchronous() && !self.unsubmitted.is_empty();
        if waits && self.has_work() && !self.gathers() {
            self.hand_over();
        }
    }

    /// Takes a group of chains, then begins them; returns how many there were, and the bytes that
    /// they ask for.
    #[inline]
    fn take_group(&mut self) -> (usize, u64) {
        let mut group = [(0, None); GROUP];
        let (mut count, mut bytes) = (0, 0);
        while count < GROUP
            && let Some(chain) = self.take_one()
        {
            if let (_, Some(Asked::Data { len, .. })) = chain {
                bytes += u64::from(len);
            }
            group[count] = chain;
            count += 1;
        }
        for &(head, asked) in &group[..count] {
            self.begin(head, asked);
        }
        (count, bytes)
    }

    /// The next chain, taken apart; nothing asked where its head cannot be a request's.
    #[inline]
    fn take_one(&mut self) -> Option<(u16, Option<Asked>)> {
        let memory = self.memories.current();
        let mut chain = self.ring.as_mut()?.vring.take(memory)?;
        let head = chain.head();
        let slot = self.flights.open(head, self.memories.generation());
        let near = |sector: Sector| self.engine.prefetch(sector.bytes());
        Some((head, slot.map(|slot| self.parser.parse(&mut chain, memory, slot, near))))
    }

    fn begin(&mut self, head: u16, asked: Option<Asked>) {
        match asked {
            None => self.give_back(head),
            Some(Asked::Data { op, sector, len }) => self.begin_data(head, op, sector, len),
            Some(Asked::Flush) => self.submit(Token(head.into()), Op::Flush, Sector(0), 0),
            Some(Asked::Ranges) => self.next_range(head),
            Some(Asked::Answer(status)) => self.finish(head, status),
        }
    }

    #[inline]
    fn begin_data(&mut self, head: u16, op: Op, sector: Sector, len: u32) {
        let token = Token(head.into());
        let durable = op == Op::Write && self.is_write_through();
        let direct =
            if durable { None } else { self.engine.direct(op, sector.bytes(), len.into()) };
        let Some(direct) = direct else {
            return self.submit(token, op, sector, len.into());
        };
        let action = Action {
            op: if op == Op::Read { IoOp::Read } else { IoOp::Write },
            file: direct.file,
            offset: direct.offset,
            len: len.into(),
            segs: (0, 1),
            tag: Tag(OWN_TAG | u64::from(head)),
        };
        self.flights.goes_to(head, (op != Op::Read).then_some(sector));
        self.charge(&action);
        let data = [Seg::Guest { token, offset: 0, len }];
        self.io.submit(&action, &data, &[], &self.flights);
        self.direct += 1;
        self.unsubmitted.add();
    }

    /// A write that needed nothing of the engine found no room: what is done about that the engine
    /// knows.
    #[cold]
    pub(super) fn submit_again(&mut self, head: u16) {
        match self.flights.range_of(head) {
            Some((sector, len)) => self.submit(Token(head.into()), Op::Write, sector, len),
            // A read: it needs none, whatever the file says.
            None => self.fail(head, false),
        }
    }
}
