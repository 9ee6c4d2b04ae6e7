//! The client's work in each row of the benchmark.
//!
//! Owns the list of jobs, their block sizes, depths and orders of offsets. Never knows a server. A
//! job that must write each place for the first time visits a fixed list of offsets once; every
//! other job runs for a time.

use crate::client::Waiting;
use crate::rng::Rng;
use crate::server::Place;

/// The unit of "each into its own 64 KiB": the default cluster of qcow2.
pub(super) const CLUSTER: u64 = 64 << 10;

/// The disk that a server serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A raw file, written in place.
    Plain,
    /// A new overlay over a raw file that stays unchanged.
    Overlay,
    /// Many layers over a raw file, each with some of the clusters, and an empty one on top.
    Chain,
    /// A raw file with a snapshot: the first write to a place copies the old data.
    Origin,
    /// No file: measures the path to a server and back.
    Null,
}

/// How the two ends wait for each other, and on which processors they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Both sleep, each on its own processor.
    Sleep,
    /// Both sleep, on one processor.
    OneCore,
    /// The client polls, and the server waits as it is configured by default.
    ClientPolls,
    /// Neither ever sleeps, if the server has such a mode.
    BothPoll,
}

impl Ends {
    /// How the client waits.
    pub(super) fn client(self) -> Waiting {
        match self {
            Self::Sleep | Self::OneCore => Waiting::Sleep,
            Self::ClientPolls | Self::BothPoll => Waiting::Poll,
        }
    }
}

/// The order in which a job visits the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// Random blocks of the whole disk, for a time.
    Random,
    /// One block after the other, starting again at the end, for a time.
    Loop,
    /// The first block of each cluster in the first `1/part` of the disk, once each, in random
    /// order.
    OnePerCluster {
        /// The inverse of the share of the disk.
        part: u64,
    },
    /// Each block of the first `1/part` of the disk, once each, in random order.
    Dense {
        /// The inverse of the share of the disk.
        part: u64,
    },
    /// Each block of the first `1/part` of the disk, once each, in order.
    Once {
        /// The inverse of the share of the disk.
        part: u64,
    },
}

impl Walk {
    /// Whether the work is a number of requests and not a time.
    pub fn is_fixed(self) -> bool {
        !matches!(self, Self::Random | Self::Loop)
    }
}

/// One row of the benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// The name to choose it by.
    pub name: &'static str,
    /// Its description.
    pub title: &'static str,
    /// The disk that the server serves.
    pub layout: Layout,
    /// Whether it writes.
    pub write: bool,
    /// Bytes in a request.
    pub block: u64,
    /// Requests in flight.
    pub depth: usize,
    /// The offsets of its requests.
    pub walk: Walk,
    /// A flush follows each such number of writes; the client does not wait for it.
    pub flush_every: Option<u64>,
    /// Every other cluster is written before the measurement.
    pub half_written: bool,
    /// How the ends wait.
    pub ends: Ends,
    /// The only kind of file system; all if `None`.
    pub only_on: Option<Place>,
    /// The server's processor time without requests is measured afterwards.
    pub then_idle: bool,
}

const PLAIN: Job = Job {
    name: "",
    title: "",
    layout: Layout::Plain,
    write: false,
    block: 4096,
    depth: 1,
    walk: Walk::Random,
    flush_every: None,
    half_written: false,
    ends: Ends::Sleep,
    only_on: None,
    then_idle: false,
};

const MEMORY: Job = Job { only_on: Some(Place::Memory), ..PLAIN };
const CLIENT_POLLS: Job = Job { ends: Ends::ClientPolls, ..PLAIN };
const BOTH_POLL: Job = Job { ends: Ends::BothPoll, ..MEMORY };
const SEQUENTIAL: Job = Job { block: 128 << 10, depth: 8, walk: Walk::Loop, ..PLAIN };
const NULL: Job = Job { layout: Layout::Null, depth: 32, ..MEMORY };
const FIRST_WRITES: Job = Job { layout: Layout::Overlay, write: true, depth: 32, ..PLAIN };

/// All jobs, in the order of the report.
pub(super) const JOBS: [Job; 29] = [
    Job { name: "randread-qd32", title: "4 KiB random read, QD32", depth: 32, ..PLAIN },
    Job {
        name: "randwrite-qd32",
        title: "4 KiB random write, QD32",
        write: true,
        depth: 32,
        ..PLAIN
    },
    Job {
        name: "randread-qd32-poll",
        title: "4 KiB random read, QD32, client polls",
        depth: 32,
        only_on: Some(Place::Disk),
        ..CLIENT_POLLS
    },
    Job {
        name: "randread-qd1-onecore",
        title: "4 KiB random read, QD1, one core",
        ends: Ends::OneCore,
        ..MEMORY
    },
    Job {
        name: "randwrite-qd1-onecore",
        title: "4 KiB random write, QD1, one core",
        write: true,
        ends: Ends::OneCore,
        ..MEMORY
    },
    Job { name: "randread-qd1", title: "4 KiB random read, QD1", then_idle: true, ..MEMORY },
    Job { name: "randwrite-qd1", title: "4 KiB random write, QD1", write: true, ..MEMORY },
    Job {
        name: "randread-qd1-poll",
        title: "4 KiB random read, QD1, client polls",
        ..CLIENT_POLLS
    },
    Job {
        name: "randwrite-qd1-poll",
        title: "4 KiB random write, QD1, client polls",
        write: true,
        ..CLIENT_POLLS
    },
    Job {
        name: "busy-randread-qd32",
        title: "4 KiB random read, QD32, both poll",
        depth: 32,
        ..BOTH_POLL
    },
    Job {
        name: "busy-randwrite-qd32",
        title: "4 KiB random write, QD32, both poll",
        write: true,
        depth: 32,
        ..BOTH_POLL
    },
    Job { name: "busy-randread-qd1", title: "4 KiB random read, QD1, both poll", ..BOTH_POLL },
    Job {
        name: "busy-null-read-qd1",
        title: "null device: 4 KiB read, QD1, both poll",
        depth: 1,
        ends: Ends::BothPoll,
        ..NULL
    },
    Job {
        name: "busy-null-read-qd32",
        title: "null device: 4 KiB read, QD32, both poll",
        ends: Ends::BothPoll,
        ..NULL
    },
    Job {
        name: "busy-null-write-qd32",
        title: "null device: 4 KiB write, QD32, both poll",
        ends: Ends::BothPoll,
        write: true,
        ..NULL
    },
    Job { name: "null-read-qd1", title: "null device: 4 KiB read, QD1", depth: 1, ..NULL },
    Job { name: "null-read-qd32", title: "null device: 4 KiB read, QD32", ..NULL },
    Job { name: "null-write-qd32", title: "null device: 4 KiB write, QD32", write: true, ..NULL },
    Job { name: "seqread-qd8", title: "128 KiB sequential read, QD8", ..SEQUENTIAL },
    Job { name: "seqwrite-qd8", title: "128 KiB sequential write, QD8", write: true, ..SEQUENTIAL },
    Job {
        name: "first-sparse-qd32",
        title: "overlay: first 4 KiB writes, one per 64 KiB, QD32",
        walk: Walk::OnePerCluster { part: 1 },
        ..FIRST_WRITES
    },
    Job {
        name: "first-sparse-qd1",
        title: "overlay: first 4 KiB writes, one per 64 KiB, QD1",
        depth: 1,
        walk: Walk::OnePerCluster { part: 4 },
        ..FIRST_WRITES
    },
    Job {
        name: "first-dense-qd32",
        title: "overlay: first 4 KiB writes, dense, QD32",
        walk: Walk::Dense { part: 4 },
        ..FIRST_WRITES
    },
    Job {
        name: "first-flush16-qd32",
        title: "overlay: one per 64 KiB, a flush every 16, QD32",
        walk: Walk::OnePerCluster { part: 2 },
        flush_every: Some(16),
        ..FIRST_WRITES
    },
    Job {
        name: "first-seq64k-qd8",
        title: "overlay: first 64 KiB writes, sequential, QD8",
        block: CLUSTER,
        depth: 8,
        walk: Walk::Once { part: 2 },
        ..FIRST_WRITES
    },
    Job {
        name: "mixedread-qd32",
        title: "overlay: 4 KiB random read, half written, QD32",
        write: false,
        half_written: true,
        walk: Walk::Random,
        ..FIRST_WRITES
    },
    Job {
        name: "origin-first-qd32",
        title: "origin: first 4 KiB writes, one per 64 KiB, QD32",
        layout: Layout::Origin,
        walk: Walk::OnePerCluster { part: 2 },
        ..FIRST_WRITES
    },
    Job {
        name: "chain-randread-qd32",
        title: "chain of layers: 4 KiB random read, QD32",
        layout: Layout::Chain,
        depth: 32,
        ..MEMORY
    },
    Job {
        name: "chain-first-dense-qd32",
        title: "chain of layers: first 4 KiB writes, dense, QD32",
        layout: Layout::Chain,
        only_on: Some(Place::Memory),
        walk: Walk::Dense { part: 4 },
        ..FIRST_WRITES
    },
];

/// The amount of work.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Scale {
    /// The size of the disk in bytes; a multiple of 1 MiB.
    pub disk: u64,
    /// The duration of a job without a fixed amount, in seconds.
    pub seconds: f64,
}

/// The offsets of one repetition, in order.
pub(super) enum Offsets {
    /// Random blocks, without end.
    Random { rng: Rng, blocks: u64, block: u64 },
    /// Blocks in order, without end.
    Loop { next: u64, block: u64, disk: u64 },
    /// These, once.
    List(std::vec::IntoIter<u64>),
}

impl Iterator for Offsets {
    type Item = u64;

    #[inline]
    fn next(&mut self) -> Option<u64> {
        match self {
            Self::Random { rng, blocks, block } => Some(rng.below(*blocks) * *block),
            Self::Loop { next, block, disk } => {
                let offset = *next;
                *next = if offset + 2 * *block > *disk { 0 } else { offset + *block };
                Some(offset)
            }
            Self::List(list) => list.next(),
        }
    }
}

impl Job {
    /// Fills a disk before any measurement; only its buffers matter.
    pub(super) const FILL: Self = Job { name: "fill", half_written: true, ..PLAIN };

    /// The jobs whose names match one of `patterns` (`*` stands for anything); all if there are no
    /// patterns.
    pub fn matching(patterns: &[String]) -> Vec<Self> {
        JOBS.into_iter().filter(|job| is_wanted(patterns, job.name)).collect()
    }

    /// Random reads, several at once, as from a guest under load.
    pub(super) const RANDOM_READS: Self = Job { name: "load", depth: 32, ..PLAIN };

    /// Random writes, several at once.
    pub(super) const RANDOM_WRITES: Self = Job { write: true, ..Self::RANDOM_READS };

    /// The job of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        JOBS.into_iter().find(|job| job.name == name)
    }

    /// Whether it is done on `place`.
    pub fn is_on(&self, place: Place) -> bool {
        self.only_on.is_none_or(|only| only == place)
    }

    /// The offsets of one repetition on a disk of `disk` bytes; the same for the same `seed`.
    pub(super) fn offsets(&self, disk: u64, seed: u64) -> Offsets {
        let mut rng = Rng::new(seed);
        let list = |part: u64, step: u64| (0..disk / part / step).map(|i| i * step).collect();
        let mut list: Vec<u64> = match self.walk {
            Walk::Random => {
                return Offsets::Random { rng, blocks: disk / self.block, block: self.block };
            }
            Walk::Loop => return Offsets::Loop { next: 0, block: self.block, disk },
            Walk::OnePerCluster { part } => list(part, CLUSTER),
            Walk::Dense { part } | Walk::Once { part } => list(part, self.block),
        };
        if !matches!(self.walk, Walk::Once { .. }) {
            rng.shuffle(&mut list);
        }
        Offsets::List(list.into_iter())
    }
}

/// Whether `name` matches one of `patterns`, or there are none.
pub(super) fn is_wanted(patterns: &[String], name: &str) -> bool {
    patterns.is_empty() || patterns.iter().any(|pattern| matches_glob(pattern, name))
}

/// Whether `name` matches `pattern`, in which `*` stands for any characters.
fn matches_glob(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name.strip_prefix(head).is_some_and(|tail| {
            (0..=tail.len()).any(|at| tail.get(at..).is_some_and(|t| matches_glob(rest, t)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const DISK: u64 = 16 << 20;

    fn job(name: &str) -> Job {
        *JOBS.iter().find(|job| job.name == name).unwrap()
    }

    #[test]
    fn first_writes_visit_each_place_once() {
        let sparse: Vec<u64> = job("first-sparse-qd32").offsets(DISK, 1).collect();
        assert_eq!(sparse.len(), 256);
        assert_eq!(sparse.iter().map(|o| o / CLUSTER).collect::<HashSet<_>>().len(), 256);
        assert!(!sparse.is_sorted());

        let dense: Vec<u64> = job("first-dense-qd32").offsets(DISK, 1).collect();
        assert_eq!(dense.iter().collect::<HashSet<_>>().len(), 1024);
        assert_eq!(dense.iter().max(), Some(&((4 << 20) - 4096)));

        let sequential: Vec<u64> = job("first-seq64k-qd8").offsets(DISK, 1).collect();
        assert_eq!(sequential.len(), 128);
        assert!(sequential.is_sorted());
    }

    #[test]
    fn a_seed_gives_the_same_work_again() {
        let work = |seed| job("first-dense-qd32").offsets(DISK, seed).collect::<Vec<_>>();
        assert_eq!(work(3), work(3));
        assert_ne!(work(3), work(4));
    }

    #[test]
    fn endless_walks_stay_on_the_disk() {
        for name in ["randread-qd1", "seqwrite-qd8"] {
            let job = job(name);
            let mut visited = job.offsets(DISK, 9).take(100_000);
            assert!(visited.all(|o| o % job.block == 0 && o + job.block <= DISK), "{name}");
        }
    }

    #[test]
    fn every_job_has_a_name_and_a_title_of_its_own() {
        let of = |text: fn(&Job) -> &str| JOBS.iter().map(text).collect::<HashSet<_>>().len();
        assert_eq!((of(|job| job.name), of(|job| job.title)), (JOBS.len(), JOBS.len()));
    }

    #[test]
    fn jobs_are_chosen_by_glob() {
        let names = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|&p| p.to_owned()).collect();
            Job::matching(&patterns).iter().map(|j| j.name).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]).len(), JOBS.len());
        assert_eq!(names(&["seq*"]), ["seqread-qd8", "seqwrite-qd8"]);
        assert_eq!(names(&["first-dense*", "randread-qd1"]), ["randread-qd1", "first-dense-qd32"]);
        assert!(names(&["dense"]).is_empty());
    }
}
