//! snapblk's monitor: the control socket that speaks QMP, QEMU's machine protocol.
//!
//! A [`Server`] owns the socket and its clients; each client has a [`Session`]; all share a
//! [`Monitor`]: the table of [`Commands`], the [`Handler`] that carries them out, the [`Jobs`] and
//! the [`Events`]. Commands, replies and events are plain data of `snapblk_store::control`; only
//! this crate knows their wire format, and it knows nothing of the objects behind them.
//!
//! ```text
//! bytes → wire → session → check, commands → Handler | Jobs
//!   ↑                                            |
//! outbox ← events ← (whoever has something to tell)
//! ```

pub mod check;
pub mod client;
pub mod commands;
pub mod events;
pub mod jobs;
pub mod outbox;
pub mod schema;
pub mod server;
pub mod session;
pub mod wire;

pub use commands::Commands;
pub use events::Events;
pub use jobs::{JobDriver, JobHandle, JobSpec, Jobs, Outcome, derived_id, is_well_formed};
pub use server::{Bound, Server, StartError};
pub use session::{Handler, Monitor, Session};
