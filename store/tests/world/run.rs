//! Random cases: the requests to a world and its crashes; and the reduction of a failing case.

use std::panic::{AssertUnwindSafe, catch_unwind};

use snapblk_store::cow::Persistence;
use snapblk_store::io::sim::{Fault, Rng};
use snapblk_store::io::{Errno, FileId, IoOp};
use snapblk_store::request::Op;

use super::budget::Budget;
use super::change::Change;
use super::{Config, Coverage, Req, Shape, Snap, World};

/// An event between two requests.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Ask(Req),
    /// After that many turns the process is killed, or the power fails; with `aim`, when entries
    /// are written next.
    Crash {
        turns: u64,
        power: bool,
        aim: bool,
    },
    /// Tables are swapped, as soon as possible.
    Change(Change),
    /// I/O fails from now on.
    Fault(Fault),
}

#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    pub config: Config,
    pub events: Vec<Event>,
}

const KINDS: [Persistence; 3] =
    [Persistence::Persistent, Persistence::PersistentOverflow, Persistence::Transient];

fn snap(rng: &mut Rng, sectors: u64) -> Snap {
    let chunk = 1 << rng.below(5);
    let length = if rng.chance(1, 3) { 1 + rng.below(sectors) } else { sectors };
    let small = rng.chance(1, 5);
    let chunks = length.div_ceil(chunk);
    let areas = chunks / (chunk * 32) + 3;
    let store = if small { 2 + rng.below(chunks + 2) } else { chunks + areas + 2 };
    Snap {
        chunk: chunk as u32,
        persistence: *rng.pick(&KINDS),
        store: store.max(3) * chunk,
        sectors: length,
    }
}

/// A snapshot that can be merged, and become a snapshot again after half of that.
pub fn mergeable(rng: &mut Rng, sectors: u64) -> Snap {
    let chunk = 1 << rng.below(4);
    let chunks = sectors.div_ceil(chunk) * (1 + TURNS_BACK);
    let store = (chunks + chunks / (chunk * 32) + 5) * chunk;
    Snap { chunk: chunk as u32, persistence: *rng.pick(&KINDS[..2]), store, sectors }
}

/// How often a merge may become a snapshot again: each time it may allocate all chunks anew.
const TURNS_BACK: u64 = 3;

/// The subject of a case: each makes likely what is otherwise rare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Profile {
    Anything,
    /// Many flushes from several workers of one overlay.
    Flushes,
    /// Writes that fill areas of more than one sector, cut while those are written.
    Areas,
    /// One snapshot and its origin write the same few chunks.
    Contended,
    /// Chunks larger than a buffer.
    Large,
    /// Snapshots are merged, become snapshots again, and are taken.
    Merges,
    /// Tables are swapped under requests.
    Handovers,
    /// Some I/O fails.
    Faults,
}

const PROFILES: [Profile; 14] = [
    Profile::Anything,
    Profile::Anything,
    Profile::Anything,
    Profile::Anything,
    Profile::Flushes,
    Profile::Areas,
    Profile::Areas,
    Profile::Contended,
    Profile::Large,
    Profile::Merges,
    Profile::Merges,
    Profile::Merges,
    Profile::Handovers,
    Profile::Faults,
];

fn overlay(chunk: u64, sectors: u64) -> Shape {
    let chunks = sectors.div_ceil(chunk);
    Shape::Overlay { chunk: chunk as u32, store: (chunks + chunks / (chunk * 32) + 5) * chunk }
}

impl Profile {
    /// Sectors of the base, and the devices.
    fn shape(self, rng: &mut Rng) -> (u64, Shape) {
        let sectors = 40 + rng.below(160);
        match self {
            Profile::Anything => match rng.below(8) {
                0 => (sectors, Shape::Plain),
                1..=4 => {
                    let snaps = (0..1 + rng.below(4)).map(|_| snap(rng, sectors)).collect();
                    (sectors, Shape::Origin(snaps))
                }
                _ => (sectors, overlay(1 << rng.below(5), sectors)),
            },
            Profile::Flushes => (sectors, overlay(1 << rng.below(3), sectors)),
            Profile::Areas => {
                let chunk = 2 << rng.below(2);
                let sectors = chunk * (30 + rng.below(100));
                (sectors, overlay(chunk, sectors))
            }
            Profile::Contended => {
                let sectors = 8 + rng.below(16);
                let chunk = 1 << rng.below(3);
                let persistence = Persistence::Persistent;
                let store = 40 * chunk;
                let snap = Snap { chunk: chunk as u32, persistence, store, sectors };
                (sectors, Shape::Origin(vec![snap]))
            }
            Profile::Large => {
                let sectors = 500 + rng.below(400);
                let chunk = 256;
                let persistence = Persistence::PersistentOverflow;
                let snap = Snap { chunk: chunk as u32, persistence, store: chunk * 7, sectors };
                let small = Snap { chunk: 32, persistence, store: 32 * 32, sectors };
                match rng.below(3) {
                    0 => (sectors, overlay(chunk, sectors)),
                    1 => (sectors, Shape::Origin(vec![snap])),
                    _ => (sectors, Shape::Origin(vec![small, snap])),
                }
            }
            Profile::Merges if rng.chance(1, 3) => {
                let Snap { chunk, store, .. } = mergeable(rng, sectors);
                (sectors, Shape::Overlay { chunk, store })
            }
            Profile::Merges => {
                let mut snaps = vec![mergeable(rng, sectors)];
                (0..rng.below(3)).for_each(|_| snaps.push(mergeable(rng, sectors)));
                (sectors, Shape::Origin(snaps))
            }
            Profile::Handovers | Profile::Faults => match rng.below(4) {
                0 => (sectors, overlay(1 << rng.below(5), sectors)),
                _ => {
                    let snaps = (0..1 + rng.below(3)).map(|_| mergeable(rng, sectors)).collect();
                    (sectors, Shape::Origin(snaps))
                }
            },
        }
    }

    /// A random change of tables, sometimes.
    fn change(self, rng: &mut Rng, shape: &Shape, sectors: u64) -> Option<Change> {
        let devices = match shape {
            Shape::Origin(snaps) => 1 + snaps.len() as u64,
            Shape::Overlay { .. } => 1,
            Shape::Plain => return None,
        };
        let (of, in_all) = match self {
            Profile::Merges | Profile::Handovers => (1, 6),
            Profile::Faults => (1, 12),
            _ => (1, 40),
        };
        if !rng.chance(of, in_all) {
            return None;
        }
        let any = rng.below(devices) as usize;
        let merged = 1 + rng.below(devices.max(2) - 1) as usize;
        Some(match (self, rng.below(8)) {
            (Profile::Merges, 0..=3) | (Profile::Faults, 0..=5) => Change::Merge(merged),
            (Profile::Merges, 4..=5) => Change::Back,
            (Profile::Merges, 6) | (Profile::Handovers, _) => Change::Renew(any),
            _ => Change::New(mergeable(rng, sectors)),
        })
    }

    fn fault(self, rng: &mut Rng, shape: &Shape) -> Option<Fault> {
        if self != Profile::Faults || !rng.chance(1, 15) {
            return None;
        }
        let files = match shape {
            Shape::Origin(snaps) => 1 + snaps.len() as u64,
            _ => 2,
        };
        let op = *rng.pick(&[IoOp::Read, IoOp::Write, IoOp::Write, IoOp::Sync]);
        let errno = *rng.pick(&[Errno::EIO, Errno::EIO, Errno::ENOSPC]);
        Some(Fault {
            file: rng.chance(3, 4).then(|| FileId(rng.below(files) as u32)),
            op: rng.chance(7, 8).then_some(op),
            range: None,
            after: rng.below(20) as u32,
            count: 1 + rng.below(2) as u32,
            errno,
        })
    }

    fn crashes(self) -> (u64, u64) {
        match self {
            Profile::Anything | Profile::Large => (1, 25),
            Profile::Flushes | Profile::Areas => (1, 10),
            Profile::Contended => (1, 6),
            Profile::Merges | Profile::Handovers | Profile::Faults => (1, 15),
        }
    }
}

/// Whether a snapshot's store may be too small for its exceptions.
fn is_small(shape: &Shape) -> bool {
    let Shape::Origin(snaps) = shape else { return false };
    snaps.iter().any(|snap| {
        let chunk = u64::from(snap.chunk);
        let chunks = snap.sectors.div_ceil(chunk);
        snap.store < (chunks + chunks / (chunk * 32) + 3) * chunk
    })
}

impl Case {
    pub fn random(seed: u64, crashes: bool) -> Case {
        let mut rng = Rng::new(seed.wrapping_mul(0x9e37_79b9));
        let profile = *rng.pick(&PROFILES);
        let (sectors, shape) = profile.shape(&mut rng);
        let mut config = Config::new(shape, sectors);
        config.queues = 1 + rng.below(3) as usize;
        config.depth = 1 + rng.below(24) as usize;
        config.claims = 1 + rng.below(20) as usize;
        config.scratch = *rng.pick(&[64 << 10, 128 << 10, 1 << 20]);
        if profile == Profile::Large {
            config.scratch = 64 << 10;
        }
        config.commits = true;
        config.failures = is_small(&config.shape) || profile == Profile::Faults;
        config.origin_failures = profile == Profile::Faults;
        let count = 10 + rng.below(80);
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(Event::Ask(request(&mut rng, &config, profile)));
            let (of, in_all) = profile.crashes();
            if crashes && rng.chance(of, in_all) {
                let often = profile == Profile::Areas;
                let (power, aim) = (often || rng.chance(1, 2), often || rng.chance(1, 2));
                events.push(Event::Crash { turns: rng.below(250), power, aim });
            }
            let change = profile.change(&mut rng, &config.shape, sectors);
            events.extend(change.filter(|_| crashes).map(Event::Change));
            let fault = profile.fault(&mut rng, &config.shape);
            events.extend(fault.filter(|_| crashes).map(Event::Fault));
        }
        if crashes {
            let (power, aim) = (rng.chance(2, 3), rng.chance(1, 2));
            events.push(Event::Crash { turns: rng.below(500), power, aim });
        }
        let back = |event: &Event| matches!(event, Event::Change(Change::Back));
        // There and back again: two changes.
        let mut turns = 2 * TURNS_BACK;
        events.retain(|event| {
            turns = if back(event) { turns.saturating_sub(1) } else { turns };
            !back(event) || turns > 0
        });
        Case { seed, config, events }
    }

    /// Runs the case; returns the events that it met, or its failure.
    pub fn run(&self) -> Result<Coverage, String> {
        let mut world = World::new(self.config.clone(), self.seed);
        let result = catch_unwind(AssertUnwindSafe(|| self.drive(&mut world)));
        let coverage = world.coverage.clone();
        // A failed world has actions in flight, about which its workers' end would complain.
        match result {
            Ok(Ok(())) => Ok(coverage),
            Ok(Err(message)) => {
                std::mem::forget(world);
                Err(message)
            }
            Err(panic) => {
                std::mem::forget(world);
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                Err(format!("panic: {}", text.unwrap_or_default()))
            }
        }
    }

    fn drive(&self, world: &mut World) -> Result<(), String> {
        if let Shape::Origin(snaps) = &self.config.shape
            && snaps.iter().any(|snap| snap.chunk != snaps[0].chunk)
        {
            world.coverage.met("two chunk sizes");
        }
        for event in &self.events {
            match *event {
                Event::Ask(req) => world.ask([req]),
                Event::Crash { turns, power, aim } => {
                    let more = if aim { 500 } else { 0 };
                    if aim {
                        let flush = |device| Req {
                            device,
                            op: Op::Flush,
                            sector: 0,
                            count: 0,
                            durable: false,
                        };
                        world.ask((0..world.devices.len()).map(flush));
                    }
                    let step = world.rng.below(10);
                    for turn in 0..turns + more {
                        let aimed = || world.writes_entries() || world.merge_is_at(step);
                        if (turn >= turns && aimed()) || !world.turn()? {
                            break;
                        }
                    }
                    self.note_full(world);
                    world.crash(power)?;
                }
                Event::Change(change) => {
                    for _ in 0..world.rng.below(60) {
                        world.turn()?;
                    }
                    world.change(change);
                }
                Event::Fault(fault) => {
                    world.sim.add_fault(fault);
                }
            }
        }
        world.run()?;
        self.note_full(world);
        world.sim.clear_faults();
        if world.merge_failed() {
            // Opened again, the merge is completed.
            world.crash(true)?;
            world.run()?;
            if world.merge_failed() {
                return Err("a merge fails though no I/O does".into());
            }
            world.coverage.met("failed merge completed");
        }
        world.judge_all()?;
        world.check_quiet()
    }

    fn note_full(&self, world: &mut World) {
        if world.stores.iter().any(|store| store.state() != snapblk_store::cow::StoreState::Valid) {
            world.coverage.met("full");
        }
    }

    /// The smallest case found that still fails, and its failure.
    fn shrink(mut self, mut message: String) -> (Case, String) {
        let mut step = self.events.len() / 2;
        while step > 0 {
            let mut at = 0;
            while at < self.events.len() {
                let mut smaller = self.clone();
                smaller.events.drain(at..(at + step).min(self.events.len()));
                // Another order of events may be needed to reproduce the failure.
                let failed = (0..4).find_map(|salt| {
                    let case = Case { seed: self.seed + salt * 1_000_003, ..smaller.clone() };
                    case.run().err().map(|message| (case, message))
                });
                match failed {
                    Some((case, why)) => (self, message) = (case, why),
                    None => at += step,
                }
            }
            step /= 2;
        }
        (self, message)
    }
}

fn request(rng: &mut Rng, config: &Config, profile: Profile) -> Req {
    let devices = match &config.shape {
        Shape::Origin(snaps) => snaps.len() as u64 + 1,
        _ => 1,
    };
    let device = if rng.chance(1, 2) { 0 } else { rng.below(devices) as usize };
    let sectors = match &config.shape {
        Shape::Origin(snaps) if device > 0 => snaps[device - 1].sectors,
        _ => config.sectors,
    };
    let op = match rng.below(20) {
        0..=9 => Op::Write,
        10 | 11 if profile == Profile::Flushes => Op::Flush,
        10..=14 => Op::Read,
        15 | 16 => Op::Flush,
        17 => Op::WriteZeroes { unmap: rng.chance(1, 2) },
        18 => Op::Discard,
        _ => Op::Write,
    };
    let (sector, count) = match op {
        Op::Flush => (0, 0),
        _ => {
            let sector = rng.below(sectors);
            let most = match profile {
                Profile::Flushes => 3,
                Profile::Areas | Profile::Large => 200,
                _ if rng.chance(1, 6) => 60,
                _ => 12,
            };
            (sector, (1 + rng.below(most)).min(sectors - sector))
        }
    };
    Req { device, op, sector, count, durable: rng.chance(1, 12) }
}

/// Runs the cases of as many seeds as the environment's budget permits. Panics with the smallest
/// failing case, and the command that repeats it.
pub fn sweep(name: &str, default: u64, case: impl Fn(u64) -> Case) -> Coverage {
    let mut coverage = Coverage::default();
    for seed in Budget::from_env(default).seeds() {
        let case = case(seed);
        match case.run() {
            Ok(met) => coverage.add(&met),
            Err(message) => panic!("{name}: {}", explain(case, message, name)),
        }
        coverage.met("seeds");
    }
    coverage
}

/// The failure of a case, its smallest version, and how to repeat it.
pub fn explain(case: Case, message: String, name: &str) -> String {
    let replay = format!("SNAPBLK_SEED={} {} {name}", case.seed, super::budget::COMMAND);
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|is| is == value);
    if std::env::var_os("SNAPBLK_TRACE").is_some() || is("SNAPBLK_SHRINK", "0") {
        return format!("{message}\nreplay: {replay}");
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let (small, why) = case.shrink(message.clone());
    std::panic::set_hook(hook);
    format!("{message}\nsmallest: {why}\n{small:#?}\nreplay: {replay}")
}
