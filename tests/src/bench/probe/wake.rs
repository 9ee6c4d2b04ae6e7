//! The cost of two threads waking each other.
//!
//! Owns the procedure: a thread on each of the two processors, each blocked in a read of its
//! eventfd until the other writes to it. At depth 1 no server is faster than that if both ends
//! sleep.

use std::io;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::super::drive::BenchError;
use super::super::histogram::Histogram;
use super::super::run::Found;
use super::super::{Ground, Row, Run, Unit, Version};
use super::Probe;
use crate::server::pin_thread;

/// The value that ends the other thread.
const END: u64 = 1 << 32;

/// The median round-trip time of each repetition, in microseconds.
pub(super) fn measure(run: &Run<'_>, ground: &Ground, probe: &Probe) -> Result<Found, BenchError> {
    let time = Duration::from_secs_f64(run.settings.scale.seconds);
    let mut medians = Vec::new();
    for _ in 0..run.settings.repetitions {
        let times = round_trips(run.settings.server_cpu, time);
        let times = times.map_err(BenchError::at("have two threads wake each other"))?;
        medians.extend(times.median().map(|time| time.as_secs_f64() * 1e6));
    }
    let version = Version {
        name: "eventfd".to_owned(),
        program: "read and write".to_owned(),
        setup: "a thread on each processor, both sleep; no server, no queue".to_owned(),
    };
    let row = Row::new(probe.of(ground), "eventfd", Unit::Microseconds, medians);
    Ok(Found::of(row, vec![version]))
}

/// The times in which a thread on `cpu` is woken and wakes the caller, for `time`.
fn round_trips(cpu: usize, time: Duration) -> io::Result<Histogram> {
    let (there, back) = (EventFd::new(0)?, EventFd::new(0)?);
    let (heard, answer) = (there.try_clone()?, back.try_clone()?);
    let other = std::thread::spawn(move || {
        let pinned = pin_thread(cpu);
        while heard.read()? < END {
            answer.write(1)?;
        }
        pinned
    });
    let mut times = Histogram::default();
    let start = Instant::now();
    let mut last = start;
    while last - start < time {
        there.write(1)?;
        back.read()?;
        let now = Instant::now();
        times.add(now - last);
        last = now;
    }
    there.write(END)?;
    other.join().unwrap_or_else(|_| Err(io::Error::other("the other thread panicked")))?;
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_wake_each_other_until_the_time_is_over() {
        let time = Duration::from_millis(20);
        let median = round_trips(0, time).unwrap().median().unwrap();
        assert!(median > Duration::ZERO && median < time);
    }
}
