use std::time::Duration;

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    serve: Serve,
}

fn parse(line: &str) -> Serve {
    Line::try_parse_from(std::iter::once("serve").chain(line.split(' '))).unwrap().serve
}

fn refused(line: &str) -> String {
    let error = Line::try_parse_from(std::iter::once("serve").chain(line.split(' '))).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string()
}

#[test]
fn a_plain_disk_as_qemu_s_conventions_have_it() {
    let serve = parse("--blk-file disk.img --socket-path s --read-only");
    let [disk] = &serve.disks[..] else { panic!("{serve:?}") };
    assert_eq!(disk.name, "disk0");
    assert_eq!(disk.socket, Some(DiskSocket::Path("s".into())));
    let source = DiskSource::File { path: "disk.img".into(), read_only: true, overlay: None };
    assert_eq!(disk.source.resolved(), Ok(source));
    assert_eq!(disk.on_full, None);
    assert!(!disk.poll && parse("--blk-file d --poll").disks[0].poll);
    assert_eq!(parse("--blk-file d --fd 3").disks[0].socket, Some(DiskSocket::Fd(3)));
}

#[test]
fn each_name_opens_a_group() {
    let serve = parse(
        "--table A --table B --monitor m --name two --blk-file f --overlay o --force \
         --name three --table C --num-queues 4 --on-full wait=30s",
    );
    assert_eq!(serve.monitor, Some("m".into()));
    let names: Vec<&str> = serve.disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["disk0", "two", "three"]);
    let lines = DiskSource::Lines(vec!["A".into(), "B".into()]);
    assert_eq!(serve.disks[0].source.resolved(), Ok(lines));
    assert!(serve.force && serve.state.is_none());
    let overlay = Some(PathBuf::from("o"));
    let file = DiskSource::File { path: "f".into(), read_only: false, overlay };
    assert_eq!(serve.disks[1].source.resolved(), Ok(file));
    assert_eq!(serve.disks[2].num_queues, Some(4));
    assert_eq!(serve.disks[2].on_full, Some(OnFull::Wait(Duration::from_secs(30))));
    assert_eq!(serve.disks[1].num_queues, None);
}

#[test]
fn a_name_first_leaves_no_unnamed_disk() {
    let serve = parse("--name a --table A");
    assert_eq!(serve.disks.len(), 1);
    assert_eq!(serve.disks[0].name, "a");
}

#[test]
fn what_does_not_go_together_is_refused_by_name() {
    assert!(refused("--name a --blk-file f --table T").contains("disk 'a' has both"));
    assert!(refused("--table T --overlay o").contains("without --blk-file"));
    assert!(refused("--blk-file f --overlay o --read-only").contains("--read-only and --overlay"));
    assert!(refused("--name a --table T --name a --table U").contains("two disks"));
    assert!(refused("--blk-file f --blk-file g").contains("more than once for disk 'disk0'"));
    assert!(refused("--name a").contains("made of nothing"));
    assert!(refused("--table T --socket-path s --fd 3").contains("--socket-path and --fd"));
    assert!(refused("--blk-file f --num-queues 0").contains("0"));
    assert!(refused("--blk-file f --on-full never").contains("wait=30s"));
    assert!(Line::try_parse_from(["serve"]).is_err());
}

#[test]
fn tables_may_have_a_bound() {
    let serve = parse("--table-memory 64M --table-dir d --blk-file f");
    assert_eq!((serve.table_memory, serve.table_dir), (Some(64 << 20), Some("d".into())));
    assert_eq!(parse("--blk-file f").table_memory, None);
    assert!(refused("--blk-file f --table-memory 8191K").contains("too little"));
    assert!(refused("--blk-file f --table-memory much").contains("not a size"));
    assert!(refused("--blk-file f --table-dir d").contains("without --table-memory"));
}

#[test]
fn what_is_not_flushed_has_a_time() {
    let after = |text: &str| parse(&format!("--blk-file f --flush-interval {text}"));
    let minute = FlushInterval::After(Duration::from_secs(60));
    assert_eq!(after("1m").flush_interval, Some(minute));
    assert_eq!(after("never").flush_interval, Some(FlushInterval::Never));
    assert_eq!(parse("--blk-file f").flush_interval, None);
    for wrong in ["0s", "soon", "-1s", "99999999999999999999s", "18446744073709551615m"] {
        let line = format!("--blk-file f --flush-interval={wrong}");
        assert!(refused(&line).contains("neither a time, as '30s' is, nor 'never'"), "{wrong}");
    }
    let file = "flush-interval = \"500ms\"\n[[disk]]\nblk-file = \"f\"";
    let half = FlushInterval::After(Duration::from_millis(500));
    assert_eq!(joined("--config c", file).unwrap().flush_interval, Some(half));
    let line = "--config c --flush-interval never";
    assert_eq!(joined(line, file).unwrap().flush_interval, Some(FlushInterval::Never));
    assert!(joined("--config c", "flush-interval = \"0\"").unwrap_err().contains("'0' is"));
    let number = file.replace("\"500ms\"", "60");
    assert_eq!(joined("--config c", &number).unwrap().flush_interval, Some(minute));
}

#[test]
fn a_monitor_or_a_configuration_is_enough() {
    assert!(parse("--monitor m").disks.is_empty());
    assert!(parse("--config c --name a").disks[0].source.are_open());
}

#[test]
fn times_to_wait() {
    assert_eq!(on_full("wait=500ms"), Ok(OnFull::Wait(Duration::from_millis(500))));
    assert_eq!(on_full("wait=2m"), Ok(OnFull::Wait(Duration::from_secs(120))));
    assert_eq!(on_full("wait=7"), Ok(OnFull::Wait(Duration::from_secs(7))));
    assert!(on_full("wait=").is_err() && on_full("wait=xs").is_err() && on_full("").is_err());
}

/// The command line `line` combined with a file of `text`.
fn joined(line: &str, text: &str) -> Result<Serve, String> {
    parse(line).joined("c.toml".as_ref(), text).map_err(|error| {
        assert_eq!(error.status(), 2);
        error.to_string()
    })
}

const FILE: &str = r#"
monitor = "m"
table-memory = "64M"
table-dir = "d"
state = "s"
force = true

[[disk]]
name = "root"
blk-file = "golden.raw"
overlay = "root.cow"
socket-path = "root.sock"
num-queues = 4

[[disk]]
table = ["0 8 zero", "8 8 error"]
fd = 3
on-full = "fail"
"#;

#[test]
fn a_file_says_what_the_options_say() {
    let serve = joined("--config c.toml", FILE).unwrap();
    let line = "--config c.toml --monitor m --table-memory 64M --table-dir d --name root \
                --blk-file golden.raw --overlay root.cow --socket-path root.sock --num-queues 4 \
                --state s --force --name disk0 --fd 3 --on-full fail";
    let mut wanted = parse(line);
    wanted.disks[1].source.table = vec!["0 8 zero".into(), "8 8 error".into()];
    assert_eq!(serve, wanted);
}

#[test]
fn the_command_line_wins_over_the_file() {
    let line = "--config c.toml --monitor other --table-memory 32M --name root --num-queues 1 --state t \
                --name new --blk-file n --name disk0 --blk-file plain --socket-path p";
    let serve = joined(line, FILE).unwrap();
    assert_eq!(serve.monitor, Some("other".into()));
    assert_eq!((serve.table_memory, serve.table_dir), (Some(32 << 20), Some("d".into())));
    let names: Vec<&str> = serve.disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["root", "new", "disk0"]);
    let root = &serve.disks[0];
    assert_eq!(
        (root.num_queues, &root.socket),
        (Some(1), &Some(DiskSocket::Path("root.sock".into())))
    );
    let overlay = Some("root.cow".into());
    let file = DiskSource::File { path: "golden.raw".into(), read_only: false, overlay };
    assert_eq!(root.source.resolved(), Ok(file));
    let plain = DiskSource::File { path: "plain".into(), read_only: false, overlay: None };
    assert_eq!(serve.disks[2].source.resolved(), Ok(plain));
    assert_eq!(serve.disks[2].socket, Some(DiskSocket::Path("p".into())));
    assert_eq!(serve.state, Some("t".into()), "the file's is nobody's any more");
}

/// What a disk is made of is several keys, and each of them is overridden for itself.
#[test]
fn what_a_disk_is_made_of_is_overridden_key_by_key() {
    let of_a_file = |path: &str, read_only, overlay: Option<&str>| {
        Ok(DiskSource::File { path: path.into(), read_only, overlay: overlay.map(PathBuf::from) })
    };
    let of_lines = |line: &str| Ok(DiskSource::Lines(vec![line.into()]));
    let read_only = "blk-file = \"golden.raw\"\nread-only = true";
    let overlaid = "blk-file = \"golden.raw\"\noverlay = \"root.cow\"";
    let table = "table = [\"0 8 zero\"]";
    for (line, keys, made_of) in [
        ("--blk-file /g", overlaid, of_a_file("/g", false, Some("root.cow"))),
        ("--blk-file /g", read_only, of_a_file("/g", true, None)),
        ("--overlay new.cow", overlaid, of_a_file("golden.raw", false, Some("new.cow"))),
        ("--overlay o", "blk-file = \"f\"", of_a_file("f", false, Some("o"))),
        ("--overlay o", read_only, of_a_file("golden.raw", false, Some("o"))),
        ("--read-only", "blk-file = \"f\"", of_a_file("f", true, None)),
        ("--blk-file f", "overlay = \"o\"", of_a_file("f", false, Some("o"))),
        ("--table T", overlaid, of_lines("T")),
        ("--table T", read_only, of_lines("T")),
        ("--table T", table, of_lines("T")),
        ("--blk-file f --overlay o", table, of_a_file("f", false, Some("o"))),
        ("--num-queues 1", table, of_lines("0 8 zero")),
    ] {
        let line = format!("--config c.toml --name root {line}");
        let keys = format!("[[disk]]\nname = \"root\"\n{keys}\n");
        let serve = joined(&line, &keys).unwrap();
        assert_eq!(serve.disks[0].source.resolved(), made_of, "{line}, {keys}");
    }
    let refused = |line: &str, keys: &str| {
        let keys = format!("[[disk]]\nname = \"root\"\n{keys}\n");
        joined(&format!("--config c.toml --name root {line}"), &keys).unwrap_err()
    };
    let said = refused("--read-only", overlaid);
    assert!(said.contains("'root', of this file and of the command line, has both"), "{said}");
    assert!(refused("--overlay o", table).contains("without --blk-file"));
    assert!(refused("--num-queues 1", "overlay = \"o\"").contains("without --blk-file"));
    assert!(refused("--num-queues 1", "num-queues = 2").contains("is made of nothing"));
}

/// They are the process's, whoever names the disks.
#[test]
fn the_file_s_settings_hold_for_disks_that_it_does_not_name() {
    let settings = "state = \"s\"\nforce = true\n";
    for (line, file) in [
        ("--config c.toml --name root --blk-file f", settings.to_owned()),
        ("--config c.toml --name root --blk-file f", FILE.to_owned()),
        ("--config c.toml", format!("monitor = \"m\"\n{settings}")),
    ] {
        let serve = joined(line, &file).unwrap();
        assert_eq!((serve.state, serve.force), (Some("s".into()), true), "{line}, {file}");
    }
    // Nor does the command line need a disk for them.
    let serve = parse("--state s --force --name a --table A");
    assert_eq!((serve.state, serve.force, serve.disks.len()), (Some("s".into()), true, 1));
    assert!(parse("--monitor m --state s").disks.is_empty());
    assert!(!parse("--table A --state s --name b --table B --state s").force);
    assert!(refused("--table A --state s --name b --table B --state t").contains("--state once"));
}

#[test]
fn a_file_s_values_may_be_numbers_and_its_table_one_line() {
    let text = "table-memory = 67108864\n[[disk]]\ntable = \"0 8 zero\"\n";
    let serve = joined("--config c.toml", text).unwrap();
    assert_eq!(serve.table_memory, Some(64 << 20));
    assert_eq!(serve.disks[0].source.table, ["0 8 zero"]);
    let wrong = joined("--config c.toml", "table-memory = true\n").unwrap_err();
    assert!(wrong.contains("a string or a number"), "{wrong}");
}

#[test]
fn a_file_that_cannot_be_is_refused_by_name_and_line() {
    let refused = |text: &str| joined("--config c.toml", text).unwrap_err();
    let said = refused("monitor = \"m\"\nmonitors = 1\n");
    assert!(said.starts_with("c.toml: line 2: unknown field `monitors`"), "{said}");
    let said = refused("monitor = \"m\"\n[[disk]]\nblk-file = \"f\"\nreadonly = true\n");
    assert!(said.starts_with("c.toml: line 4: unknown field `readonly`"), "{said}");
    let said = refused(&format!("monitor = \"m\"\n{} = 1\n", "long".repeat(10_000)));
    assert!(said.starts_with("c.toml: line 2: unknown field `longlong"), "{said}");
    let said_of = |bytes: &str| refused(&format!("table-memory = \"{bytes}\"")).len();
    assert!(said.len() < 600 && said_of(&"9".repeat(10_000)) < 600, "{said}");
    let said = refused("monitor = \n");
    assert!(said.starts_with("c.toml: line 1: ") && !said.contains('\n'), "{said}");
    let of_disk = |keys: &str| refused(&format!("[[disk]]\nname = \"a\"\n{keys}\n"));
    assert_eq!(
        of_disk("num-queues = 1"),
        "c.toml: disk 'a' is made of nothing: give blk-file or table"
    );
    let said = of_disk("blk-file = \"f\"\ntable = [\"0 8 zero\"]");
    assert_eq!(said, "c.toml: disk 'a' has both blk-file and table; leave one out");
    assert!(
        of_disk("blk-file = \"f\"\nfd = 3\nsocket-path = \"s\"").contains("socket-path and fd")
    );
    for queues in [-1, 0, 63, 1024, 1 << 16] {
        let said = of_disk(&format!("blk-file = \"f\"\nnum-queues = {queues}"));
        assert!(said.ends_with(&format!("{queues} is not in 1..=62")), "{said}");
    }
    assert!(joined("--config c.toml", "[[disk]]\nblk-file = \"f\"\nnum-queues = 62\n").is_ok());
    assert!(of_disk("blk-file = \"f\"\non-full = \"never\"").contains("wait=30s"));
    let twice = "[[disk]]\nblk-file = \"f\"\n".repeat(2);
    assert!(refused(&twice).contains("two disks are called 'disk0'"));
    assert!(refused("force = true").contains("nothing to serve"));
    assert!(refused("monitor = \"m\"\ntable-memory = \"1K\"").contains("too little"));
    assert!(refused("monitor = \"m\"\ntable-dir = \"d\"").contains("without table-memory"));
    let said = joined("--config c.toml --name b --num-queues 2", FILE).unwrap_err();
    assert_eq!(said, "c.toml: there is no disk 'b' in it");
}
