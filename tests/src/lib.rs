//! What the tests and the benchmark of snapblk stand on.
//!
//! Owns a vhost-user-blk front end ([`client`]), one that outlives its servers ([`lasting`]), a load that knows what every sector must hold
//! ([`verify`]), the running of servers ([`server`]), and the benchmark ([`bench`]). Nothing here
//! knows how snapblk works inside: servers are programs with a socket, so the same test can be put
//! to snapblk and to another vhost-user-blk server.

pub mod bench;
pub mod client;
pub mod disk;
pub mod disklog;
pub mod guest;
pub mod handmade;
pub mod kernel;
pub mod lasting;
pub mod powercut;
pub mod rng;
pub mod server;
pub mod steady;
pub mod verify;
