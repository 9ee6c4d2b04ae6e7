//! Flushes of who only reads. One that leads a sync has those who write wait for it, and a guest can
//! hold its worker up for ever.

use super::*;
use crate::target::Medium;

fn flush(engine: &mut Engine) -> (Vec<IoOp>, Option<Status>) {
    let (token, op) = (Token(1), Op::Flush);
    engine.submit(Request { token, op, sector: Sector(0), len: 0, durable: false });
    let asked = answer(engine).iter().map(|action| action.op).collect();
    (asked, engine.pop_finished().map(|(_, status)| status))
}

/// There are its own writes to be durable only if a table before it could write.
fn only_reads(mut engine: Engine, medium: &Medium) {
    assert_eq!(flush(&mut engine), (vec![], Some(Status::Ok)));
    medium.set_left_unsynced(true);
    assert_eq!(flush(&mut engine), (vec![IoOp::Sync], Some(Status::Ok)));
    medium.set_left_unsynced(false);
    medium.sync_failed();
    let (_, failed) = flush(&mut engine);
    assert_eq!(failed, Some(Status::Error));
}

#[test]
fn an_export_that_only_reads_leads_no_sync() {
    let world = World::new();
    world.linear("disk");
    let (mut writes, mut reads) = (world.engine("disk"), world.engine("disk"));
    assert_eq!(flush(&mut writes), (vec![IoOp::Sync], Some(Status::Ok)));
    reads.set_only_reads(true);
    only_reads(reads, &world.table("disk").flush_set().media[0].medium);
}

#[test]
fn a_device_that_only_reads_leads_no_sync() {
    let world = World::new();
    world.linear("disk");
    let line = format!("0 {LEN} linear {}/disk 0", world.dir.path().display());
    world.devices.create("reads", None).unwrap();
    world.devices.load("reads", parse_table([&*line]).unwrap(), true).unwrap();
    world.devices.resume("reads").unwrap();
    only_reads(world.engine("reads"), &world.table("disk").flush_set().media[0].medium);
}
