//! The benchmark: the same jobs for snapblk and its peers, side by side in one run.
//!
//! `cargo bench -p snapblk-tests` runs it; `docs/benchmark.md` says how to read it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use snapblk_tests::bench::{
    BenchError, Contender, Daemon, Job, Probe, Report, Run, Scale, Settings, document, plot, table,
};
use snapblk_tests::server::{Place, find_snapblk};

/// Measures snapblk beside other vhost-user-blk servers.
#[derive(Parser)]
#[command(name = "cargo bench -p snapblk-tests --", disable_version_flag = true)]
struct Args {
    /// A short run, to see that everything works: small disks, one short repetition
    #[arg(long)]
    quick: bool,
    /// Repetitions of each figure [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    repeat: Option<u16>,
    /// How long a job without a fixed amount of work runs [default: 1]
    #[arg(long)]
    seconds: Option<f64>,
    /// Size of the disks in MiB [default: 1024]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(16..))]
    size: Option<u64>,
    /// Only the jobs and probes with such names, `*` for anything; may be repeated
    #[arg(long, value_name = "GLOB")]
    jobs: Vec<String>,
    /// Only tmpfs, or only the disk
    #[arg(long, value_name = "WHICH", value_parser = ["tmpfs", "disk"])]
    on: Option<String>,
    /// A directory on the disk to measure [default: the build directory's]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Only these servers, the first compared with the others
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    servers: Vec<String>,
    /// How many set-ups of a peer are measured in full, the best at a glance; 0 for all
    #[arg(long, value_name = "N", default_value_t = 2)]
    finalists: usize,
    /// A qemu-storage-daemon; may be repeated [default: those at hand]
    #[arg(long, value_name = "NAME=PATH", value_parser = Daemon::named)]
    qsd: Vec<Daemon>,
    /// A running server beside the others, in the plain jobs; may be repeated
    #[arg(long, value_name = "NAME=SOCKET[,pid=N]", value_parser = Contender::external)]
    peer: Vec<Contender>,
    /// No count of system calls
    #[arg(long)]
    no_syscalls: bool,
    /// The servers' processor
    #[arg(long, value_name = "CPU", default_value_t = 0)]
    server_cpu: usize,
    /// The client's processor
    #[arg(long, value_name = "CPU", default_value_t = 1)]
    client_cpu: usize,
    /// Keeps each part here as it is done, and does not measure again what is there
    #[arg(long, value_name = "DIR")]
    parts: Option<PathBuf>,
    /// Measures nothing: the parts are all there is
    #[arg(long, requires = "parts")]
    only_parts: bool,
    /// Writes the report with targets and plots: Markdown, and pictures beside it
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
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
    if !args.list && !args.bench {
        println!("Not run: figures need `cargo bench`.");
        return ExitCode::SUCCESS;
    }
    // Cargo runs it in the package's directory; users name files from the project's.
    let root = std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let done = match root {
        Err(error) => Err(format!("cannot enter the project's directory: {error}").into()),
        Ok(()) if args.list => list(&args),
        Ok(()) => measure(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

type Done = Result<(), Box<dyn std::error::Error>>;

fn list(args: &Args) -> Done {
    println!("jobs:");
    for job in Job::matching(&[]) {
        println!("  {:24} {}", job.name, job.title);
    }
    for probe in Probe::matching(&[]) {
        println!("  {:24} {}", probe.name, probe.title);
    }
    println!("servers:");
    for contender in contenders(args)? {
        println!("  {}", contender.name);
    }
    Ok(())
}

fn measure(args: &Args) -> Done {
    let settings = settings(args)?;
    if !args.only_parts {
        build_snapblk()?;
    }
    let say = |line: &str| eprintln!("{line}");
    let (report, failures) = Run::new(settings, &say)?.report()?;
    let markdown = table::markdown(&report);
    println!("\n{}\n{markdown}", document::judged(&report));
    write_all(args, &report, &markdown)?;
    match failures.len() {
        0 => Ok(()),
        failed => Err(format!("{failed} measurements of snapblk failed; see above").into()),
    }
}

fn contenders(args: &Args) -> Result<Vec<Contender>, Box<dyn std::error::Error>> {
    let daemons = if args.qsd.is_empty() { Daemon::at_hand()? } else { args.qsd.clone() };
    if daemons.is_empty() {
        eprintln!(
            "no qemu-storage-daemon is at hand: `images/qemu-storage-daemon --version` fetches \
             Debian's, or name one with --qsd"
        );
    }
    let all = Contender::all(&daemons);
    let mut contenders = Vec::new();
    for name in &args.servers {
        let found = all.iter().find(|contender| contender.name == *name);
        contenders.push(found.cloned().ok_or_else(|| {
            format!("there is no server {name:?}; `--list` names those that there are")
        })?);
    }
    if args.servers.is_empty() {
        contenders = all;
    }
    contenders.extend(args.peer.iter().cloned());
    Ok(contenders)
}

fn settings(args: &Args) -> Result<Settings, Box<dyn std::error::Error>> {
    let (jobs, probes) = (Job::matching(&args.jobs), Probe::matching(&args.jobs));
    if jobs.is_empty() && probes.is_empty() {
        return Err("no job has such a name; `--list` names those that there are".into());
    }
    let (size, seconds, repeat) = if args.quick { (128, 0.1, 1) } else { (1024, 1.0, 5) };
    let places = match args.on.as_deref() {
        Some("tmpfs") => vec![Place::Memory],
        Some(_) => vec![Place::Disk],
        None => vec![Place::Memory, Place::Disk],
    };
    Ok(Settings {
        jobs,
        probes,
        contenders: contenders(args)?,
        places,
        dir: args.dir.clone(),
        scale: Scale {
            disk: args.size.unwrap_or(size) << 20,
            seconds: args.seconds.unwrap_or(seconds),
        },
        repetitions: args.repeat.map_or(repeat, usize::from),
        finalists: args.finalists,
        count_syscalls: !args.no_syscalls,
        server_cpu: args.server_cpu,
        client_cpu: args.client_cpu,
        parts: args.parts.clone(),
        only_parts: args.only_parts,
    })
}

/// Builds the present program, unless `$SNAPBLK` names one: the benchmark must not use an old
/// build.
fn build_snapblk() -> Done {
    if std::env::var_os("SNAPBLK").is_none() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        // In this program's profile, so that the result is beside it.
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
    if let Some(path) = &args.markdown {
        write(path, markdown)?;
    }
    if let Some(path) = &args.svg {
        write(path, &plot::svg(report))?;
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(report).map_err(io::Error::from)?;
        write(path, &text)?;
    }
    if let Some(path) = &args.report {
        for (path, text) in document::files(report, path) {
            write(&path, &text)?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), BenchError> {
    let failed = |source| BenchError::Io { step: format!("write {}", path.display()), source };
    std::fs::write(path, text).map_err(failed)
}
