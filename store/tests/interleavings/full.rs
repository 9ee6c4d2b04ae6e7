//! Full files that are no stores: what waits for room in one has marked it, so that it is looked
//! after.

use std::time::Duration;

use shuttle::sync::atomic::{AtomicU32, Ordering};

use snapblk_store::io::FileId;
use snapblk_store::target::Medium;
use snapblk_store::wake::WakeSet;

use super::{Arc, check, thread};

/// A write finds no room in a file whose wait was given up, while `again` lets writes wait again.
/// If the write waits, it was reported once, and the mark that tells so stays.
fn is_marked_by_who_waits(again: fn(&Medium) -> WakeSet) {
    check(move || {
        let told = Arc::new(AtomicU32::new(0));
        let tells = told.clone();
        let on_full = move || {
            tells.fetch_add(1, Ordering::SeqCst);
        };
        let medium = Arc::new(Medium::watched(FileId(1), true, Box::new(on_full)));
        medium.set_patience(Duration::from_secs(1));
        let _ = medium.give_up();
        let writes = medium.clone();
        let write = thread::spawn(move || writes.wait_for_room());
        let _ = again(&medium);
        let waits = write.join().unwrap();
        assert_eq!(medium.is_full(), waits, "a write waits, and the file is not marked as full");
        assert_eq!(told.load(Ordering::SeqCst), u32::from(waits));
    });
}

/// I17: a retry after a wait that was given up.
#[test]
fn a_full_file_that_goes_on_is_marked_by_who_waits() {
    is_marked_by_who_waits(Medium::go_on);
}

/// I17: a new table over the file.
#[test]
fn a_full_file_with_a_new_table_is_marked_by_who_waits() {
    is_marked_by_who_waits(Medium::forget_room);
}
