//! The witness: a program in the guest that writes and reads a part of a disk without end, and
//! knows at any time the content that it must find there, through snapshots and rollbacks too.
//!
//! It owns its blocks and the ledger of the permitted content of each; it measures the guest's
//! longest wait for one request. It never knows how the disk is made, nor exactly when a snapshot
//! or a rollback took effect: it is told two moments between which that was, and permits exactly
//! the contents that these leave open.
//!
//! Only the standard library, in one file: `images/system` compiles it by itself.
//!
//! ```text
//! witness DEVICE OFFSET LENGTH [PAUSE_US]   bytes; DEVICE is opened with O_DIRECT; PAUSE_US between two requests
//! ```
//! Commands are lines on standard input, each answered by one line: `snapshot-begin`,
//! `snapshot-end`, `rollback-begin`, `rollback-end`, `pause` (the longest request since the last
//! `pause`), `check` (reads everything), `quit` (the same, then ends). A wrong block ends the
//! program with status 1 and a sentence that identifies it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::{Duration, Instant};

/// Bytes of a block: the unit of the witness's requests and comparisons.
const BLOCK: usize = 4096;
/// O_DIRECT on x86-64 Linux.
const O_DIRECT: i32 = 0o40000;

/// The number of the write that a block's content comes from, counted from 1.
type Generation = u64;

/// A block's bytes, aligned for O_DIRECT.
#[repr(align(4096))]
struct Page([u8; BLOCK]);

impl Page {
    /// Fills the page with the content of `generation` for `block`: each 16 bytes contain both, so
    /// that a torn, stale or misplaced sector is recognised.
    fn fill(&mut self, block: u64, generation: Generation) {
        for pair in self.0.chunks_exact_mut(16) {
            pair[..8].copy_from_slice(&block.to_le_bytes());
            pair[8..].copy_from_slice(&generation.to_le_bytes());
        }
    }

    /// The page's generation for `block`, or where and why it has none.
    fn generation(&self, block: u64) -> Result<Generation, String> {
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&self.0[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let first = word(8);
        for at in (0..BLOCK).step_by(16) {
            if (word(at), word(at + 8)) != (block, first) {
                return Err(format!(
                    "byte {at} names block {} generation {}, the start generation {first}",
                    word(at),
                    word(at + 8)
                ));
            }
        }
        Ok(first)
    }
}

/// The generations that one block may hold.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Allowed(Vec<Generation>);

impl Allowed {
    fn only(generation: Generation) -> Self {
        Self(vec![generation])
    }

    fn and(&mut self, generation: Generation) {
        if !self.0.contains(&generation) {
            self.0.push(generation);
        }
    }

    fn and_all(&mut self, other: &Self) {
        for &generation in &other.0 {
            self.and(generation);
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&numbers.join(" or "))
    }
}

/// The state of the disk as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Phase {
    /// No change: a block has the content of its last write.
    Steady,
    /// A snapshot is being taken: it may or may not contain present writes.
    Snapshot,
    /// A rollback is taking effect: it may or may not undo present writes. The written blocks.
    Rollback(Vec<bool>),
}

/// The permitted content of each block, now and in the snapshot.
struct Ledger {
    now: Vec<Allowed>,
    snapshot: Vec<Allowed>,
    phase: Phase,
}

impl Ledger {
    /// Every block was written once, with its number plus one as the generation; there is no
    /// snapshot.
    fn new(blocks: u64) -> Self {
        let now = (0..blocks).map(|block| Allowed::only(block + 1)).collect();
        Self { now, snapshot: Vec::new(), phase: Phase::Steady }
    }

    fn wrote(&mut self, block: usize, generation: Generation) {
        self.now[block] = Allowed::only(generation);
        match &mut self.phase {
            Phase::Steady => {}
            Phase::Snapshot => self.snapshot[block].and(generation),
            Phase::Rollback(written) => {
                written[block] = true;
                self.now[block].and_all(&self.snapshot[block]);
            }
        }
    }

    /// A read found `generation`. While the disk is not changing as a whole, it becomes the only
    /// one.
    fn found(&mut self, block: usize, generation: Generation) -> Result<(), String> {
        let allowed = &mut self.now[block];
        if !allowed.0.contains(&generation) {
            return Err(format!("holds generation {generation}, and must hold {allowed}"));
        }
        if !matches!(self.phase, Phase::Rollback(_)) {
            *allowed = Allowed::only(generation);
        }
        Ok(())
    }

    /// Handles one of the four marks. Errors: the mark does not follow from the state.
    fn mark(&mut self, mark: Mark) -> Result<(), String> {
        self.phase = match (mark, std::mem::replace(&mut self.phase, Phase::Steady)) {
            (Mark::SnapshotBegin, Phase::Steady) => {
                self.snapshot = self.now.clone();
                Phase::Snapshot
            }
            (Mark::SnapshotEnd, Phase::Snapshot) => Phase::Steady,
            (Mark::RollbackBegin, Phase::Steady) if !self.snapshot.is_empty() => {
                for (now, then) in self.now.iter_mut().zip(&self.snapshot) {
                    now.and_all(then);
                }
                Phase::Rollback(vec![false; self.now.len()])
            }
            (Mark::RollbackEnd, Phase::Rollback(written)) => {
                for (block, then) in std::mem::take(&mut self.snapshot).into_iter().enumerate() {
                    if !written[block] {
                        self.now[block] = then;
                    }
                }
                Phase::Steady
            }
            (mark, phase) => {
                return Err(format!("{mark:?} does not fit: the disk is in phase {phase:?}"));
            }
        };
        Ok(())
    }
}

/// The limits of the times at which the disk changed as a whole.
#[derive(Clone, Copy, Debug)]
enum Mark {
    SnapshotBegin,
    SnapshotEnd,
    RollbackBegin,
    RollbackEnd,
}

impl Mark {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "snapshot-begin" => Self::SnapshotBegin,
            "snapshot-end" => Self::SnapshotEnd,
            "rollback-begin" => Self::RollbackBegin,
            "rollback-end" => Self::RollbackEnd,
            _ => return None,
        })
    }
}

/// The longest request since the last query, in microseconds.
#[derive(Default)]
struct Waits {
    longest: u64,
    total: u64,
    requests: u64,
}

impl Waits {
    fn took(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.longest = self.longest.max(micros);
        self.total = self.total.saturating_add(micros);
        self.requests += 1;
    }
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mean = self.total / self.requests.max(1);
        write!(f, "longest_us={} mean_us={mean} requests={}", self.longest, self.requests)
    }
}

/// Pseudo-random numbers that are the same in every run (xorshift64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// The disk's blocks, the ledger of their content, and the next generation.
struct Witness {
    device: File,
    offset: u64,
    blocks: u64,
    page: Box<Page>,
    ledger: Ledger,
    generation: Generation,
    waits: Waits,
    dice: Dice,
}

impl Witness {
    /// Opens the device and writes every block once.
    fn start(device: &str, offset: u64, length: u64) -> Result<Self, String> {
        let blocks = length / BLOCK as u64;
        if blocks == 0 || !offset.is_multiple_of(BLOCK as u64) {
            return Err(format!(
                "{device}: offset {offset} and length {length} name no blocks of {BLOCK} bytes"
            ));
        }
        let open = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(device);
        let mut witness = Self {
            device: open.map_err(|error| format!("{device}: cannot be opened: {error}"))?,
            offset,
            blocks,
            page: Box::new(Page([0; BLOCK])),
            ledger: Ledger::new(blocks),
            generation: 0,
            waits: Waits::default(),
            dice: Dice(0x9e37_79b9_7f4a_7c15),
        };
        for block in 0..blocks {
            witness.write(block)?;
        }
        Ok(witness)
    }

    fn write(&mut self, block: u64) -> Result<(), String> {
        self.generation += 1;
        self.page.fill(block, self.generation);
        let begin = Instant::now();
        let done = self.device.write_all_at(&self.page.0, self.offset + block * BLOCK as u64);
        self.waits.took(begin.elapsed());
        done.map_err(|error| format!("block {block} cannot be written: {error}"))?;
        self.ledger.wrote(block as usize, self.generation);
        Ok(())
    }

    fn read(&mut self, block: u64) -> Result<(), String> {
        let begin = Instant::now();
        let done = self.device.read_exact_at(&mut self.page.0, self.offset + block * BLOCK as u64);
        self.waits.took(begin.elapsed());
        done.map_err(|error| format!("block {block} cannot be read: {error}"))?;
        self.page
            .generation(block)
            .and_then(|generation| self.ledger.found(block as usize, generation))
            .map_err(|error| format!("block {block} {error}"))
    }

    /// One request: a read or a write of a random block.
    fn request(&mut self) -> Result<(), String> {
        let block = self.dice.below(self.blocks);
        if self.dice.below(2) == 0 { self.read(block) } else { self.write(block) }
    }

    fn check(&mut self) -> Result<String, String> {
        for block in 0..self.blocks {
            self.read(block)?;
        }
        Ok(format!("blocks={} generations={}", self.blocks, self.generation))
    }

    /// Carries out one command; returns the answer's line.
    fn obey(&mut self, command: &str) -> Result<String, String> {
        let said = match command {
            "pause" => std::mem::take(&mut self.waits).to_string(),
            "check" | "quit" => self.check()?,
            name => {
                let mark =
                    Mark::named(name).ok_or_else(|| format!("there is no command '{name}'"))?;
                self.ledger.mark(mark)?;
                String::from("ok")
            }
        };
        Ok(format!("{command} {said}"))
    }
}

/// Standard input's lines, read by a separate thread so that the requests continue meanwhile.
fn commands() -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line.trim().to_owned()).is_err() {
                break;
            }
        }
    });
    receiver
}

fn run(arguments: &[String]) -> Result<(), String> {
    let usage = "usage: witness DEVICE OFFSET LENGTH [PAUSE_US]";
    let (device, numbers) = arguments.split_first().ok_or(usage)?;
    let numbers: Vec<u64> =
        numbers.iter().map(|n| n.parse()).collect::<Result<_, _>>().map_err(|_| usage)?;
    let (offset, length, between) = match *numbers.as_slice() {
        [offset, length] => (offset, length, 0),
        [offset, length, between] => (offset, length, between),
        _ => return Err(usage.to_owned()),
    };
    let mut witness = Witness::start(device, offset, length)?;
    let say =
        |line: &str| writeln!(io::stdout(), "witness {line}").map_err(|error| error.to_string());
    witness.waits = Waits::default();
    say("started")?;
    let commands = commands();
    loop {
        match commands.try_recv() {
            Ok(command) => {
                say(&witness.obey(&command)?)?;
                if command == "quit" {
                    return Ok(());
                }
            }
            Err(TryRecvError::Empty) => witness.request()?,
            Err(TryRecvError::Disconnected) => {
                return Err("standard input ended without 'quit'".to_owned());
            }
        }
        std::thread::sleep(Duration::from_micros(between));
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("witness FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_tells_its_generation_and_a_torn_one_where() {
        let mut page = Box::new(Page([0; BLOCK]));
        page.fill(7, 9);
        assert_eq!(page.generation(7), Ok(9));
        assert!(page.generation(8).is_err(), "another block's content");
        page.0[512 + 8] = 8;
        assert!(page.generation(7).is_err_and(|error| error.contains("byte 512")));
    }

    #[test]
    fn a_block_holds_what_was_written_last() {
        let mut ledger = Ledger::new(2);
        ledger.wrote(0, 3);
        assert!(ledger.found(0, 1).is_err(), "a lost write");
        assert_eq!(ledger.found(0, 3), Ok(()));
        assert_eq!(ledger.found(1, 2), Ok(()));
    }

    #[test]
    fn a_rollback_brings_back_what_the_snapshot_held_and_nothing_else() {
        let mut ledger = Ledger::new(4);
        ledger.mark(Mark::SnapshotBegin).unwrap();
        ledger.wrote(1, 5); // may be in the snapshot
        ledger.mark(Mark::SnapshotEnd).unwrap();
        ledger.wrote(0, 6);
        ledger.wrote(1, 7);
        ledger.mark(Mark::RollbackBegin).unwrap();
        ledger.wrote(2, 8); // may be undone
        ledger.mark(Mark::RollbackEnd).unwrap();
        ledger.wrote(3, 9);
        assert!(ledger.found(0, 6).is_err(), "not rolled back");
        assert_eq!(ledger.found(0, 1), Ok(()));
        assert!(ledger.found(1, 7).is_err(), "not rolled back");
        assert_eq!(ledger.found(1, 5), Ok(()));
        assert!(ledger.found(1, 2).is_err(), "changed its mind");
        assert_eq!(ledger.found(2, 8), Ok(()));
        assert!(ledger.found(3, 4).is_err(), "a write after the rollback was undone");
        assert_eq!(ledger.found(3, 9), Ok(()));
    }

    #[test]
    fn while_a_rollback_takes_effect_both_are_right() {
        let mut ledger = Ledger::new(1);
        ledger.mark(Mark::SnapshotBegin).unwrap();
        ledger.mark(Mark::SnapshotEnd).unwrap();
        ledger.wrote(0, 2);
        ledger.mark(Mark::RollbackBegin).unwrap();
        assert_eq!(ledger.found(0, 2), Ok(()));
        assert_eq!(ledger.found(0, 1), Ok(()));
        assert!(ledger.mark(Mark::SnapshotBegin).is_err());
    }
}
