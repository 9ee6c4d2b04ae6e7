//! `snapblk serve`, carried out.

use crate::cli::CliError;
use crate::server::{self, DiskArgs, ServeArgs};

use super::{Disk, Serve, limit};

impl Serve {
    /// Serves the disks until a signal or the monitor ends the process.
    ///
    /// # Errors
    /// The reason why they cannot be served.
    pub fn run(&self) -> Result<(), CliError> {
        let serve = self.with_file()?;
        let args = ServeArgs {
            monitor: serve.monitor.clone(),
            table_memory: serve.table_memory,
            table_dir: serve.table_dir.clone(),
            flush_interval: serve.flush_interval.unwrap_or_default(),
            state: serve.state.clone(),
            force: serve.force,
            disks: serve.disks.iter().map(disk_args).collect::<Result<_, _>>()?,
        };
        limit::raise();
        let exported = args.disks.iter().filter(|disk| disk.socket.is_some());
        limit::warn_if_too_low(exported.map(DiskArgs::queues));
        server::serve(&args).map_err(|error| CliError::Refused(error.to_string()))
    }
}

fn disk_args(disk: &Disk) -> Result<DiskArgs, CliError> {
    let source = disk.source.resolved();
    let source = source.map_err(|what| CliError::Usage(format!("disk '{}' {what}", disk.name)))?;
    Ok(DiskArgs {
        name: disk.name.clone(),
        source,
        socket: disk.socket.clone(),
        num_queues: disk.num_queues,
        poll: disk.poll,
        on_full: disk.on_full.unwrap_or_default(),
        guest_agent: disk.guest_agent.clone(),
    })
}
