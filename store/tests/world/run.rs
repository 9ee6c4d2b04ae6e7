//! Random cases: what is asked of a world, when it crashes; and how a case that fails is made small.

use std::panic::{AssertUnwindSafe, catch_unwind};

use snapblk_store::cow::Persistence;
use snapblk_store::io::sim::Rng;
use snapblk_store::request::Op;

use super::{Config, Coverage, Req, Shape, Snap, World};

/// What happens between two requests.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    Ask(Req),
    /// After so many turns the process is killed, or the power fails.
    Crash { turns: u64, power: bool },
    /// A live snapshot of an overlay.
    Layer,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    pub config: Config,
    pub events: Vec<Event>,
}

const KINDS: [Persistence; 3] =
    [Persistence::Persistent, Persistence::Overflow, Persistence::Transient];

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

impl Case {
    pub fn random(seed: u64, crashes: bool) -> Case {
        let mut rng = Rng::new(seed.wrapping_mul(0x9e37_79b9));
        let sectors = 40 + rng.below(160);
        let shape = match rng.below(8) {
            0 => Shape::Plain,
            1..=4 => Shape::Origin((0..1 + rng.below(4)).map(|_| snap(&mut rng, sectors)).collect()),
            _ => {
                let chunk = 1 << rng.below(5);
                let chunks = sectors.div_ceil(chunk);
                Shape::Overlay { chunk: chunk as u32, store: (chunks + chunks / (chunk * 32) + 5) * chunk }
            }
        };
        let small = match &shape {
            Shape::Origin(snaps) => snaps.iter().any(|snap| {
                let chunks = snap.sectors.div_ceil(u64::from(snap.chunk));
                snap.store < (chunks + chunks / (u64::from(snap.chunk) * 32) + 5) * u64::from(snap.chunk)
            }),
            _ => false,
        };
        let mut config = Config::new(shape, sectors);
        config.queues = 1 + rng.below(3) as usize;
        config.depth = 1 + rng.below(24) as usize;
        config.claims = 1 + rng.below(20) as usize;
        config.scratch = *rng.pick(&[64 << 10, 128 << 10, 1 << 20]);
        config.failures = small;
        let count = 10 + rng.below(80);
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(Event::Ask(request(&mut rng, &config)));
            if crashes && rng.chance(1, 25) {
                events.push(Event::Crash { turns: rng.below(200), power: rng.chance(1, 2) });
            }
            if crashes && matches!(config.shape, Shape::Overlay { .. }) && rng.chance(1, 40) {
                events.push(Event::Layer);
            }
        }
        if crashes {
            events.push(Event::Crash { turns: rng.below(500), power: rng.chance(2, 3) });
        }
        Case { seed, config, events }
    }

    /// Runs the case; what was met on the way, or what went wrong.
    pub fn run(&self) -> Result<Coverage, String> {
        let mut world = World::new(self.config.clone(), self.seed);
        let result = catch_unwind(AssertUnwindSafe(|| self.drive(&mut world)));
        let coverage = world.coverage.clone();
        // A world that failed has things in flight, which its workers' end would complain about.
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
                Event::Crash { turns, power } => {
                    for _ in 0..turns {
                        if !world.turn()? {
                            break;
                        }
                    }
                    self.note_full(world);
                    world.crash(power)?;
                }
                Event::Layer => world.push_layer()?,
            }
        }
        world.run()?;
        self.note_full(world);
        world.judge_all()?;
        world.check_quiet()
    }

    fn note_full(&self, world: &mut World) {
        if world.stores.iter().any(|store| store.state() != snapblk_store::cow::StoreState::Valid) {
            world.coverage.met("full");
        }
    }

    /// The smallest case found that still fails, and how.
    fn shrink(mut self, mut message: String) -> (Case, String) {
        let mut step = self.events.len() / 2;
        while step > 0 {
            let mut at = 0;
            while at < self.events.len() {
                let mut smaller = self.clone();
                smaller.events.drain(at..(at + step).min(self.events.len()));
                // Another order of events may be needed to see it again.
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

fn request(rng: &mut Rng, config: &Config) -> Req {
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
            let most = if rng.chance(1, 6) { 60 } else { 12 };
            (sector, (1 + rng.below(most)).min(sectors - sector))
        }
    };
    Req { device, op, sector, count, durable: rng.chance(1, 12) }
}

/// How many seeds to try: the environment's `SNAPBLK_SEEDS`, else `default`.
pub fn seeds(default: u64) -> u64 {
    std::env::var("SNAPBLK_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs the cases of many seeds; `SNAPBLK_SEED` names one alone. Panics with the smallest case
/// that fails.
pub fn sweep(name: &str, default: u64, case: impl Fn(u64) -> Case) -> Coverage {
    let mut coverage = Coverage::default();
    let one = std::env::var("SNAPBLK_SEED").ok().and_then(|text| text.parse().ok());
    let range = one.map_or(0..seeds(default), |seed: u64| seed..seed + 1);
    let quiet = std::env::var_os("SNAPBLK_TRACE").is_none();
    for seed in range {
        let case = case(seed);
        match case.run() {
            Ok(met) => coverage.add(&met),
            Err(message) if quiet => {
                let hook = std::panic::take_hook();
                std::panic::set_hook(Box::new(|_| {}));
                let (small, why) = case.shrink(message.clone());
                std::panic::set_hook(hook);
                panic!("{name}: seed {seed}: {message}\nsmallest: {why}\n{small:#?}");
            }
            Err(message) => panic!("{name}: seed {seed}: {message}"),
        }
    }
    coverage
}
