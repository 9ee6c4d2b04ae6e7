//! Simulated disks and an executor that carries actions out in a seeded random order.
//!
//! Owns two copies of the bytes of some disks: the visible content, and the content after a power
//! cut. Owns the actions that several engines ("hosts") have in flight, and their memory. Never
//! knows an engine, a store or a guest's intentions: its driver submits actions and passes the
//! completions on. All events follow from the seed and the order of calls.
//!
//! It is as hostile as a system is allowed to be. An action takes effect at some moment between
//! its submission and its completion. A sync makes durable only what had completed before it was
//! submitted. A power cut keeps any subset of the sectors of all other writes, those in flight
//! among them; a kill keeps what took effect, and any subset of what was in flight. A write that
//! fails may have landed in part; writes that a failed sync should have made durable are never
//! made so by another one, which succeeds, and may end first. Discarded ranges hold garbage.

use std::cell::RefCell;
use std::collections::HashMap;

use super::storage::Storage;
use super::{Action, Completion, Errno, FileId, IoOp, Seg};
use crate::request::Token;

mod disk;

pub use disk::{Cut, Disk};

/// A small seeded generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator whose numbers follow from `seed`.
    pub fn new(seed: u64) -> Rng {
        Rng(seed ^ 0x5eed_5eed_5eed_5eed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }

    /// True `of` times in `in_all`.
    pub fn chance(&mut self, of: u64, in_all: u64) -> bool {
        self.below(in_all) < of
    }

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }
}

/// The memory of one host, which its actions refer to.
#[derive(Debug, Default)]
pub struct HostMemory {
    /// The scratch arena, [`super::BufId`] 0.
    pub scratch: Vec<u8>,
    /// The bytes of its requests.
    pub guest: HashMap<Token, Vec<u8>>,
}

/// The actions that fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// On this file; on any if none.
    pub file: Option<FileId>,
    /// Of this kind; of any if none.
    pub op: Option<IoOp>,
    /// Only those that overlap these bytes; all if none.
    pub range: Option<(u64, u64)>,
    /// After this many matching actions have succeeded.
    pub after: u32,
    /// The number of failures.
    pub count: u32,
    /// The error.
    pub errno: Errno,
}

impl Fault {
    fn matches(&self, action: &Action) -> bool {
        self.file.is_none_or(|file| file == action.file)
            && self.op.is_none_or(|op| op == action.op)
            && self
                .range
                .is_none_or(|(from, to)| action.offset < to && from < action.offset + action.len)
    }
}

#[derive(Debug)]
struct InFlight {
    host: usize,
    action: Action,
    segs: Vec<Seg>,
    meta: Vec<u8>,
    /// The tick of its submission.
    at: u64,
    /// It has no effect before this turn.
    asleep_until: u64,
    /// It makes no progress at all.
    held: bool,
    /// Once it took effect: the result, and the sequence number of the write.
    performed: Option<(Result<(), Errno>, Option<u64>)>,
}

/// An action as an engine submitted it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The host.
    pub host: usize,
    /// The action.
    pub action: Action,
    /// Its segments.
    pub segs: Vec<Seg>,
}

/// See the module's description.
#[derive(Debug)]
pub struct Sim {
    rng: Rng,
    disks: Vec<Disk>,
    hosts: Vec<HostMemory>,
    in_flight: Vec<InFlight>,
    faults: Vec<Fault>,
    /// Files and operations that make no progress.
    holds: Vec<(FileId, IoOp)>,
    tick: u64,
    turn: u64,
    /// How often each operation was carried out on each file.
    performed: HashMap<(FileId, IoOp), u64>,
    failed: u64,
    /// The actions since the last query, if they are recorded.
    asked: Option<Vec<Asked>>,
}

impl Sim {
    /// A simulator without disks.
    pub fn new(seed: u64) -> Sim {
        Sim {
            rng: Rng::new(seed),
            disks: Vec::new(),
            hosts: Vec::new(),
            in_flight: Vec::new(),
            faults: Vec::new(),
            holds: Vec::new(),
            tick: 1,
            turn: 0,
            performed: HashMap::new(),
            failed: 0,
            asked: None,
        }
    }

    /// Adds a disk with these bytes, all durable.
    pub fn add_disk(&mut self, name: &str, bytes: Vec<u8>) -> FileId {
        self.disks.push(Disk::new(name, bytes));
        FileId(self.disks.len() as u32 - 1)
    }

    /// Makes the disk at least `bytes` long.
    pub fn grow_disk(&mut self, file: FileId, bytes: u64) {
        self.disks[file.0 as usize].grow(bytes);
    }

    /// A disk.
    pub fn disk(&self, file: FileId) -> &Disk {
        &self.disks[file.0 as usize]
    }

    /// The control plane's access to a disk.
    pub fn storage(&mut self, file: FileId) -> SimStorage<'_> {
        let tick = self.tick;
        SimStorage(RefCell::new((&mut self.disks[file.0 as usize], tick)))
    }

    /// Adds a host with a scratch arena of `scratch` bytes.
    pub fn add_host(&mut self, scratch: usize) -> usize {
        self.hosts.push(HostMemory { scratch: vec![0xa5; scratch], guest: HashMap::new() });
        self.hosts.len() - 1
    }

    /// A host's memory.
    pub fn host(&mut self, host: usize) -> &mut HostMemory {
        &mut self.hosts[host]
    }

    /// Makes actions fail from now on.
    pub fn add_fault(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// Ends all failures.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// Lets actions of this kind on this file make no progress.
    pub fn hold(&mut self, file: FileId, op: IoOp) {
        self.holds.push((file, op));
    }

    /// Stops the progress of the actions that are in flight now.
    pub fn hold_submitted(&mut self) {
        self.in_flight.iter_mut().for_each(|io| io.held = true);
    }

    /// Ends all holds.
    pub fn release(&mut self) {
        self.holds.clear();
        self.in_flight.iter_mut().for_each(|io| io.held = false);
    }

    /// The number of injected failures.
    pub fn failed(&self) -> u64 {
        self.failed
    }

    /// How often an operation was carried out on a file.
    pub fn performed(&self, file: FileId, op: IoOp) -> u64 {
        self.performed.get(&(file, op)).copied().unwrap_or(0)
    }

    /// The actions since the last call; the first call starts the recording.
    pub fn take_asked(&mut self) -> Vec<Asked> {
        self.asked.replace(Vec::new()).unwrap_or_default()
    }

    /// Accepts an action of `host` with its segments; `meta` has the bytes of a metadata segment.
    pub fn submit(&mut self, host: usize, action: Action, segs: &[Seg], meta: &[u8]) {
        if matches!(action.op, IoOp::Read | IoOp::Write | IoOp::Clear) {
            let len: u64 = segs.iter().map(|seg| u64::from(seg.len())).sum();
            assert_eq!(len, action.len, "the parts of {action:?} are as long as it is");
        }
        if !matches!(action.op, IoOp::Sync | IoOp::Clear) {
            assert!(action.len > 0, "{action:?} is empty");
            assert!(action.offset.is_multiple_of(512) && action.len.is_multiple_of(512));
        }
        if let Some(asked) = &mut self.asked {
            asked.push(Asked { host, action, segs: segs.to_vec() });
        }
        self.tick += 1;
        let nap = match self.rng.below(60) {
            0..10 => self.rng.below(60),
            10 => self.rng.below(3000),
            _ => 0,
        };
        self.in_flight.push(InFlight {
            host,
            action,
            segs: segs.to_vec(),
            meta: meta.to_vec(),
            at: self.tick,
            asleep_until: self.turn + nap,
            held: false,
            performed: None,
        });
    }

    /// Actions in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The actions of a host that are in flight.
    pub fn actions(&self, host: usize) -> impl Iterator<Item = &Action> {
        self.in_flight.iter().filter(move |io| io.host == host).map(|io| &io.action)
    }

    /// How many writes to a file are seen, and will never be durable, because a sync failed.
    pub fn lost(&self, file: FileId) -> usize {
        self.disk(file).lost()
    }

    /// The writes to a file that a power cut would tear, as (offset, length): in flight, or
    /// complete and not durable.
    pub fn at_risk(&self, file: FileId) -> impl Iterator<Item = (u64, u64)> {
        let writes = self.in_flight.iter().filter(move |io| {
            io.action.file == file && io.action.op == IoOp::Write && io.performed.is_none()
        });
        let writes = writes.map(|io| (io.action.offset, io.action.len));
        writes.chain(self.disk(file).unflushed())
    }

    /// Whether anything in flight is not held.
    pub fn can_advance(&self) -> bool {
        self.in_flight.iter().any(|io| !self.is_held(io))
    }

    fn is_held(&self, io: &InFlight) -> bool {
        io.held || self.holds.contains(&(io.action.file, io.action.op))
    }

    /// Lets one action take effect, or complete, or both. Returns a completion and its host.
    pub fn advance(&mut self) -> Option<(usize, Completion)> {
        self.turn += 1;
        let free: Vec<usize> =
            (0..self.in_flight.len()).filter(|&n| !self.is_held(&self.in_flight[n])).collect();
        let is_awake = |n: &usize| self.in_flight[*n].asleep_until <= self.turn;
        let awake: Vec<usize> = free.iter().copied().filter(is_awake).collect();
        let choice = if awake.is_empty() { &free } else { &awake };
        if choice.is_empty() {
            return None;
        }
        let at = *self.rng.pick(choice);
        if self.in_flight[at].performed.is_none() {
            let done = self.perform(at);
            self.in_flight[at].performed = Some(done);
            // Also of a failed sync: another may succeed before anybody knows of the failure.
            if self.rng.chance(1, 2) {
                return None;
            }
        }
        let io = self.in_flight.swap_remove(at);
        let (result, seq) = io.performed.expect("it was performed");
        self.tick += 1;
        if let Some(seq) = seq {
            self.disks[io.action.file.0 as usize].completed(seq, self.tick);
        }
        Some((io.host, Completion { tag: io.action.tag, result }))
    }

    /// Carries an action out: returns its result, and the number of its write.
    fn perform(&mut self, at: usize) -> (Result<(), Errno>, Option<u64>) {
        let action = self.in_flight[at].action;
        *self.performed.entry((action.file, action.op)).or_default() += 1;
        if action.op == IoOp::Clear {
            self.fill(at, &vec![0; action.len as usize]);
            return (Ok(()), None);
        }
        let failure = self.failure(&action);
        let disk = &mut self.disks[action.file.0 as usize];
        if action.op == IoOp::Sync {
            disk.sync(self.in_flight[at].at, failure.is_some());
            return (failure.map_or(Ok(()), Err), None);
        }
        if action.offset + action.len > disk.len() {
            return (Err(Errno::EIO), None);
        }
        if action.op == IoOp::Read {
            if failure.is_none() {
                let bytes = disk.read(action.offset, action.len).to_vec();
                self.fill(at, &bytes);
            }
            return (failure.map_or(Ok(()), Err), None);
        }
        let bytes = self.gather(at);
        let disk = &mut self.disks[action.file.0 as usize];
        match failure {
            Some(errno @ (Errno::ENOSPC | Errno::EDQUOT)) => (Err(errno), None),
            Some(errno) => {
                disk.write_some(action.offset, &bytes, &mut self.rng);
                (Err(errno), None)
            }
            None => (Ok(()), Some(disk.write(action.offset, bytes))),
        }
    }

    fn failure(&mut self, action: &Action) -> Option<Errno> {
        for fault in &mut self.faults {
            if fault.count == 0 || !fault.matches(action) {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
                continue;
            }
            fault.count -= 1;
            self.failed += 1;
            return Some(fault.errno);
        }
        None
    }

    /// The bytes that an action writes.
    fn gather(&self, at: usize) -> Vec<u8> {
        let io = &self.in_flight[at];
        match io.action.op {
            IoOp::Zero | IoOp::Punch => return vec![0; io.action.len as usize],
            IoOp::Discard => return vec![0xdd; io.action.len as usize],
            _ => {}
        }
        let memory = &self.hosts[io.host];
        let mut bytes = Vec::with_capacity(io.action.len as usize);
        for seg in &io.segs {
            match *seg {
                Seg::Guest { token, offset, len } => {
                    bytes.extend(&memory.guest[&token][offset as usize..][..len as usize]);
                }
                Seg::Scratch { offset, len, .. } => {
                    bytes.extend(&memory.scratch[offset as usize..][..len as usize]);
                }
                Seg::Zero { len } => bytes.extend(std::iter::repeat_n(0, len as usize)),
                Seg::Meta { len, .. } => bytes.extend(&io.meta[..len as usize]),
            }
        }
        bytes
    }

    /// Stores `bytes` in the memory that an action reads to.
    fn fill(&mut self, at: usize, bytes: &[u8]) {
        let io = &self.in_flight[at];
        let memory = &mut self.hosts[io.host];
        let mut done = 0;
        for seg in &io.segs {
            let (target, offset, len) = match *seg {
                Seg::Guest { token, offset, len } => {
                    (memory.guest.get_mut(&token).expect("a request's bytes"), offset, len)
                }
                Seg::Scratch { offset, len, .. } => (&mut memory.scratch, offset, len),
                Seg::Zero { .. } | Seg::Meta { .. } => panic!("a read into {seg:?}"),
            };
            target[offset as usize..][..len as usize]
                .copy_from_slice(&bytes[done..done + len as usize]);
            done += len as usize;
        }
    }

    /// The hosts die: effects stay, and any subset of the actions in flight takes effect.
    pub fn kill(&mut self) {
        self.land_some();
        self.tick += 1;
        for disk in &mut self.disks {
            disk.all_completed(self.tick);
        }
        self.hosts.clear();
    }

    /// The power fails: durable data stays, and any subset of all other sectors. Returns the result
    /// of the writes that were not durable.
    pub fn power_cut(&mut self) -> Vec<Cut> {
        self.land_some();
        self.hosts.clear();
        let mut cuts = Vec::new();
        for (file, disk) in self.disks.iter_mut().enumerate() {
            disk.power_cut(FileId(file as u32), &mut self.rng, &mut cuts);
        }
        cuts
    }

    fn land_some(&mut self) {
        while !self.in_flight.is_empty() {
            let at = self.rng.below(self.in_flight.len() as u64) as usize;
            let io = &self.in_flight[at];
            let writes = !matches!(io.action.op, IoOp::Read | IoOp::Clear | IoOp::Sync);
            if writes && io.performed.is_none() && self.rng.chance(1, 2) {
                let _ = self.perform(at);
            }
            self.in_flight.swap_remove(at);
        }
    }
}

/// The control plane's access to a simulated disk; writes count as completed at once.
#[derive(Debug)]
pub struct SimStorage<'a>(RefCell<(&'a mut Disk, u64)>);

impl Storage for SimStorage<'_> {
    fn name(&self) -> String {
        self.0.borrow().0.name().to_owned()
    }

    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.borrow().0.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let access = self.0.borrow();
        if offset + buffer.len() as u64 > access.0.len() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        buffer.copy_from_slice(access.0.read(offset, buffer.len() as u64));
        Ok(())
    }

    /// A write of part of a sector writes the sector, as a file's page cache would.
    fn write_at(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let mut access = self.0.borrow_mut();
        let tick = access.1;
        let end = offset + bytes.len() as u64;
        if end > access.0.len() {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        let start = offset / 512 * 512;
        let mut hull = access.0.read(start, end.next_multiple_of(512) - start).to_vec();
        hull[(offset - start) as usize..][..bytes.len()].copy_from_slice(bytes);
        let seq = access.0.write(start, hull);
        access.0.completed(seq, tick);
        Ok(())
    }

    fn sync(&self) -> std::io::Result<()> {
        self.0.borrow_mut().0.sync(u64::MAX, false);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
