//! A batch: chains taken from the ring, parsed and started, a group at a time.
//!
//! Owns how many chains are taken before other work gets its turn. Never knows the layout of a
//! chain, nor the fate of a request that the engine takes. The words that the engine will need for
//! a request are prefetched when its header is read, and a whole group is parsed before its first
//! request is started: distant cache lines arrive while the rest of the chain, and other chains,
//! are parsed.

use snapblk_store::io::{Action, IoOp, Seg, Tag};
use snapblk_store::request::{Op, Token};
use snapblk_store::units::Sector;

use super::answers::ENOUGH_BYTES;
use super::{OWN_TAG, Worker};
use crate::binding::{DeviceEngine, DeviceIo};
use crate::request::Asked;

/// Chains taken from the ring before any other work gets its turn.
const BATCH: usize = 64;
/// Chains taken before their I/O is submitted to the disk, and completions are reaped and shown to
/// the driver: while disk and driver work on these, the next ones are prepared.
const GROUP: usize = 4;
/// Chains taken before the engine proceeds with them, if its I/O is synchronous; also after as many
/// bytes as are worth an interrupt. With asynchronous I/O, the engine gets the batch as a whole.
const STEP_EVERY: usize = 8;
const _: () = assert!(BATCH.is_multiple_of(GROUP) && STEP_EVERY.is_multiple_of(GROUP));

impl<E: DeviceEngine, I: DeviceIo> Worker<E, I> {
    /// Takes the available chains: at most about a batch, in whole groups.
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
                self.submit_part();
                self.reap();
            }
            self.interrupt_between();
        }
        self.report_broken_ring();
        taken > 0
    }

    /// Submits the queued I/O if there are more chains in the ring: the disk works while those are
    /// prepared, which takes about as long. Requests that the engine gathers stay behind. With a
    /// polling driver this costs more than it gains.
    fn submit_part(&mut self) {
        let waits = !self.io.is_synchronous() && !self.unsubmitted.is_empty();
        if waits && self.has_work() && !self.has_polling_driver() {
            self.submit_queued();
        }
    }

    /// Takes a group of chains, then starts them; returns their number, and the bytes that they
    /// read or write.
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

    /// The next chain, parsed; no request if its head cannot be that of one.
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

    /// A write that bypassed the engine found no room: the engine decides what to do.
    #[cold]
    pub(super) fn submit_again(&mut self, head: u16) {
        match self.flights.range_of(head) {
            Some((sector, len)) => self.submit(Token(head.into()), Op::Write, sector, len),
            // A read: it needs no room, whatever the file reports.
            None => self.fail(head, false),
        }
    }
}
