//! The latencies of requests, in a fixed amount of memory.
//!
//! Owns the buckets: 64 for each power of two of nanoseconds, so that the error of a figure is less
//! than two percent. Adding takes a few instructions, so that counting does not disturb the
//! measurement.

use std::time::Duration;

/// Buckets of one power of two.
const FINE: u32 = 6;
/// The number of buckets: times up to 2⁴⁰ ns, some twenty minutes.
const BUCKETS: usize = (40 - FINE as usize + 1) << FINE;

/// The number of occurrences of each time.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    counts: Box<[u64]>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into_boxed_slice(), total: 0 }
    }
}

impl Histogram {
    /// Counts a time.
    pub(super) fn add(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanoseconds).min(BUCKETS - 1)] += 1;
        self.total += 1;
    }

    /// The median; none if nothing was counted.
    pub(super) fn median(&self) -> Option<Duration> {
        let mut left = self.total.checked_sub(1)? / 2;
        let at = self.counts.iter().position(|&count| {
            let here = left < count;
            left = left.saturating_sub(count);
            here
        })?;
        Some(Duration::from_nanos(middle(at)))
    }
}

/// The bucket of a time: below 64 ns each has its own; then 64 for each doubling.
fn bucket(nanoseconds: u64) -> usize {
    let exponent = (63 - (nanoseconds | 1).leading_zeros()).saturating_sub(FINE);
    let fine = (nanoseconds >> exponent) as usize;
    ((exponent as usize) << FINE) + fine
}

/// The time in the middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let exponent = (bucket >> FINE).saturating_sub(1);
    let fine = bucket - (exponent << FINE);
    let first = (fine as u64) << exponent;
    first + ((1_u64 << exponent) - 1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_middle_and_none_is_wider_than_its_share() {
        for nanoseconds in (0..1 << 21).chain([123_456_789, 59_999_999_999]) {
            let middle = middle(bucket(nanoseconds));
            assert!(
                middle.abs_diff(nanoseconds) * 100 <= nanoseconds * 2,
                "{nanoseconds} {middle}"
            );
        }
    }

    #[test]
    fn the_median_is_that_of_what_was_added() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.median(), None);
        for nanoseconds in [7, 50, 20, 60, 1_000_000] {
            histogram.add(Duration::from_nanos(nanoseconds));
        }
        assert_eq!(histogram.median(), Some(Duration::from_nanos(50)));
        histogram.add(Duration::from_secs(1 << 30));
        assert_eq!(histogram.median(), Some(Duration::from_nanos(50)));
        histogram.add(Duration::from_secs(3));
        histogram.add(Duration::from_secs(3));
        assert_eq!(histogram.median(), Some(Duration::from_nanos(60)));
    }
}
