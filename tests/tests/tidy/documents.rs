//! Documents: their links, their commands, and that they mention nothing outside the project.

use std::process::Command;

use snapblk::cli::Cli;
use snapblk_qmp::commands::Commands;
use snapblk_store::control::Event;
use snapblk_store::control::shape::{Member, Shape};

use crate::{none, read, root};

/// Files that git tracks, or would track.
fn files() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the files");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).unwrap();
    names.lines().filter(|name| root().join(name).is_file()).map(str::to_owned).collect()
}

fn pages() -> Vec<String> {
    files().into_iter().filter(|name| name.ends_with(".md")).collect()
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let folder = root().join(&page).parent().unwrap().to_owned();
        for (n, line) in read(&page).lines().enumerate() {
            for link in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let path = link.split('#').next().unwrap();
                let elsewhere = path.is_empty() || path.contains("://");
                if !elsewhere && !folder.join(path).exists() {
                    broken.push(format!("{page}:{}: there is no {path}", n + 1));
                }
            }
        }
    }
    none("A link in a document leads to a file that is there.", &broken);
}

#[test]
fn decisions_are_numbered_one_after_the_other_and_listed() {
    let mut names: Vec<String> = pages()
        .into_iter()
        .filter_map(|page| page.strip_prefix("docs/adr/").map(str::to_owned))
        .collect();
    names.sort();
    let index = read("docs/README.md");
    for (n, name) in names.iter().enumerate() {
        assert!(name.starts_with(&format!("{:04}-", n + 1)), "{name} should be number {}", n + 1);
        assert!(index.contains(&format!("(adr/{name})")), "docs/README.md does not list {name}");
        let text = read(&format!("docs/adr/{name}"));
        assert!(
            text.starts_with(&format!("# {}. ", n + 1)),
            "{name}: its title has another number"
        );
    }
    assert!(names.len() > 5, "only {names:?} were found");
}

/// The commands of a document's console blocks: lines that begin with `$ ` or `snapblk`, joined
/// where they end in a backslash.
fn commands(page: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut inside = false;
    let mut open: Option<String> = None;
    for line in read(page).lines() {
        if line.starts_with("```") {
            inside = !inside;
            open = None;
            continue;
        }
        let line = line.trim().trim_start_matches("$ ");
        let command = match open.take() {
            Some(before) => format!("{before} {line}"),
            None if inside && line.starts_with("snapblk ") => line.to_owned(),
            None => continue,
        };
        match command.strip_suffix('\\') {
            Some(begun) => open = Some(begun.trim_end().to_owned()),
            None => commands.push(command),
        }
    }
    commands
}

/// Splits a command line as a shell does, as far as documents need it: quotes, comments, and only
/// the first command of the line.
fn split(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut some) = (Vec::new(), String::new(), None, false);
    for c in command.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\'' | '"', None) => (quote, some) = (Some(c), true),
            ('#' | '&' | '|' | '>' | '<', None) if !some => break,
            (c, None) if c.is_whitespace() => {
                if some {
                    words.push(std::mem::take(&mut word));
                }
                some = false;
            }
            (c, _) => {
                word.push(c);
                some = true;
            }
        }
    }
    if some {
        words.push(word);
    }
    words
}

/// The commands in documents are valid for the program.
#[test]
fn commands_in_documents_are_commands() {
    let mut broken = Vec::new();
    let mut count = 0;
    for page in pages() {
        for command in commands(&page) {
            count += 1;
            if let Err(error) = Cli::definition().try_get_matches_from(split(&command)) {
                use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
                if !matches!(error.kind(), DisplayHelp | DisplayVersion) {
                    broken.push(format!("{page}: {command}\n    {error}"));
                }
            }
        }
    }
    assert!(count > 10, "only {count} commands were found");
    none("A command in a document is one that snapblk takes.", &broken);
}

#[test]
fn command_lines_are_split_as_a_shell_does() {
    assert_eq!(split("a -b 'c d' \"e\"  # f"), ["a", "-b", "c d", "e"]);
    assert_eq!(split("a b & c"), ["a", "b"]);
    assert_eq!(split("a '' b"), ["a", "", "b"]);
}

/// The cells of the rows of a page's tables that name `what` in their first one.
fn rows<'p>(page: &'p str, what: &str) -> Vec<Vec<&'p str>> {
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let cells = rows.map(|row| row.split(" | ").collect::<Vec<_>>());
    cells.filter(|row| row[0].contains(&format!("`{what}`"))).collect()
}

fn members(shape: &Shape) -> Vec<&Member> {
    match shape {
        Shape::Record { members, .. } => members.iter().collect(),
        Shape::Union { base, variants, .. } => {
            base.iter().chain(variants.iter().flat_map(|(_, shape)| members(shape))).collect()
        }
        _ => Vec::new(),
    }
}

#[test]
fn the_page_of_the_monitor_has_every_command_and_event() {
    let page = read("docs/monitor.md");
    let mut broken = Vec::new();
    let mut count = 0;
    let mut compare = |what: &str, shape: &Shape| {
        let rows = rows(&page, what);
        let [row] = &rows[..] else {
            return broken.push(format!("'{what}' has {} rows", rows.len()));
        };
        for Member { name, optional, .. } in members(shape) {
            count += 1;
            let (there, may_miss) = (format!("`{name}`"), format!("`{name}`?"));
            if !row[1].contains(&there) || row[1].contains(&may_miss) != *optional {
                broken.push(format!("'{what}': '{name}' (optional: {optional}) in '{}'", row[1]));
            }
        }
    };
    for command in Commands::default().iter() {
        // `block_resize` needs one of two members, which a shape cannot express.
        if command.name != "block_resize" {
            compare(command.name, &command.arguments);
        }
    }
    Event::shapes().iter().for_each(|(name, shape)| compare(name, shape));
    assert!(count > 50, "only {count} members were compared");
    none(
        "docs/monitor.md has each command and event of the monitor, and what belongs to it.",
        &broken,
    );
}

/// Written in pieces, so that this file does not contain them.
const ELSEWHERE: [&str; 9] = [
    concat!("/wo", "rk/"),
    concat!("/tmp", "/wt"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("work", "tree"),
    concat!("sub", "agent"),
    concat!("anthro", "pic"),
    concat!("clau", "de"),
    concat!("issues", " show"),
];

#[test]
fn the_project_speaks_of_itself_alone() {
    let mut broken = Vec::new();
    for file in files() {
        let Ok(text) = std::fs::read_to_string(root().join(&file)) else { continue };
        for (n, line) in text.lines().enumerate() {
            let lower = line.to_ascii_lowercase();
            broken.extend(
                ELSEWHERE
                    .iter()
                    .filter(|word| lower.contains(*word))
                    .map(|word| format!("{file}:{}: '{word}'", n + 1)),
            );
        }
    }
    none("No file names a path of one machine, or who wrote it with what.", &broken);
}
