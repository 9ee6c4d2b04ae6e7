//! The program's documentation of itself.

mod common;

use common::Place;

#[test]
fn capabilities_are_what_management_software_expects() {
    let place = Place::new();
    let said = place.ok("--print-capabilities");
    assert_eq!(said, "{\"type\":\"block\",\"features\":[\"read-only\",\"blk-file\"]}\n");
}

/// QEMU, docs/interop/vhost-user.rst "Backend program conventions": other arguments are ignored.
#[test]
fn capabilities_are_said_whatever_else_is_given() {
    let place = Place::new();
    let alone = place.ok("--print-capabilities");
    for line in ["--print-capabilities --socket-path=s --mystery", "--fd=3 --print-capabilities"] {
        assert_eq!(place.ok(line), alone);
    }
    assert!(!place.path("s").exists());
}

/// The same conventions: the program is started without a command, and its descriptor is a
/// connection.
#[test]
fn options_alone_serve_and_an_inherited_connection_is_a_front_end() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};
    let place = Place::new();
    place.sparse("disk", 1 << 20);
    let (mut front, back) = UnixStream::pair().unwrap();
    let program = Command::new(env!("CARGO_BIN_EXE_snapblk"))
        .args(["--fd=0", "--blk-file=disk", "--read-only"])
        .current_dir(place.dir())
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(back)))
        .spawn()
        .unwrap();
    // GET_FEATURES: request, flags (the version), payload size.
    let question = [1u32, 1, 0].map(u32::to_ne_bytes);
    front.write_all(question.as_flattened()).unwrap();
    let mut answer = [0; 20];
    front.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..12], *[1u32, 5, 8].map(u32::to_ne_bytes).as_flattened());
    let features = u64::from_ne_bytes(answer[12..].try_into().unwrap());
    assert_eq!(features >> 5 & 1, 1, "VIRTIO_BLK_F_RO: {features:#x}");
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&program),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(program.wait_with_output().unwrap().status.success());
}

#[test]
fn every_command_has_help_and_a_manual_page() {
    let place = Place::new();
    let all = place.ok("--help");
    for command in ["serve", "create", "info", "check", "dump", "merge", "completions", "man"] {
        assert!(all.contains(&format!("\n  {command}")), "{all}");
        assert!(place.ok(&format!("{command} --help")).contains("Usage: snapblk"));
        assert!(place.ok(&format!("{command} -h")).contains("Usage: snapblk"));
    }
    assert!(place.ok("man").starts_with(".ie") || place.ok("man").contains(".TH snapblk"));
    place.ok("man --dir pages/man1");
    for page in ["snapblk.1", "snapblk-merge.1", "snapblk-serve.1"] {
        assert!(place.path("pages/man1").join(page).exists(), "{page}");
    }
    // The page has the complete command line.
    let page = String::from_utf8(place.read("pages/man1/snapblk-ctl-merge.1")).unwrap();
    assert!(page.contains("snapblk ctl <MONITOR> merge [OPTIONS] <DEVICE> <SNAPSHOT>"), "{page}");
}

/// The long documentation of a command is shown, too.
#[test]
fn long_help_says_more_than_the_list_of_commands() {
    let place = Place::new();
    for (command, more) in [
        ("create", "A file that is there and not empty is left alone."),
        ("check", "Exit status 0 only for a store that can be used"),
        ("merge", "The store is empty and valid afterwards."),
        ("ctl", "Files are named as the server finds them"),
        ("ctl m overlay", "snapblk ctl monitor.sock overlay disk0 monday.cow"),
        ("ctl m commit", "snapblk ctl monitor.sock commit disk0 --top disk0.2 --base disk0.1"),
        ("ctl m commit", "serve --force"),
    ] {
        let said = place.ok(&format!("{command} --help"));
        assert!(said.contains(more), "{said}");
        assert!(!place.ok(&format!("{command} -h")).contains(more));
    }
}

/// What the server does without an option is in the help of the client.
#[test]
fn the_help_of_ctl_says_what_is_the_default() {
    let place = Place::new();
    for (verb, defaults) in [
        ("snapshot", ["from 512 to 1G, as in 64K [default: 4K]", "a restart [default: PO]"]),
        ("export", ["offered [default: 1]", "512 or 4096 [default: 512]"]),
    ] {
        let said = place.ok(&format!("ctl m {verb} -h"));
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(defaults.iter().all(|default| said.contains(default)), "{said}");
    }
}

#[test]
fn shells_complete() {
    let place = Place::new();
    for (shell, word) in [("bash", "_snapblk"), ("zsh", "#compdef snapblk"), ("fish", "-c snapblk")]
    {
        assert!(place.ok(&format!("completions {shell}")).contains(word));
    }
}

#[test]
fn usage_errors_have_their_status() {
    let place = Place::new();
    place.fails(2, "frobnicate");
    place.fails(2, "create");
    place.fails(2, "merge cow");
    place.fails(2, "serve --table T --blk-file f");
    for line in ["frobnicate", "create", "info cow --size 4K", "serve --name a --fd 3"] {
        let said = place.fails(2, line);
        assert!(said.starts_with("snapblk: ") && said.contains("; usage: snapblk"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let said = place.fails(2, "");
    assert!(said.contains("no command was given"), "{said}");
    assert!(place.ok("--version").starts_with("snapblk 0."));
}

#[test]
fn a_usage_error_of_serve_shows_the_usage_of_serve() {
    let place = Place::new();
    for line in ["serve", "serve --overlay o --socket-path v", "serve --name a --fd 3"] {
        let said = place.fails(2, line);
        assert!(said.contains("usage: snapblk serve [OPTIONS]"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn a_descriptor_that_is_none_is_named() {
    let place = Place::new();
    place.sparse("disk", 4096);
    let said = place.fails(1, "serve --blk-file disk --fd 177");
    assert!(said.contains("descriptor 177"), "{said}");
}

/// A log in a file or a journal is read by people and scripts, not by terminals.
#[test]
fn warnings_that_do_not_go_to_a_terminal_have_no_colours() {
    let place = Place::new();
    let mut header = vec![0; 4096 * 3];
    header[..16].copy_from_slice(b"SnAp\0\0\0\0\x01\0\0\0\x08\0\0\0");
    place.file("cow", &header);
    let said = place.fails(1, "check cow");
    assert!(said.contains("Invalid"), "{said}");
    assert!(!said.contains('\x1b'), "{said}");
}

#[test]
fn a_log_that_cannot_be_is_said_so() {
    let place = Place::new();
    let said = |log: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_snapblk"));
        command.args(["info", "nothing"]).current_dir(place.path("")).env("SNAPBLK_LOG", log);
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    let loud = said("snapblk=loud");
    assert!(loud.contains("SNAPBLK_LOG is \"snapblk=loud\"") && loud.contains("'info'"), "{loud}");
    for possible in ["snapblk=debug", "info", ""] {
        assert!(!said(possible).contains("SNAPBLK_LOG"), "{possible}");
    }
}

#[test]
fn more_queues_than_an_export_has_are_refused_at_once() {
    let place = Place::new();
    for (queues, possible) in [("0", false), ("63", false), ("62", true)] {
        let said = place.fails(
            if possible { 1 } else { 2 },
            &format!("serve --socket-path s --blk-file nothing --num-queues {queues}"),
        );
        assert_eq!(said.contains("1..=62"), !possible, "{said}");
    }
}
