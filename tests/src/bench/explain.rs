//! What a reader of a report must know: the machine, and the method.

use std::fs;

use super::cost::SyscallCounter;
use super::job::Scale;
use super::run::Settings;

/// The processor, their number, and the kernel.
pub(super) fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{model}, {cores} processors, Linux {}", kernel.trim())
}

/// The method of any run.
pub(super) fn explanations(settings: &Settings) -> Vec<String> {
    let Scale { disk, seconds } = settings.scale;
    let mut notes = vec![
        format!(
            "Median, smallest and largest of {} repetitions; the servers take turns, each in a \
             fresh process on processor {}, the client on processor {}.",
            settings.repetitions, settings.server_cpu, settings.client_cpu
        ),
        format!(
            "Disks of {} MiB, written in full, O_DIRECT, one queue; jobs without a fixed amount \
             of work run {seconds} s. Each repetition of an overlay job has a fresh overlay; first \
             writes are a fixed number of requests, the same for every server.",
            disk >> 20
        ),
        "\"first ÷ this\" says how many times better a job's first server is than this one; \
         `better` and `worse` where no repetition of the one reaches one of the other, else `par`."
            .to_owned(),
        "CPU is the server's own, all threads, user and system, from the scheduler's counters."
            .to_owned(),
    ];
    if settings.finalists > 0 {
        notes.push(format!(
            "Of the peers' set-ups those are measured in full that are the best {} at a glance of \
             0.3 s, the one with the least processor time, and the best with default clusters (of \
             filters: the best durable one).",
            settings.finalists
        ));
    }
    if settings.count_syscalls {
        notes.push(format!(
            "System calls are from a turn of their own under `{}`; calls that io_uring saves are \
             not in it, nor is what its kernel threads do.",
            SyscallCounter::METHOD
        ));
    }
    notes
}
