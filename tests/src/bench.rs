//! The benchmark: the same jobs for snapblk and for other servers, in one run.
//!
//! A [`Job`] is the client's work, a [`Contender`] a server's set-up, a [`Ground`] a file system,
//! and a [`Probe`] a measurement with its own procedure; [`Run`] combines them, alternating between
//! the contenders, and returns a [`Report`], which [`table`] and [`plot`] show. The work of a job
//! is the same for every contender: same seeds, same bytes, and the same amount if each write must
//! be a first one.

mod cost;
mod daemon;
pub mod document;
mod drive;
mod explain;
mod goals;
mod ground;
mod histogram;
mod job;
mod limit;
mod peer;
pub mod plot;
mod probe;
mod qemu;
mod report;
mod run;
mod stamp;
mod stats;
pub mod table;
pub mod target;
mod template;
mod turn;

pub use cost::{CpuMeter, Meter, SyscallCounter, SyscallKind};
pub use daemon::Daemon;
pub use drive::{BenchError, Sample};
pub use ground::Ground;
pub use job::{Ends, Job, Layout, Scale, Walk};
pub use peer::{Contender, Kind, Setup};
pub use probe::Probe;
pub use qemu::{Aio, Format, Qcow2, Qemu};
pub use report::{Report, Row, Unit, Version};
pub use run::{Run, Settings};
pub use stamp::Stamp;
pub use stats::{Spread, Verdict};
