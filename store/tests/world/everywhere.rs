//! One case repeatedly: cut after each step of its I/O, and with each of its actions failing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use snapblk_store::io::sim::{Fault, Rng};
use snapblk_store::io::{Errno, FileId, IoOp};
use snapblk_store::request::Op;

use super::budget::{Budget, COMMAND};
use super::change::Change;
use super::run::{Case, Event};
use super::{Config, Coverage, Req, Shape, World};

/// The fault at one of a case's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// The power fails after that many steps of the I/O.
    Power(u64),
    /// The process is killed then.
    Kill(u64),
    /// The action with this number fails.
    Fail(u64),
}

/// A short case that does everything once: `seed` chooses the devices and the order.
fn short(seed: u64) -> Case {
    let mut case = Case::random(seed, false);
    let mut rng = Rng::new(seed ^ 0xe4e4);
    let sectors = 24 + rng.below(40);
    let snap = |rng: &mut Rng| super::run::mergeable(rng, sectors);
    let first = snap(&mut rng);
    let shape = if rng.chance(1, 3) {
        Shape::Overlay { chunk: first.chunk, store: first.store }
    } else {
        let second = snap(&mut rng);
        Shape::Origin(if rng.chance(1, 2) { vec![first, second] } else { vec![first] })
    };
    let devices = if let Shape::Origin(snaps) = &shape { 1 + snaps.len() as u64 } else { 1 };
    let (queues, commits) = (1 + rng.below(2) as usize, true);
    case.config = Config { queues, commits, ..Config::new(shape, sectors) };
    let ask = |rng: &mut Rng, op| {
        let (device, sector) = (rng.below(devices) as usize, rng.below(sectors));
        let count = if op == Op::Flush { 0 } else { (1 + rng.below(12)).min(sectors - sector) };
        let sector = if op == Op::Flush { 0 } else { sector };
        Event::Ask(Req { device, op, sector, count, durable: rng.chance(1, 8) })
    };
    let ops = [Op::Write, Op::Write, Op::Write, Op::Read, Op::Flush];
    case.events.clear();
    for change in [Change::Merge(1), Change::Back, Change::Back, Change::Renew(0)] {
        for _ in 0..2 + rng.below(4) {
            let op = *rng.pick(&ops);
            case.events.push(ask(&mut rng, op));
        }
        case.events.push(Event::Change(change));
        if change.is_back() && rng.chance(1, 2) {
            case.events.pop();
        }
    }
    case
}

impl Change {
    fn is_back(self) -> bool {
        matches!(self, Change::Back)
    }
}

/// Runs each seed's short case once for each of its steps.
pub fn everywhere(name: &str, default: u64, harm: impl Fn(u64) -> Harm) -> Coverage {
    let mut coverage = Coverage::default();
    let at = std::env::var("SNAPBLK_AT").ok().and_then(|text| text.parse::<u64>().ok());
    for seed in Budget::from_env(default).seeds() {
        let case = short(seed);
        let mut step = at.unwrap_or(0);
        loop {
            match case.run_with(harm(step)) {
                Ok((met, harmed)) => {
                    coverage.add(&met);
                    if !harmed || at.is_some() {
                        break;
                    }
                }
                Err(message) => panic!(
                    "{name}: seed {seed}, step {step}: {message}\n{case:#?}\nreplay: \
                     SNAPBLK_SEED={seed} SNAPBLK_AT={step} {COMMAND} {name}"
                ),
            }
            step += 1;
            coverage.met("runs");
        }
        coverage.met("seeds");
    }
    coverage
}

impl Case {
    /// Runs the case with this fault; also returns whether it occurred.
    fn run_with(&self, harm: Harm) -> Result<(Coverage, bool), String> {
        let mut config = self.config.clone();
        config.failures |= matches!(harm, Harm::Fail(_));
        config.origin_failures |= matches!(harm, Harm::Fail(_));
        let mut world = World::new(config, self.seed);
        let result = catch_unwind(AssertUnwindSafe(|| self.drive_with(&mut world, harm)));
        let coverage = world.coverage.clone();
        let result = match result {
            Ok(result) => result,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                Err(format!("panic: {}", text.unwrap_or_default()))
            }
        };
        if result.is_err() {
            std::mem::forget(world);
        }
        result.map(|harmed| (coverage, harmed))
    }

    fn drive_with(&self, world: &mut World, harm: Harm) -> Result<bool, String> {
        if let Harm::Fail(after) = harm {
            world.sim.add_fault(any_fault(after));
        }
        let end = match harm {
            Harm::Power(step) | Harm::Kill(step) => step,
            Harm::Fail(_) => u64::MAX,
        };
        let mut cut = false;
        for event in &self.events {
            match *event {
                Event::Ask(req) => world.ask([req]),
                Event::Change(change) => {
                    for _ in 0..world.rng.below(80) {
                        cut |= world.advanced >= end;
                        if cut || !world.turn()? {
                            break;
                        }
                    }
                    if !cut {
                        world.change(change);
                    }
                }
                Event::Crash { .. } | Event::Fault(_) => {}
            }
        }
        while !cut && world.turn()? {
            cut |= world.advanced >= end;
        }
        let harmed = cut || matches!(harm, Harm::Fail(_)) && world.sim.failed() > 0;
        world.sim.clear_faults();
        // What a failed sync lost is still seen after a kill.
        let killed = match harm {
            Harm::Power(_) => false,
            Harm::Kill(_) => true,
            Harm::Fail(step) => step % 2 == 1,
        };
        world.crash(!killed)?;
        if world.merge_failed() {
            world.crash(true)?;
        }
        world.run()?;
        if world.merge_failed() {
            return Err("a merge fails though no I/O does".into());
        }
        world.judge_all()?;
        world.check_quiet()?;
        // The content that was found is durable.
        world.crash(true)?;
        world.judge_all()?;
        Ok(harmed)
    }
}

fn any_fault(after: u64) -> Fault {
    let (file, op, range): (Option<FileId>, Option<IoOp>, _) = (None, None, None);
    Fault { file, op, range, after: after as u32, count: 1, errno: Errno::EIO }
}
