//! Lists of claims: those that are to be written, and spare lists that no read and no run uses at present.
//!
//! Owns their memory. Never knows what a claim is, nor which owner a spare list had. Keeps: once there are
//! as many lists as were ever in use at once, and one of them has reached the greatest length, no list is
//! allocated and none grows.

use std::collections::VecDeque;

/// Claims that have their bytes and are to be written, in this order, with the number of their chunks.
#[derive(Debug)]
pub(super) struct Gathered {
    claims: VecDeque<(usize, u64)>,
    /// Of all of them.
    chunks: u64,
}

impl Gathered {
    pub(super) fn with_room() -> Gathered {
        Gathered { claims: VecDeque::with_capacity(64), chunks: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    pub(super) fn chunks(&self) -> u64 {
        self.chunks
    }

    /// Adds a claim of `count` chunks.
    pub(super) fn push_back(&mut self, claim_index: usize, count: u64) {
        self.claims.push_back((claim_index, count));
        self.chunks += count;
    }

    /// Puts a claim of `count` chunks before all others.
    pub(super) fn push_front(&mut self, claim_index: usize, count: u64) {
        self.claims.push_front((claim_index, count));
        self.chunks += count;
    }

    /// Takes the first, and how many chunks it has.
    pub(super) fn pop_front(&mut self) -> Option<(usize, u64)> {
        let (claim_index, count) = self.claims.pop_front()?;
        self.chunks -= count;
        Some((claim_index, count))
    }
}

/// Lists for reads of old bytes and for runs.
#[derive(Debug, Default)]
pub(super) struct SpareLists {
    /// All of them are empty.
    spare: Vec<Vec<usize>>,
    /// Lists in all, those in use as well.
    made: usize,
    /// Claims that each spare list has room for: as many as any list has had.
    room: usize,
}

impl SpareLists {
    /// An empty list; if none is spare, the number of lists is doubled.
    pub(super) fn take(&mut self) -> Vec<usize> {
        if self.spare.is_empty() {
            let more = self.made.max(1);
            self.made += more;
            self.spare.reserve(self.made);
            let room = self.room;
            self.spare.extend(std::iter::repeat_with(|| Vec::with_capacity(room)).take(more));
        }
        self.spare.pop().expect("there are some now")
    }

    /// Takes a list back, and empties it.
    ///
    /// If it has grown, all spare lists grow with it, and the others when they come back;
    /// otherwise each would grow during some later batch.
    pub(super) fn give_back(&mut self, mut list: Vec<usize>) {
        list.clear();
        let grown = list.capacity() > self.room;
        self.room = self.room.max(list.capacity());
        list.reserve_exact(self.room);
        if grown {
            self.spare.iter_mut().for_each(|spare| spare.reserve_exact(self.room));
        }
        self.spare.push(list);
    }
}

#[cfg(test)]
mod tests {
    use super::SpareLists;

    #[test]
    fn each_has_room_for_what_any_of_them_had() {
        let mut lists = SpareLists::default();
        let mut taken: Vec<Vec<usize>> = (0..5).map(|_| lists.take()).collect();
        taken[2].extend(0..40);
        lists.give_back(taken.swap_remove(2));
        let room = lists.room;
        assert!(room >= 40, "{room}");
        taken.into_iter().for_each(|list| lists.give_back(list));
        assert_eq!(lists.spare.len(), 8, "five make eight");
        let taken: Vec<Vec<usize>> = (0..9).map(|_| lists.take()).collect();
        assert!(taken.iter().all(|list| list.is_empty() && list.capacity() == room));
    }
}
