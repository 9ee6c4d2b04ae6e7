//! The targets, one by one.
//!
//! Owns the list. The meaning and judging of a target are in [`target`](super::target).

use super::peer::{MAPPED, SAME_FILE};
use super::target::Against::{Best, BestIn, Limit, Nothing};
use super::target::Bound::{AtLeast, AtMost};
use super::target::Measure::{Cpu, Figure, Idle, P50, Syscalls};
use super::target::Who::{DefaultQcow2, Durable, Named, Only, Others, Qemu};
use super::target::{Against, Bound, Measure, Target};
use crate::server::Place::{Disk, Memory};

const BOTH: [&str; 2] = ["snapblk", MAPPED];

/// A target for snapblk's rate in memory, as a template for others.
const RATE: Target = Target {
    job: "",
    place: Memory,
    subject: "snapblk",
    measure: Figure,
    against: Best(Qemu),
    bound: AtLeast(1.0),
};

/// All targets, in the order of the report.
pub(super) fn goals() -> Vec<Target> {
    let mut all = Vec::new();
    plain_in_memory(&mut all);
    polling(&mut all);
    plain_on_disk(&mut all);
    sequential_and_mapped(&mut all);
    first_writes(&mut all);
    all.extend(ENGINE);
    all
}

fn plain_in_memory(all: &mut Vec<Target>) {
    for subject in BOTH {
        for (job, null) in
            [("randread-qd32", "null-read-qd32"), ("randwrite-qd32", "null-write-qd32")]
        {
            let rate = Target { job, subject, ..RATE };
            all.push(Target { bound: AtLeast(1.2), ..rate });
            all.push(Target { measure: Cpu, bound: AtMost(0.85), ..rate });
            all.push(Target { against: Limit(null), bound: AtLeast(0.85), ..rate });
        }
        for job in ["randread-qd1-onecore", "randwrite-qd1-onecore"] {
            all.push(Target { job, subject, measure: Cpu, bound: AtMost(0.8), ..RATE });
        }
    }
    for (job, most) in [
        ("randread-qd1", 0.4),
        ("randwrite-qd1", 0.4),
        ("randread-qd1-poll", 0.7),
        ("randwrite-qd1-poll", 0.7),
    ] {
        all.push(Target { job, measure: P50, bound: AtMost(most), ..RATE });
    }
    let idle = Target { job: "randread-qd1", measure: Idle, against: Nothing, ..RATE };
    all.push(Target { bound: AtMost(0.1), ..idle });
}

fn polling(all: &mut Vec<Target>) {
    for (job, least) in
        [("busy-randread-qd32", 1.2), ("busy-randwrite-qd32", 1.2), ("busy-randread-qd1", 1.7)]
    {
        let against = Best(Named("qsd-7.2-raw-native"));
        all.push(Target { job, against, bound: AtLeast(least), ..RATE });
    }
    for job in ["busy-null-read-qd32", "busy-null-write-qd32"] {
        let against = Best(Named("qsd-7.2-null"));
        all.push(Target { job, against, bound: AtLeast(1.2), ..RATE });
    }
}

fn plain_on_disk(all: &mut Vec<Target>) {
    for job in ["randread-qd1-poll", "randwrite-qd1-poll", "randread-qd32", "randwrite-qd32"] {
        let rate = Target { job, place: Disk, ..RATE };
        all.push(rate);
        all.push(Target { against: Best(Only("fio")), bound: AtLeast(0.95), ..rate });
    }
    let calls = Target { job: "randread-qd32-poll", place: Disk, measure: Syscalls, ..RATE };
    all.push(Target { against: Nothing, bound: AtMost(0.1), ..calls });
}

fn sequential_and_mapped(all: &mut Vec<Target>) {
    for place in [Memory, Disk] {
        for job in ["seqread-qd8", "seqwrite-qd8"] {
            all.push(Target { job, place, ..RATE });
        }
    }
    let mapped =
        Target { subject: MAPPED, against: Best(Only(SAME_FILE)), bound: AtLeast(0.97), ..RATE };
    for job in ["randread-qd32", "randwrite-qd32", "seqread-qd8", "seqwrite-qd8"] {
        for place in [Memory, Disk] {
            all.push(Target { job, place, ..mapped });
        }
    }
    for job in [
        "randread-qd1-onecore",
        "randwrite-qd1-onecore",
        "randread-qd1",
        "randwrite-qd1",
        "randread-qd1-poll",
        "randwrite-qd1-poll",
        "busy-randread-qd32",
        "busy-randwrite-qd32",
        "busy-randread-qd1",
    ] {
        all.push(Target { job, ..mapped });
    }
    for job in ["randread-qd1-poll", "randwrite-qd1-poll"] {
        all.push(Target { job, place: Disk, ..mapped });
    }
}

fn first_writes(all: &mut Vec<Target>) {
    let sparse = Target { job: "first-sparse-qd32", ..RATE };
    for (place, default, best) in [(Memory, 8.0, 1.5), (Disk, 10.0, 3.0)] {
        let here = Target { place, ..sparse };
        all.push(Target { against: Best(DefaultQcow2), bound: AtLeast(default), ..here });
        all.push(Target { bound: AtLeast(best), ..here });
    }
    all.push(Target { place: Disk, against: BestIn("randwrite-qd32", Others), ..sparse });
    for (job, in_memory, on_disk) in [
        ("first-sparse-qd1", 1.5, 1.5),
        ("first-dense-qd32", 1.25, 2.0),
        ("first-flush16-qd32", 1.5, 1.5),
        ("first-seq64k-qd8", 1.1, 1.1),
        ("mixedread-qd32", 1.15, 1.15),
    ] {
        all.push(Target { job, bound: AtLeast(in_memory), ..RATE });
        all.push(Target { job, place: Disk, bound: AtLeast(on_disk), ..RATE });
    }
}

/// A target for the result of a probe.
const fn probe(
    job: &'static str,
    subject: &'static str,
    measure: Measure,
    against: Against,
    bound: Bound,
) -> Target {
    Target { job, place: Memory, subject, measure, against, bound }
}

const ENGINE: [Target; 17] = [
    probe("origin-first-qd32", "snapblk-1-snapshot", Figure, Best(Qemu), AtLeast(2.0)),
    Target {
        place: Disk,
        ..probe("origin-first-qd32", "snapblk-1-snapshot", Figure, Best(Durable), AtLeast(2.0))
    },
    probe(
        "origin-first-qd32",
        "snapblk-16-snapshots",
        Figure,
        Best(Only("snapblk-1-snapshot")),
        AtLeast(1.0 / 6.0),
    ),
    probe(
        "chain-randread-qd32",
        "snapblk-100-layers",
        Figure,
        Best(Only("snapblk-1-layer")),
        AtLeast(0.97),
    ),
    probe(
        "chain-first-dense-qd32",
        "snapblk-100-layers",
        Figure,
        Best(Only("snapblk-1-layer")),
        AtLeast(0.97),
    ),
    probe("live-snapshot-gap", "snapblk", Figure, Nothing, AtMost(1.0)),
    probe("live-snapshot-gap", "snapblk", Figure, Best(Qemu), AtMost(0.1)),
    Target {
        place: Disk,
        ..probe("merge-runs", "snapblk", Figure, Best(Only("copy")), AtLeast(0.8))
    },
    Target {
        place: Disk,
        ..probe("merge-scattered", "snapblk", Figure, Best(Only("fio")), AtLeast(0.8))
    },
    Target { place: Disk, ..probe("merge-load", "snapblk", Figure, Nothing, AtLeast(0.7)) },
    Target { place: Disk, ..probe("merge-load-writes", "snapblk", Figure, Nothing, AtLeast(0.7)) },
    probe("open-million", "snapblk", Figure, Nothing, AtMost(150.0)),
    probe("open-million", "snapblk", Figure, Best(Only("read-twice")), AtMost(1.0)),
    probe("memory-scattered", "snapblk", Figure, Nothing, AtMost(16.0)),
    probe("memory-dense", "snapblk", Figure, Nothing, AtMost(9.0)),
    // The limit, and 10 MiB for the additional memory in docs/configuration.md.
    probe("memory-bounded", "snapblk", Figure, Nothing, AtMost(4.4)),
    probe("two-queues", "snapblk-2-queues", Figure, Best(Only("snapblk-1-queue")), AtLeast(1.7)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Contender, Daemon, Job, Kind, Probe};

    /// A target with a wrong name of its job or subject would never be measured.
    #[test]
    fn every_target_is_of_a_job_that_there_is_and_of_who_does_it() {
        let daemons = [Daemon::named("7.2=/bin/qsd").unwrap()];
        let contenders = Contender::all(&daemons);
        let probes = Probe::matching(&[]);
        for target in goals() {
            if probes.iter().any(|probe| probe.name == target.job) {
                continue;
            }
            let jobs = Job::matching(&[target.job.to_owned()]);
            let [job] = jobs[..] else { panic!("no job {}", target.job) };
            let does = |contender: &&Contender| contender.does(&job, target.place);
            let doing: Vec<_> = contenders.iter().filter(does).collect();
            let own = doing.iter().any(|contender| contender.name == target.subject);
            assert!(job.is_on(target.place) && own, "{target:?}");
            let peers = doing.iter().any(|contender| !matches!(contender.kind, Kind::Snapblk(_)));
            assert!(peers || target.against != Best(Qemu), "{target:?}");
        }
    }
}
