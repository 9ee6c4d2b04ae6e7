//! The permitted content of each sector of a device: a history of writes, and which are settled.

use std::collections::BTreeMap;

pub const SECTOR: usize = 512;
/// The stamp of sectors with any content: discarded.
pub const ANY: u64 = u64::MAX;
/// The stamp of sectors with zeroes.
pub const ZERO: u64 = 0;

/// The bytes of `sector` after the write with `stamp`.
pub fn pattern(stamp: u64, sector: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if stamp == ZERO {
        return bytes;
    }
    let seed = stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ sector.wrapping_mul(0xc2b2_ae3d_27d4);
    for (n, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = match n {
            0 => stamp,
            1 => sector,
            _ => seed.wrapping_add(n as u64),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// The identity in a sector's first words, for messages.
pub fn describe(bytes: &[u8]) -> String {
    let word = |n: usize| u64::from_le_bytes(bytes[n * 8..][..8].try_into().unwrap());
    if bytes.iter().all(|&byte| byte == 0) {
        return "zeroes".into();
    }
    let whole = bytes == pattern(word(0), word(1));
    format!("write {} of sector {}{}", word(0), word(1), if whole { "" } else { ", torn" })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    InFlight,
    Acked(u64),
    Failed,
    /// A sync that should have made it durable failed: it may be seen until the power fails, and no
    /// flush makes it durable, whichever process that is of.
    Doubtful,
}

#[derive(Clone, Debug)]
struct Write {
    stamp: u64,
    state: State,
}

/// The place of the last acknowledged write: a reader sees that one, or a later one.
fn settled(history: &[Write]) -> usize {
    let acked = |write: &Write| matches!(write.state, State::Acked(_));
    history.iter().rposition(acked).unwrap_or(0)
}

/// The sectors of a device.
#[derive(Clone, Debug)]
pub struct Model {
    sectors: Vec<Vec<Write>>,
    /// Flushes in flight, and the time at which each was submitted.
    flushes: BTreeMap<u64, u64>,
}

impl Model {
    pub fn new(sectors: u64, stamp: u64) -> Model {
        let write = Write { stamp, state: State::Acked(0) };
        Model { sectors: vec![vec![write]; sectors as usize], flushes: BTreeMap::new() }
    }

    /// A device with the content `bytes`, all of it durable.
    pub fn of_bytes(bytes: &[u8]) -> Model {
        let stamp = |(sector, bytes): (usize, &[u8])| {
            let word = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let is = |stamp| bytes == pattern(stamp, sector as u64);
            let stamp = [ZERO, word].into_iter().find(|&stamp| is(stamp)).unwrap_or(ANY);
            vec![Write { stamp, state: State::Acked(0) }]
        };
        let sectors = bytes.chunks(SECTOR).enumerate().map(stamp).collect();
        Model { sectors, flushes: BTreeMap::new() }
    }

    pub fn len(&self) -> u64 {
        self.sectors.len() as u64
    }

    pub fn truncate(&mut self, sectors: u64) {
        self.sectors.truncate(sectors as usize);
    }

    pub fn write_begins(&mut self, sector: u64, count: u64, stamp: u64) {
        for history in &mut self.sectors[sector as usize..][..count as usize] {
            history.push(Write { stamp, state: State::InFlight });
        }
    }

    pub fn write_ends(
        &mut self,
        sector: u64,
        count: u64,
        stamp: u64,
        now: u64,
        ok: bool,
        durable: bool,
    ) {
        for history in &mut self.sectors[sector as usize..][..count as usize] {
            let at = history.iter().rposition(|write| write.stamp == stamp).expect("it began");
            history[at].state = if ok { State::Acked(now) } else { State::Failed };
            if ok && durable {
                history.drain(..at);
            }
        }
    }

    pub fn flush_begins(&mut self, id: u64, now: u64) {
        self.flushes.insert(id, now);
    }

    pub fn flush_ends(&mut self, id: u64, ok: bool) {
        let began = self.flushes.remove(&id).expect("it began");
        if !ok {
            return;
        }
        for history in &mut self.sectors {
            let covered = |write: &Write| matches!(write.state, State::Acked(at) if at < began);
            if let Some(at) = history.iter().rposition(covered) {
                history.drain(..at);
            }
        }
    }

    /// Whether a reader may see `bytes` in `sector`: the last acknowledged write, or a later one
    /// that may or may not have taken effect.
    pub fn allows(&self, sector: u64, bytes: &[u8]) -> bool {
        self.matching(sector, bytes, false).is_some()
    }

    /// Whether a power cut may leave `bytes` in `sector`.
    pub fn survives(&self, sector: u64, bytes: &[u8]) -> bool {
        self.matching(sector, bytes, true).is_some()
    }

    fn matching(&self, sector: u64, bytes: &[u8], power: bool) -> Option<u64> {
        let history = &self.sectors[sector as usize];
        let from = if power { 0 } else { settled(history) };
        let of = |write: &&Write| write.stamp != ANY && bytes == pattern(write.stamp, sector);
        let exact = history[from..].iter().rev().find(of).map(|write| write.stamp);
        exact.or_else(|| history[from..].iter().any(|w| w.stamp == ANY).then_some(ANY))
    }

    /// The permitted content of a sector, for messages.
    pub fn expected(&self, sector: u64) -> String {
        format!("{:?}", self.sectors[sector as usize])
    }

    /// After a crash the device has `bytes` in `sector`; false if that is not permitted. Where it is
    /// `doubtful`, that is not certain; nor is what was doubtful when an earlier process ended, and
    /// was not written since.
    pub fn settle(&mut self, sector: u64, bytes: &[u8], power: bool, doubtful: bool) -> bool {
        let Some(stamp) = self.matching(sector, bytes, power) else { return false };
        self.flushes.clear();
        let history = &mut self.sectors[sector as usize];
        if power {
            history.clear();
        }
        if doubtful {
            return true;
        }
        let from = settled(history);
        let is_seen = |write: &Write| write.stamp == stamp;
        let is_doubtful = |write: &Write| write.state == State::Doubtful;
        if history[from..].iter().any(|write| is_seen(write) && is_doubtful(write)) {
            // What was in flight after it took no effect.
            let last = history.iter().rposition(is_seen).expect("one of them is");
            let mut place = 0..;
            history.retain(|write| place.next() <= Some(last) || is_doubtful(write));
        } else {
            history.push(Write { stamp, state: State::Acked(0) });
        }
        true
    }

    /// Nothing that was not flushed is certain any more, and no later flush makes it durable.
    pub fn doubt_unflushed(&mut self) {
        for write in self.sectors.iter_mut().flat_map(|history| &mut history[1..]) {
            write.state = State::Doubtful;
        }
    }

    /// All certain content is durable too (nothing is in flight).
    pub fn all_durable(&mut self) {
        for history in &mut self.sectors {
            let last = history.len() - 1;
            history.drain(..last);
        }
    }
}
