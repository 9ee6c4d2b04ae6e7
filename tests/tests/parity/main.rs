//! The same scripts run by a kernel's dm-snapshot in a guest and by snapblk: each step's answer,
//! each device's status line and each device's content are the same after every step.
//!
//! The intended differences are in [`DEVIATIONS`], each with its reason; one that does not occur is
//! an error too.

mod kernel;
mod script;
mod served;

use script::{Script, Seen};

/// An intended difference.
struct Deviation {
    script: &'static str,
    /// The step, from 0.
    step: usize,
    /// A device, or `answer`.
    of: &'static str,
    kernel: &'static str,
    snapblk: &'static str,
    /// Whether the content differs too.
    content: bool,
    reason: &'static str,
}

const DEVIATIONS: &[Deviation] = &[Deviation {
    script: "PO overflows, grows, is loaded again",
    step: 5,
    of: "a",
    kernel: "0 1024 snapshot Overflow",
    snapblk: "0 1024 snapshot 128/512 16",
    content: false,
    reason: "the kernel hands the overflow over with the store, so that only opening it again cures \
             it; here a store that grew has room as soon as a table is loaded again",
}];

/// Also scenarios 23 to 26 and 39: filling up, growing, and rolling back.
#[test]
fn scenario_22_the_kernel_and_snapblk_agree_on_every_shared_script() {
    let scripts = script::all();
    let kernel = kernel::run(&scripts).unwrap_or_else(|error| panic!("{error}"));
    let mut wrong = Vec::new();
    for (script, theirs) in scripts.iter().zip(kernel) {
        let ours = served::run(script);
        assert_eq!((theirs.len(), ours.len()), (script.steps.len(), script.steps.len()));
        for (step, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
            compare(script, step, theirs, ours, &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

fn compare(script: &Script, step: usize, kernel: &Seen, snapblk: &Seen, wrong: &mut Vec<String>) {
    let mut differ = |of: &str, theirs: &str, ours: &str, content: bool| {
        let meant = DEVIATIONS.iter().find(|d| (d.script, d.step, d.of) == (script.name, step, of));
        let right = match meant {
            Some(d) => d.kernel == theirs && d.snapblk == ours && d.content == content,
            None => theirs == ours && !content,
        };
        if !right {
            let (what, why) = (&script.steps[step], meant.map_or("", |d| d.reason));
            wrong.push(format!(
                "{} step {step} ({what:?}), {of}: the kernel says '{theirs}', snapblk '{ours}'; \
                 contents differ: {content}; {why}",
                script.name
            ));
        }
    };
    differ("answer", &kernel.answer, &snapblk.answer, false);
    let names = |seen: &Seen| seen.devices.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(kernel), names(snapblk), "{} step {step}", script.name);
    for (name, theirs) in &kernel.devices {
        let ours = &snapblk.devices[name];
        differ(name, &theirs.status, &ours.status, theirs.content != ours.content);
    }
}
