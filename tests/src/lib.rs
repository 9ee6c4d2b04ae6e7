//! The foundation of snapblk's tests and benchmark.
//!
//! Owns a vhost-user-blk front end ([`client`]), one that outlives its servers ([`lasting`]), a
//! load that knows the expected content of every sector ([`verify`]), the running of servers
//! ([`server`]), and the benchmark ([`bench`]). Nothing here knows snapblk's internals: servers are
//! programs with a socket, so the same test can run snapblk or another vhost-user-blk server.

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
