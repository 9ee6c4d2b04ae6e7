//! The size of a sweep: seeds, or seconds; or a single seed.

use std::time::{Duration, Instant};

/// The command that repeats a seed; the name of the test follows.
pub const COMMAND: &str = "cargo test --profile sweep -p snapblk-store --test crash --";

/// The environment's limits: `SNAPBLK_SEED` is one seed, `SNAPBLK_SEEDS` a number of them,
/// `SNAPBLK_SECONDS` as many as fit in that time, each from `SNAPBLK_FIRST` on.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    first: u64,
    seeds: Option<u64>,
    seconds: Option<u64>,
    one: Option<u64>,
    default: u64,
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is '{text}', which is no number")))
}

impl Budget {
    /// The environment's, or `default` seeds.
    pub fn from_env(default: u64) -> Budget {
        Budget {
            first: number("SNAPBLK_FIRST").unwrap_or(0),
            seeds: number("SNAPBLK_SEEDS"),
            seconds: number("SNAPBLK_SECONDS"),
            one: number("SNAPBLK_SEED"),
            default,
        }
    }

    /// The seeds to be tried.
    pub fn seeds(self) -> impl Iterator<Item = u64> {
        let count = match (self.seeds, self.seconds) {
            (Some(seeds), _) => seeds,
            (None, Some(_)) => u64::MAX - self.first,
            (None, None) => self.default,
        };
        let (first, count) = self.one.map_or((self.first, count), |seed| (seed, 1));
        let end = self.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        (first..first + count).take_while(move |_| end.is_none_or(|end| Instant::now() < end))
    }

    /// Whether it is at least the default: then all required events must be met.
    pub fn is_full(self) -> bool {
        self.one.is_none() && self.seconds.is_none() && self.seeds.is_none_or(|n| n >= self.default)
    }
}
