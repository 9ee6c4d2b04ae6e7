//! The benchmark: the same jobs for snapblk and for other servers, in one run.
//!
//! A [`Job`] says what the client does, a [`Contender`] how a server is set up, a [`Ground`] on
//! which file system it happens, a [`Probe`] what is measured in another way; [`Run`] puts them together, alternating between the contenders,
//! and gives a [`Report`], which [`table`] and [`plot`] show. The work of a job is the same for
//! every contender: same seeds, same bytes, same amount where each write must be a first one.

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
