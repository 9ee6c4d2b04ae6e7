//! Lists of claims that no copy and no run uses at present.
//!
//! Owns their memory. Never knows which owner a list had. Keeps: once there are as many lists as
//! were ever in use at once, and one of them has reached the greatest length, no list is allocated
//! and none grows.

/// See the module's description.
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
