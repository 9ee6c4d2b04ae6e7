//! The benchmark: the same jobs for snapblk and its peers, side by side in one run.
//!
//! `cargo bench -p snapblk-tests` runs it; `docs/benchmark.md` says how to read it.

use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;
use snapblk_tests::bench::{
    BenchError, Contender, Job, Kind, Report, Row, Run, Scale, Settings, plot, table,
};
use snapblk_tests::client::Waiting;
use snapblk_tests::server::{Place, find_snapblk};

/// Measures snapblk beside other vhost-user-blk servers.
#[derive(Parser)]
#[command(name = "cargo bench -p snapblk-tests --", disable_version_flag = true)]
struct Args {
    /// A short run: small disks, three short repetitions
    #[arg(long)]
    quick: bool,
    /// Repetitions of each figure [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    repeat: Option<u16>,
    /// How long a job without a fixed amount of work runs [default: 2]
    #[arg(long)]
    seconds: Option<f64>,
    /// Size of the disks in MiB [default: 2048]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(16..))]
    size: Option<u64>,
    /// Only the jobs with such names, `*` for anything; may be repeated
    #[arg(long, value_name = "GLOB")]
    jobs: Vec<String>,
    /// Only tmpfs, or only the disk
    #[arg(long, value_name = "WHICH", value_parser = ["tmpfs", "disk"])]
    on: Option<String>,
    /// A directory on the disk to measure [default: the build directory's]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// These servers, the first compared with the others
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', conflicts_with = "all_peers")]
    servers: Vec<String>,
    /// Every set-up of qemu-storage-daemon that is known here
    #[arg(long)]
    all_peers: bool,
    /// A running server beside the others, in the plain jobs; may be repeated
    #[arg(long, value_name = "NAME=SOCKET[,pid=N]", value_parser = Contender::external)]
    peer: Vec<Contender>,
    /// The client polls instead of sleeping
    #[arg(long)]
    poll: bool,
    /// No count of system calls
    #[arg(long)]
    no_syscalls: bool,
    /// The servers' processor
    #[arg(long, value_name = "CPU", default_value_t = 0)]
    server_cpu: usize,
    /// The client's processor
    #[arg(long, value_name = "CPU", default_value_t = 1)]
    client_cpu: usize,
    /// Writes the figures, with every repetition's
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the table
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Writes the plot
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Names the jobs and the servers, and ends
    #[arg(long)]
    list: bool,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        list();
        return ExitCode::SUCCESS;
    }
    if !args.bench {
        println!("Not run: figures need `cargo bench`.");
        return ExitCode::SUCCESS;
    }
    match measure(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    println!("jobs:");
    for job in Job::matching(&[]) {
        println!("  {:20} {}", job.name, job.title);
    }
    println!("servers (* by default):");
    let defaults = Contender::defaults();
    for contender in Contender::all() {
        let mark = if defaults.contains(&contender) { '*' } else { ' ' };
        println!("{mark} {}", contender.name);
    }
}

fn measure(args: &Args) -> Result<(), Box<dyn std::error::Error>> {
    let settings = settings(args)?;
    if settings.contenders.iter().any(|contender| contender.kind == Kind::Snapblk) {
        build_snapblk()?;
    }
    let run = Run::new(settings)?;
    let report = run.report(&mut |row: &Row| {
        let (rate, server) = (row.iops.median / 1e3, &row.server);
        eprintln!("{:12} {:20} {server:30} {rate:8.1} kIOPS", row.ground, row.job);
    })?;
    let markdown = table::markdown(&report);
    println!("\n{markdown}");
    write_all(args, &report, &markdown)?;
    Ok(())
}

fn settings(args: &Args) -> Result<Settings, String> {
    let mut contenders = if args.all_peers {
        Contender::all()
    } else if args.servers.is_empty() {
        Contender::defaults()
    } else {
        let find = |name: &String| {
            Contender::all().into_iter().find(|contender| contender.name == *name).ok_or_else(
                || format!("there is no server {name:?}; `--list` names those that there are"),
            )
        };
        args.servers.iter().map(find).collect::<Result<_, _>>()?
    };
    contenders.extend(args.peer.iter().cloned());
    let jobs = Job::matching(&args.jobs);
    if jobs.is_empty() {
        return Err("no job has such a name; `--list` names those that there are".to_owned());
    }
    let (size, seconds, repeat) = if args.quick { (256, 0.3, 3) } else { (2048, 2.0, 5) };
    let places = match args.on.as_deref() {
        Some("tmpfs") => vec![Place::Memory],
        Some(_) => vec![Place::Disk],
        None => vec![Place::Memory, Place::Disk],
    };
    Ok(Settings {
        jobs,
        contenders,
        places,
        dir: args.dir.clone(),
        scale: Scale {
            disk: args.size.unwrap_or(size) << 20,
            seconds: args.seconds.unwrap_or(seconds),
        },
        repetitions: args.repeat.map_or(repeat, usize::from),
        count_syscalls: !args.no_syscalls,
        server_cpu: args.server_cpu,
        client_cpu: args.client_cpu,
        waiting: if args.poll { Waiting::Poll } else { Waiting::Sleep },
    })
}

/// Builds the program as it is now, unless `$SNAPBLK` names one: a benchmark of yesterday's build
/// helps nobody.
fn build_snapblk() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::var_os("SNAPBLK").is_none() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        // As this program was built, so that the result lies beside it.
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let built = Command::new(cargo)
            .args(["build", "--profile", profile, "--package", "snapblk", "--bin", "snapblk"])
            .status()?;
        if !built.success() {
            return Err("snapblk does not build".into());
        }
    }
    find_snapblk()?;
    Ok(())
}

fn write_all(args: &Args, report: &Report, markdown: &str) -> Result<(), BenchError> {
    let write = |path: &Option<PathBuf>, text: &dyn Fn() -> io::Result<String>| match path {
        None => Ok(()),
        Some(path) => {
            let failed =
                |source| BenchError::Io { step: format!("write {}", path.display()), source };
            text().and_then(|text| std::fs::write(path, text)).map_err(failed)
        }
    };
    write(&args.markdown, &|| Ok(markdown.to_owned()))?;
    write(&args.svg, &|| Ok(plot::svg(report)))?;
    write(&args.json, &|| Ok(serde_json::to_string_pretty(report)?))
}
