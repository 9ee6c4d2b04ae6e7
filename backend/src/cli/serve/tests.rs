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
    assert_eq!(disk.socket, Some(Socket::Path("s".into())));
    let source = Source::File { path: "disk.img".into(), read_only: true, overlay: None };
    assert_eq!(disk.source, source);
    assert_eq!(disk.on_full, OnFull::Fail);
    assert_eq!(parse("--blk-file d --fd 3").disks[0].socket, Some(Socket::Fd(3)));
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
    assert_eq!(serve.disks[0].source, Source::Table(vec!["A".into(), "B".into()]));
    assert!(!serve.disks[0].force && serve.disks[1].force && !serve.disks[2].force);
    let overlay = Some(PathBuf::from("o"));
    let file = Source::File { path: "f".into(), read_only: false, overlay };
    assert_eq!(serve.disks[1].source, file);
    assert_eq!(serve.disks[2].num_queues, Some(4));
    assert_eq!(serve.disks[2].on_full, OnFull::Wait(Duration::from_secs(30)));
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
fn a_monitor_or_a_configuration_is_enough() {
    assert!(parse("--monitor m").disks.is_empty());
    assert_eq!(parse("--config c --name a").disks[0].source, Source::Known);
}

#[test]
fn times_to_wait() {
    assert_eq!(on_full("wait=500ms"), Ok(OnFull::Wait(Duration::from_millis(500))));
    assert_eq!(on_full("wait=2m"), Ok(OnFull::Wait(Duration::from_secs(120))));
    assert_eq!(on_full("wait=7"), Ok(OnFull::Wait(Duration::from_secs(7))));
    assert!(on_full("wait=").is_err() && on_full("wait=xs").is_err() && on_full("").is_err());
}
