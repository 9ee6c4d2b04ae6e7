//! The expected commands and arguments are those of `docs/monitor.md`, and QEMU's where they share a name.

use clap::Parser;
use serde_json::{Value, json};

use super::{CtlArgs, CtlError};

#[derive(Parser, Debug)]
struct Line {
    #[command(flatten)]
    ctl: CtlArgs,
}

/// The command and arguments that this command line sends.
fn asked(line: &str) -> (&'static str, Value) {
    let words = ["ctl", "m.sock"].into_iter().chain(line.split(' '));
    let request = Line::try_parse_from(words).unwrap().ctl.verb.request().unwrap();
    (request.command, request.arguments)
}

#[test]
fn every_verb_is_a_command_of_the_monitor() {
    for (line, command, arguments) in [
        ("devices", "query-devices", json!({})),
        ("devices d --inactive", "query-devices", json!({"name": "d", "inactive": true})),
        ("table d", "query-devices", json!({"name": "d"})),
        ("create d --uuid u", "device-create", json!({"name": "d", "uuid": "u"})),
        ("remove d", "device-remove", json!({"name": "d"})),
        ("remove d --force", "device-remove", json!({"name": "d", "force": true})),
        ("clear d", "table-clear", json!({"name": "d"})),
        ("suspend d", "device-suspend", json!({"name": "d"})),
        (
            "suspend d --noflush --skip-lockfs",
            "device-suspend",
            json!({"name": "d", "noflush": true, "skip-lockfs": true}),
        ),
        ("resume d", "device-resume", json!({"name": "d"})),
        ("resume d --skip-lockfs", "device-resume", json!({"name": "d", "skip-lockfs": true})),
        (
            "message d one two --sector 8",
            "device-message",
            json!({"name": "d", "message": "one two", "sector": 8}),
        ),
        (
            "snapshot d s --cow s.cow",
            "snapshot-create",
            json!({"device": "d", "name": "s", "cow": "s.cow"}),
        ),
        (
            "snapshot d s --cow s.cow --chunk-size 16KiB --size 2G --persistent P --existing",
            "snapshot-create",
            json!({"device": "d", "name": "s", "cow": "s.cow", "chunk-size": 16384,
                "size": 2_147_483_648_u64, "persistent": "P", "mode": "existing"}),
        ),
        (
            "transaction --snapshot d=s=s.cow --overlay e=a=b.cow --skip-lockfs",
            "transaction",
            json!({"actions": [
                {"type": "snapshot-create",
                 "data": {"device": "d", "name": "s", "cow": "s.cow", "skip-lockfs": true}},
                {"type": "blockdev-snapshot-sync",
                 "data": {"device": "e", "snapshot-file": "a=b.cow", "skip-lockfs": true}},
            ]}),
        ),
        (
            "merge d s",
            "snapshot-merge",
            json!({"device": "d", "snapshot": "s", "job-id": "merge-d"}),
        ),
        (
            "merge vg+data s",
            "snapshot-merge",
            json!({"device": "vg+data", "snapshot": "s", "job-id": "merge-vg_data"}),
        ),
        ("commit é", "block-commit", json!({"device": "é", "job-id": "commit-_"})),
        (
            "commit d --top d.2 --base d.1 --speed 1M",
            "block-commit",
            json!({
                "job-id": "commit-d", "device": "d", "top-node": "d.2", "base-node": "d.1",
                "speed": 1 << 20,
            }),
        ),
        (
            "merge d s --job-id j --speed 1M --wait",
            "snapshot-merge",
            json!({"device": "d", "snapshot": "s", "job-id": "j", "speed": 1_048_576}),
        ),
        (
            "merge d s --no-auto-finalize --no-auto-dismiss",
            "snapshot-merge",
            json!({"device": "d", "snapshot": "s", "job-id": "merge-d", "auto-finalize": false,
                "auto-dismiss": false}),
        ),
        (
            "commit d --no-auto-dismiss --wait",
            "block-commit",
            json!({"job-id": "commit-d", "device": "d", "auto-dismiss": false}),
        ),
        (
            "delete d s --delete-store",
            "snapshot-delete",
            json!({"device": "d", "snapshot": "s", "delete-store": true}),
        ),
        (
            "overlay d new.cow --node-name base",
            "blockdev-snapshot-sync",
            json!({"device": "d", "snapshot-file": "new.cow", "snapshot-node-name": "base"}),
        ),
        (
            "threshold d 4K",
            "block-set-write-threshold",
            json!({"node-name": "d", "write-threshold": 4096}),
        ),
        ("resize d 2G", "block_resize", json!({"device": "d", "size": 2_147_483_648_u64})),
        (
            "export e d /run/e.sock --writable --num-queues 4 --logical-block-size 4K",
            "block-export-add",
            json!({"type": "vhost-user-blk", "id": "e", "node-name": "d", "writable": true,
                "addr": {"type": "unix", "path": "/run/e.sock"}, "num-queues": 4,
                "logical-block-size": 4096}),
        ),
        (
            "export e d --fd 7",
            "block-export-add",
            json!({"type": "vhost-user-blk", "id": "e", "node-name": "d",
                "addr": {"type": "fd", "str": "7"}}),
        ),
        ("unexport e", "block-export-del", json!({"id": "e"})),
        ("unexport e --hard", "block-export-del", json!({"id": "e", "mode": "hard"})),
        ("exports", "query-block-exports", json!({})),
        ("jobs", "query-jobs", json!({})),
        ("speed j 1M", "block-job-set-speed", json!({"device": "j", "speed": 1 << 20})),
        ("speed j 0", "block-job-set-speed", json!({"device": "j", "speed": 0})),
        ("job-pause j", "job-pause", json!({"id": "j"})),
        ("job-resume j", "job-resume", json!({"id": "j"})),
        ("job-cancel j", "job-cancel", json!({"id": "j"})),
        ("job-complete j", "job-complete", json!({"id": "j"})),
        ("job-finalize j", "job-finalize", json!({"id": "j"})),
        ("job-dismiss j", "job-dismiss", json!({"id": "j"})),
        ("query-status", "query-status", json!({})),
        ("version", "query-version", json!({})),
        ("commands", "query-commands", json!({})),
        ("schema", "query-qmp-schema", json!({})),
        ("quit", "quit", json!({})),
    ] {
        assert_eq!(asked(line), (command, arguments), "{line}");
    }
}

#[test]
fn every_command_that_is_served_has_a_verb_and_fits_its_shape() {
    let commands = snapblk_qmp::Commands::default();
    let lines = [
        "devices",
        "create d",
        "remove d",
        "load d t",
        "clear d",
        "suspend d",
        "resume d",
        "message d m",
        "snapshot d s --cow c",
        "transaction --overlay d=c",
        "transaction --snapshot d=s=c",
        "resize d 1G",
        "threshold d 1G",
        "merge d s",
        "commit d",
        "delete d s",
        "overlay d f",
        "exports",
        "export e d p",
        "export e d --fd 7",
        "unexport e",
        "jobs",
        "speed j 1M",
        "job-pause j",
        "job-resume j",
        "job-cancel j",
        "job-complete j",
        "job-finalize j",
        "job-dismiss j",
        "query-status",
        "version",
        "commands",
        "schema",
        "quit",
    ];
    let mut missing: Vec<&str> = commands.iter().map(|command| command.name).collect();
    for line in lines {
        let (command, arguments) = asked(line);
        commands.get(command).unwrap().decode(arguments).unwrap();
        missing.retain(|name| *name != command);
    }
    assert_eq!(missing, ["qmp_capabilities"], "every client begins with it");
}

#[test]
fn the_monitor_s_own_names_are_understood() {
    for (line, command) in [
        ("device-suspend d", "device-suspend"),
        ("snapshot-create d s --cow c", "snapshot-create"),
        ("block-export-del e", "block-export-del"),
        ("query-devices", "query-devices"),
    ] {
        assert_eq!(asked(line).0, command);
    }
}

#[test]
fn a_table_comes_from_lines_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("table");
    std::fs::write(&file, "# two halves\n0 8 linear a 0\n\n 8 8 linear ./b\\ c 0 \n").unwrap();
    let parse = |table: &[&str]| {
        let words = ["ctl", "m.sock", "load", "d"].iter().chain(table);
        Line::try_parse_from(words).unwrap().ctl.verb.request()
    };
    let request = parse(&[&format!("@{}", file.display()), "16 8 zero", "--read-only"]).unwrap();
    assert_eq!(
        request.arguments,
        json!({"name": "d", "read-only": true,
            "table": ["0 8 linear a 0", r"8 8 linear ./b\ c 0", "16 8 zero"]})
    );
    let error = parse(&["@/nowhere/table"]).unwrap_err();
    assert!(matches!(&error, CtlError::TableFile { .. }));
    assert!(error.to_string().contains("/nowhere/table"));
}

#[test]
fn what_is_no_command_line_is_refused() {
    for line in [
        "",
        "nonsense",
        "snapshot d s",
        "snapshot d s --cow c --chunk-size 4X",
        "load d",
        "export e d",
        "export e d p --fd 7",
        "commit d --no-auto-finalize --wait",
        "transaction",
        "transaction --skip-lockfs",
    ] {
        let words = ["ctl", "m.sock"].into_iter().chain(line.split(' '));
        assert_eq!(Line::try_parse_from(words).unwrap_err().exit_code(), 2, "{line}");
    }
}
