//! An allocator that counts, and a subscriber that counts what is logged.
//!
//! Owns the counts. The test's own threads are excluded; all others in the process are the
//! server's. Never knows what the server does meanwhile.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Sizes that are kept for the report.
const KEPT: usize = 256;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static EVENTS: AtomicU64 = AtomicU64::new(0);
static SIZES: [AtomicUsize; KEPT] = [const { AtomicUsize::new(0) }; KEPT];
/// Their backtraces, if requested.
static TRACES: Mutex<String> = Mutex::new(String::new());
static TRACING: AtomicBool = AtomicBool::new(false);

thread_local! {
    static LEFT_OUT: Cell<bool> = const { Cell::new(false) };
}

/// See the module's description.
pub(crate) struct Counting;

fn counts() -> bool {
    // A thread that ends has no such variable any more, and does not serve.
    COUNTING.load(Ordering::Relaxed) && LEFT_OUT.try_with(|out| !out.get()).unwrap_or(false)
}

fn note(size: usize) {
    if !counts() {
        return;
    }
    let at = ALLOCATIONS.fetch_add(1, Ordering::Relaxed) as usize;
    if let Some(kept) = SIZES.get(at) {
        kept.store(size, Ordering::Relaxed);
    }
    if TRACING.load(Ordering::Relaxed) && at < KEPT {
        // Capturing a backtrace allocates, too.
        LEFT_OUT.set(true);
        let trace = format!("{size} bytes:\n{}\n", Backtrace::force_capture());
        TRACES.lock().expect("no test panics here").push_str(&trace);
        LEFT_OUT.set(false);
    }
}

// SAFETY: all calls go to the system's allocator with the same arguments; counting allocates
// nothing, and a backtrace that does is not counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Counts every event of any level.
struct Log;

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        if counts() {
            EVENTS.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The server's actions during a measurement.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Calls to the allocator for memory.
    pub(crate) allocations: u64,
    /// The sizes of the first of them.
    pub(crate) sizes: Vec<usize>,
    /// Logged lines of any level.
    pub(crate) logged: u64,
}

/// Excludes the calling thread, permanently.
pub(crate) fn leave_out_this_thread() {
    LEFT_OUT.set(true);
}

/// Becomes the process's log subscriber. `SNAPBLK_TRACE` requests the allocations' backtraces.
pub(crate) fn start() {
    TRACING.store(std::env::var_os("SNAPBLK_TRACE").is_some(), Ordering::Relaxed);
    tracing::subscriber::set_global_default(Log).expect("nobody else has the log");
}

/// Counts while `work` runs.
pub(crate) fn during(work: impl FnOnce()) -> Seen {
    ALLOCATIONS.store(0, Ordering::Relaxed);
    EVENTS.store(0, Ordering::Relaxed);
    COUNTING.store(true, Ordering::SeqCst);
    work();
    COUNTING.store(false, Ordering::SeqCst);
    let allocations = ALLOCATIONS.load(Ordering::SeqCst);
    let sizes = SIZES.iter().take(allocations as usize);
    let traces = std::mem::take(&mut *TRACES.lock().expect("no test panics here"));
    if !traces.is_empty() {
        eprintln!("{traces}");
    }
    Seen {
        allocations,
        sizes: sizes.map(|size| size.load(Ordering::SeqCst)).collect(),
        logged: EVENTS.load(Ordering::SeqCst),
    }
}
