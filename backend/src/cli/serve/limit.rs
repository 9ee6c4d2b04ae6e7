//! The limit of open descriptors.
//!
//! Owns how many descriptors queues take. Never opens any.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of a queue: its worker's, and those that its front-end passes, some of them twice.
const OF_A_QUEUE: u64 = 10;
/// Those of a disk: its files, its socket and its connection.
const OF_A_DISK: u64 = 8;
/// Those of the process.
const OF_ALL: u64 = 16;

/// Lets this process open as many descriptors as it may. The usual soft limit, 1024, is there for
/// programs that use `select`, and is too low for many queues: a descriptor that a front-end passes
/// beyond it is lost.
pub(super) fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!("the limit of open descriptors stays as low as it is: {error}");
    }
}

/// Warns if the limit is too low for disks with these numbers of queues.
pub(super) fn warn_if_too_low(queues: impl IntoIterator<Item = u16>) {
    let all = getrlimit(Resource::Nofile).current;
    if let Some((allowed, needed)) = too_low(all, queues) {
        tracing::warn!(
            "this process may open {allowed} descriptors, and its disks may take {needed}: queues \
             that find none are polled, or not served; raise the hard limit (LimitNOFILE= in a \
             unit of systemd, 'ulimit -Hn' in a shell), or serve fewer queues"
        );
    }
}

fn too_low(allowed: Option<u64>, queues: impl IntoIterator<Item = u16>) -> Option<(u64, u64)> {
    let of_disks = queues.into_iter().map(|queues| OF_A_DISK + OF_A_QUEUE * u64::from(queues));
    let needed = OF_ALL + of_disks.sum::<u64>();
    allowed.filter(|allowed| *allowed < needed).map(|allowed| (allowed, needed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_descriptors_as_allowed_may_be_opened() {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        // Enough for the tests that run meanwhile.
        let lower = current.map_or(1 << 20, |current| current - 1);
        setrlimit(Resource::Nofile, Rlimit { current: Some(lower), maximum }).unwrap();
        raise();
        assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    }

    #[test]
    fn a_limit_below_what_queues_take_is_told() {
        assert_eq!(too_low(Some(64), [1, 2]), None);
        assert_eq!(too_low(Some(61), [1, 2]), Some((61, 62)));
        assert_eq!(too_low(None, [62; 100]), None);
    }
}
