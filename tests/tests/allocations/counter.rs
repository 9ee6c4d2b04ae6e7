//! An allocator that counts, and a subscriber that counts what is logged.
//!
//! Owns the counts. Threads of the test itself are left out; everything else in the process is the
//! server. Never knows what the server does meanwhile.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Sizes that are kept to be told.
const KEPT: usize = 256;

static COUNTING: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static EVENTS: AtomicU64 = AtomicU64::new(0);
static SIZES: [AtomicUsize; KEPT] = [const { AtomicUsize::new(0) }; KEPT];
/// Where they came from, where that is asked for.
static TRACES: Mutex<String> = Mutex::new(String::new());
static TRACING: AtomicBool = AtomicBool::new(false);

thread_local! {
    static LEFT_OUT: Cell<bool> = const { Cell::new(false) };
}

/// See the module's description.
pub(crate) struct Counting;

fn counts() -> bool {
    // A thread that ends has no such word any more, and is none that serves.
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
        // To tell where it was it allocates itself.
        LEFT_OUT.set(true);
        let trace = format!("{size} bytes:\n{}\n", Backtrace::force_capture());
        TRACES.lock().expect("no test panics here").push_str(&trace);
        LEFT_OUT.set(false);
    }
}

// SAFETY: all of it is the system's allocator, which is called with what came in; counting
// allocates nothing, and where it does, to be printed, it does not count.
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

/// Takes every event, whatever its level.
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

/// What the server did while it was looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Calls to the allocator for memory.
    pub(crate) allocations: u64,
    /// The bytes of the first of them.
    pub(crate) sizes: Vec<usize>,
    /// Lines logged, of any level.
    pub(crate) logged: u64,
}

/// Leaves the calling thread out, for good.
pub(crate) fn leave_out_this_thread() {
    LEFT_OUT.set(true);
}

/// Takes over the log of the process. `SNAPBLK_TRACE` asks where allocations come from.
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
