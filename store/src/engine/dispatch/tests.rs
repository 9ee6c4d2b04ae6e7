use std::collections::VecDeque;
use std::sync::Arc;

use super::MOST_ACTIONS;
use crate::engine::{Engine, EngineConfig};
use crate::io::{Completion, FileId, Tag};
use crate::request::{Op, Request, Status, Token};
use crate::table::{Line, Table};
use crate::target::{Backing, Medium, Target};
use crate::units::Sector;
use crate::workers::{Wake, Workers};

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

/// `lines` sectors, each in another file than its neighbours.
fn scattered(lines: u64) -> Arc<Table> {
    let media = [0, 1].map(|file| Arc::new(Medium::new(FileId(file))));
    let line = |start: u64| {
        let medium = media[start as usize % 2].clone();
        let target = Target::Plain(Backing::file(medium, start * 512, 512));
        Line { start: start * 512, len: 512, target }
    };
    Arc::new(Table::new((0..lines).map(line).collect(), Vec::new()))
}

#[test]
fn requests_of_any_number_of_pieces_have_a_bounded_number_of_actions_in_flight() {
    let workers = Arc::new(Workers::with_capacity(1));
    let mut engine = Engine::new(&workers, Box::new(NoWake), EngineConfig::default()).unwrap();
    let pieces = 5 * MOST_ACTIONS as u64 / 2;
    engine.bind(Some(scattered(pieces)));
    for token in 0..3 {
        let (token, sector, len) = (Token(token), Sector(0), pieces * 512);
        engine.submit(Request { token, op: Op::Read, sector, len, durable: false });
    }
    let mut in_flight: VecDeque<Tag> = VecDeque::new();
    let (mut all, mut most, mut ended) = (0, 0, Vec::new());
    loop {
        engine.step();
        while let Some(action) = engine.pop_action() {
            assert_eq!(action.len, 512);
            in_flight.push_back(action.tag);
            all += 1;
        }
        most = most.max(in_flight.len());
        ended.extend(std::iter::from_fn(|| engine.pop_finished()));
        let Some(tag) = in_flight.pop_front() else { break };
        engine.complete(Completion { tag, result: Ok(()) });
    }
    assert_eq!(most, MOST_ACTIONS);
    assert_eq!(all, 3 * pieces, "each piece is read once");
    ended.sort_unstable_by_key(|(token, _)| token.0);
    let ok = |token| (Token(token), Status::Ok);
    assert_eq!(ended, [ok(0), ok(1), ok(2)]);
    assert!(engine.is_quiet());
}

#[test]
fn requests_of_many_pieces_get_them_in_the_order_in_which_they_came() {
    const DEPTH: u32 = 32;
    let workers = Arc::new(Workers::with_capacity(1));
    let mut engine = Engine::new(&workers, Box::new(NoWake), EngineConfig::default()).unwrap();
    let pieces = MOST_ACTIONS as u64 / 16;
    engine.bind(Some(scattered(pieces)));
    let read = |engine: &mut Engine, token: u32| {
        let (token, sector, len) = (Token(token), Sector(0), pieces * 512);
        engine.submit(Request { token, op: Op::Read, sector, len, durable: false });
    };
    (0..DEPTH).for_each(|token| read(&mut engine, token));
    let mut in_flight: VecDeque<Tag> = VecDeque::new();
    for ended in 0..10 * DEPTH {
        let token = loop {
            engine.step();
            in_flight.extend(std::iter::from_fn(|| engine.pop_action()).map(|action| action.tag));
            let tag = in_flight.pop_front().expect("requests are in flight, and no action is");
            engine.complete(Completion { tag, result: Ok(()) });
            if let Some((token, _)) = engine.pop_finished() {
                break token;
            }
        };
        assert_eq!(token, Token(ended), "none passes another");
        // A guest keeps so many in flight. The next one is there before the next step.
        read(&mut engine, DEPTH + ended);
    }
}
