//! The bound on the chunks that a worker moves at a time.

use super::*;

fn write(engine: &mut Engine, chunk: u64) {
    let (token, op, sector) = (Token(chunk as u32), Op::Write, Sector(chunk * 8));
    engine.submit(Request { token, op, sector, len: 4096, durable: false });
}

/// A store that hangs has all the claims of its snapshot, and no other's.
#[test]
fn a_store_that_hangs_holds_up_no_other() {
    let world = World::new();
    ["disk", "disk2", "store", "store2"].iter().for_each(|name| world.file(name, LEN));
    let half = LEN / 2;
    let lines = [
        &*format!("0 {half} snapshot {{}}/disk {{}}/store PO 8"),
        &*format!("{half} {half} snapshot {{}}/disk2 {{}}/store2 PO 8"),
    ];
    world.device("disk", &lines).unwrap();
    let config = EngineConfig { claims: 4, ..EngineConfig::default() };
    let mut engine = Engine::new(world.devices.workers(), Box::new(NoWake), config).unwrap();
    let table = world.table("disk");
    let files = [0, 1].map(|at| table.exceptions()[at].store().file());
    engine.bind(Some(table));
    let asked = |engine: &mut Engine| {
        engine.step();
        std::iter::from_fn(|| engine.pop_action()).map(|it| (it.file, it.len)).collect::<Vec<_>>()
    };
    (0..8).for_each(|chunk| write(&mut engine, chunk));
    assert_eq!(asked(&mut engine), [(files[0], 4 * 4096)]);
    (0..8).for_each(|chunk| write(&mut engine, half / 8 + chunk));
    assert_eq!(asked(&mut engine), [(files[1], 4 * 4096)]);
    std::mem::forget(engine);
}
