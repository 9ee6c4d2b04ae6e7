use super::*;
use crate::exception::leaf::{Changed, put};
use crate::exception::word::{ChunkState, Key};

fn enter(pinned: &Pinned<'_>, key: u16) -> bool {
    let mut to = |_| Some(ChunkState::Pending);
    matches!(pinned.leaf().change(Key(key), &mut to), Changed::Here(Ok(ChunkState::Unmapped)))
}

#[test]
fn a_leaf_that_was_replaced_stays_while_anyone_is_in_it() {
    let directory = Directory::new(1, Memory::Heap);
    let empty = directory.memory();
    let first = directory.pin_or_make(0, 1);
    let small = directory.memory() - empty;
    assert!(enter(&first, 7));
    let late = directory.pin(0).unwrap();
    first.replace(Class::for_count(50));
    let large = directory.memory() - empty - small;
    drop(first);
    assert_eq!(directory.memory() - empty, small + large, "one is in it still");
    assert_eq!(late.leaf().get(Key(7)), ChunkState::Pending);
    assert!(!enter(&late, 8), "a leaf that was replaced takes nothing more");
    let second = directory.pin(0).unwrap();
    assert!(enter(&second, 8));
    drop(late);
    assert_eq!(directory.memory() - empty, large);
    assert_eq!(second.leaf().get(Key(7)), ChunkState::Pending);
    assert_eq!(second.leaf().get(Key(8)), ChunkState::Pending);
}

/// Who comes late to the moving of words gets to the new leaf by the old one: that keeps it.
#[test]
fn a_late_helper_finds_the_leaf_that_came_next() {
    let directory = Directory::new(1, Memory::Heap);
    let empty = directory.memory();
    let late = directory.pin_or_make(0, 1);
    assert!(enter(&late, 7));
    for count in [10, 100, 1000] {
        directory.pin(0).unwrap().replace(Class::for_count(count));
    }
    late.replace(Class::FLAT);
    assert_eq!(late.leaf().get(Key(7)), ChunkState::Pending);
    assert!(matches!(directory.look(0), Look::Sparse), "what came late changed nothing");
    drop(late);
    let one = Class::for_count(1000).words() * 8;
    assert_eq!(directory.memory() - empty, one, "all but the last leaf have gone");
}

#[test]
fn a_flat_leaf_is_not_replaced() {
    let directory = Directory::new(2, Memory::Heap);
    let pinned = directory.pin_or_make(1, 1);
    assert!(enter(&pinned, 4095));
    pinned.replace(Class::FLAT);
    drop(pinned);
    let pinned = directory.pin(1).unwrap();
    pinned.replace(Class::FLAT);
    let Look::Flat(words) = directory.look(1) else { panic!("it is flat") };
    assert_eq!(ChunkState::from_word(words[4095].load(Ordering::Relaxed)), ChunkState::Pending);
    assert!(matches!(directory.look(0), Look::Nothing));
}

#[test]
fn what_is_prefetched_is_where_a_look_begins() {
    for count in [1, 10, 100, 1000, REGION] {
        let class = Class::for_count(count);
        for key in (0..REGION as u16).step_by(if cfg!(miri) { 701 } else { 7 }).map(Key) {
            let mut leaf: Vec<AtomicU64> = (0..class.words()).map(|_| AtomicU64::new(0)).collect();
            assert!(put(&mut leaf, class, ChunkState::Pending.to_word(key)));
            let words = if class == Class::FLAT { 0 } else { HEAD };
            let at = leaf.iter().skip(words).position(|word| word.load(Ordering::Relaxed) != 0);
            assert_eq!(at.map(|at| at + words), Some(class.first(key)));
        }
    }
    let directory = Directory::new(2, Memory::Heap);
    directory.prefetch(0, Key(1));
    drop(directory.pin_or_make(1, 1));
    directory.prefetch(1, Key(REGION as u16 - 1));
}
