//! The benchmark: the same jobs for snapblk and for other servers, in one run.
//!
//! A [`Job`] says what the client does, a [`Contender`] how a server is set up, a [`Ground`] on
//! which file system it happens; [`Run`] puts them together, alternating between the contenders,
//! and gives a [`Report`], which [`table`] and [`plot`] show. The work of a job is the same for
//! every contender: same seeds, same bytes, same amount where each write must be a first one.

mod cost;
mod drive;
mod ground;
mod job;
mod peer;
pub mod plot;
mod report;
mod run;
mod stats;
pub mod table;

pub use cost::{CpuMeter, Meter, SyscallCounter};
pub use drive::{BenchError, Sample};
pub use ground::Ground;
pub use job::{Job, Layout, Scale, Walk};
pub use peer::{Aio, Contender, Format, Kind};
pub use report::{Report, Row, Version};
pub use run::{Run, Settings};
pub use stats::{Spread, Verdict};
