//! The report as a document: targets, figures and pictures, for `docs/performance.md`.
//!
//! Owns its layout. Every word that depends on a figure comes from the report, so the document can
//! be generated again from the parts of a run.

use std::path::{Path, PathBuf};

use super::goals::goals;
use super::report::Report;
use super::target::{Found, Outcome, Target};
use super::{plot, table};
use crate::server::Place;

/// The document at `path` and the pictures beside it, with their contents.
pub fn files(report: &Report, path: &Path) -> Vec<(PathBuf, String)> {
    let mut text = format!(
        "# Performance\n\n\
         Written by `cargo bench -p snapblk-tests -- --report docs/performance.md`; \
         [benchmark.md](benchmark.md) says what is done and how to read it.\n\n\
         ## Targets\n\n{}\n",
        targets(report, &goals())
    );
    let mut files = Vec::new();
    for ground in report.grounds() {
        let picture = picture_beside(path, ground);
        let name = picture.file_name().unwrap_or_default().to_string_lossy().into_owned();
        text += &format!("## On {ground}\n\n![The figures on {ground}]({name})\n\n");
        text += &format!("{}\n", table::figures(report, ground));
        files.push((picture, plot::panel(report, ground)));
    }
    text += &format!("## How it was measured\n\n{}", table::provenance(report));
    files.insert(0, (path.to_owned(), text));
    files
}

/// `performance-tmpfs.svg` for `performance.md` and tmpfs.
fn picture_beside(path: &Path, ground: &str) -> PathBuf {
    let kind = ground.split_whitespace().next().unwrap_or("figures");
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{kind}.svg"))
}

/// The results of the targets for which the report has figures.
pub fn judged(report: &Report) -> String {
    let mut goals = goals();
    goals.retain(|target| target.judge(report) != Outcome::NotMeasured);
    targets(report, &goals)
}

/// The targets and their results, as a table, and the number that hold.
fn targets(report: &Report, goals: &[Target]) -> String {
    /// Columns of words.
    const WORDS: usize = 5;
    let header = ["job", "of", "on", "figure", "compared with", "must be", "is", "min–max", ""];
    let mut lines = vec![header.map(str::to_owned)];
    let (mut hold, mut measured) = (0, 0);
    for target in goals {
        let outcome = target.judge(report);
        hold += usize::from(matches!(outcome, Outcome::Holds(_)));
        measured += usize::from(outcome != Outcome::NotMeasured);
        lines.push(line(target, report, &outcome));
    }
    let missing = goals.len() - measured;
    let table = table::aligned(&lines, WORDS);
    format!("{hold} of {measured} targets hold; {missing} were not measured.\n\n{table}")
}

fn line(target: &Target, report: &Report, outcome: &Outcome) -> [String; 9] {
    let (found, word) = match outcome {
        Outcome::Holds(found) => (Some(found), "holds"),
        Outcome::FallsShort(found) => (Some(found), "**falls short**"),
        Outcome::NotMeasured => (None, "not measured"),
    };
    let show = |of: fn(&Found) -> String| found.map_or_else(|| "–".to_owned(), of);
    let ends = |found: &Found| format!("{:.2}–{:.2}", found.value.min, found.value.max);
    [
        target.title(report).to_owned(),
        target.subject.to_owned(),
        if target.place == Place::Memory { "tmpfs" } else { "disk" }.to_owned(),
        target.figure_name(report).to_owned(),
        show(|found| found.with.clone()),
        target.bound.to_string(),
        show(|found| format!("{:.2}", found.value.median)),
        show(ends),
        word.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::table::tests::report;

    #[test]
    fn the_document_names_its_pictures_and_counts_its_targets() {
        let files = files(&report(), Path::new("docs/performance.md"));
        let names: Vec<_> = files.iter().map(|(path, _)| path.to_str().unwrap()).collect();
        assert_eq!(names, ["docs/performance.md", "docs/performance-tmpfs.svg"]);
        let text = &files[0].1;
        assert!(text.contains("](performance-tmpfs.svg)"), "{text}");
        // The report has rows of one job, but not with the peers that the targets need.
        let none = format!("0 of 0 targets hold; {} were not measured.", goals().len());
        assert!(text.contains(&none), "{text}");
    }
}
