use super::*;
use crate::io::{BufId, Tag};

fn action(op: IoOp, offset: u64, len: u64, tag: u64) -> Action {
    Action { op, file: FileId(0), offset, len, segs: (0, 0), tag: Tag(tag) }
}

fn sim(seed: u64) -> Sim {
    let mut sim = Sim::new(seed);
    sim.add_disk("disk", vec![0; 8192]);
    sim.add_host(8192);
    sim
}

fn write(sim: &mut Sim, offset: u64, len: u32, tag: u64) {
    let seg = Seg::Scratch { buf: BufId(0), offset: 0, len };
    sim.submit(0, action(IoOp::Write, offset, u64::from(len), tag), &[seg], &[]);
}

fn finish(sim: &mut Sim) -> Vec<u64> {
    let mut tags = Vec::new();
    while sim.in_flight() > 0 {
        if let Some((_, completion)) = sim.advance() {
            completion.result.unwrap();
            tags.push(completion.tag.0);
        }
    }
    tags
}

#[test]
fn actions_complete_in_every_order() {
    let orders: std::collections::HashSet<Vec<u64>> = (0..200)
        .map(|seed| {
            let mut sim = sim(seed);
            (0..3).for_each(|n| write(&mut sim, n * 512, 512, n));
            finish(&mut sim)
        })
        .collect();
    assert_eq!(orders.len(), 6);
}

#[test]
fn a_power_cut_tears_what_no_sync_covered() {
    let mut kept = std::collections::HashSet::new();
    for seed in 0..400 {
        let mut sim = sim(seed);
        write(&mut sim, 0, 512, 1);
        finish(&mut sim);
        sim.submit(0, action(IoOp::Sync, 0, 0, 2), &[], &[]);
        write(&mut sim, 512, 1024, 3);
        finish(&mut sim);
        let cuts = sim.power_cut();
        assert_eq!(sim.disk(FileId(0)).read(0, 1)[0], 0xa5, "a synced write stays");
        assert_eq!(cuts.len(), 1, "what was submitted with the sync is not covered by it");
        let at = |sector: u64| sim.disk(FileId(0)).read(sector * 512, 1)[0] != 0;
        kept.insert((at(1), at(2)));
    }
    assert_eq!(kept.len(), 4, "every subset of two sectors");
}

#[test]
fn an_older_write_never_lands_over_a_newer_one() {
    for seed in 0..100 {
        let mut sim = sim(seed);
        write(&mut sim, 0, 512, 1);
        finish(&mut sim);
        sim.host(0).scratch.fill(0x5a);
        write(&mut sim, 0, 512, 2);
        finish(&mut sim);
        sim.submit(0, action(IoOp::Sync, 0, 0, 3), &[], &[]);
        finish(&mut sim);
        sim.power_cut();
        assert_eq!(sim.disk(FileId(0)).read(0, 1)[0], 0x5a);
    }
}

#[test]
fn a_failed_sync_loses_what_it_covered_for_good() {
    let mut lost = 0;
    for seed in 0..100 {
        let mut sim = sim(seed);
        write(&mut sim, 0, 512, 1);
        finish(&mut sim);
        let op = Some(IoOp::Sync);
        let errno = Errno::EIO;
        sim.add_fault(Fault { file: None, op, range: None, after: 0, count: 1, errno });
        for n in 0..2 {
            sim.submit(0, action(IoOp::Sync, 0, 0, n), &[], &[]);
            while sim.advance().is_none() {}
        }
        sim.power_cut();
        lost += u32::from(sim.disk(FileId(0)).read(0, 1)[0] == 0);
    }
    assert!(lost > 10, "{lost}");
}

#[test]
fn a_kill_keeps_what_took_effect() {
    for seed in 0..50 {
        let mut sim = sim(seed);
        write(&mut sim, 0, 512, 1);
        finish(&mut sim);
        write(&mut sim, 512, 1024, 1);
        sim.kill();
        assert_eq!(sim.in_flight(), 0);
        let at = |sector: u64| sim.disk(FileId(0)).read(sector * 512, 1)[0];
        assert_eq!(at(0), 0xa5);
        assert_eq!(at(1), at(2), "a kill tears no write");
    }
}
