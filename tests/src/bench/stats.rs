//! Several repetitions as three numbers, and the comparison of two servers by them.

use serde::{Deserialize, Serialize};

/// The median and the range of some measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of `samples`; none if there are none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }

    /// The comparison of a server with this spread of rates with one with `other`.
    pub fn against(&self, other: &Self) -> Verdict {
        if self.min > other.max {
            Verdict::Better
        } else if self.max < other.min {
            Verdict::Worse
        } else {
            Verdict::Par
        }
    }
}

/// The conclusion that two spreads permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every repetition was faster than every one of the other.
    Better,
    /// The spreads overlap.
    Par,
    /// Every repetition was slower than every one of the other.
    Worse,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Better => "better",
            Self::Par => "par",
            Self::Worse => "worse",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of(&[]), None);
        let odd = Spread::of(&[5.0, 1.0, 9.0]).unwrap();
        assert_eq!(odd, Spread { median: 5.0, min: 1.0, max: 9.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
    }

    #[test]
    fn spreads_that_touch_are_on_a_par() {
        let spread = |min, max| Spread { median: (min + max) / 2.0, min, max };
        assert_eq!(spread(5.0, 6.0).against(&spread(1.0, 4.9)), Verdict::Better);
        assert_eq!(spread(5.0, 6.0).against(&spread(1.0, 5.0)), Verdict::Par);
        assert_eq!(spread(1.0, 2.0).against(&spread(3.0, 4.0)), Verdict::Worse);
    }
}
