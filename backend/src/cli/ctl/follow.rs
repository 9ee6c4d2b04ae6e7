//! Following a server: its events, and its jobs until they end.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use snapblk_qmp::client::{Client, ClientError};
use snapblk_store::control::job::{JobInfo, JobStatus};

use super::CtlError;

/// The interval between queries of progress, which has no event of its own.
const REFRESH: Duration = Duration::from_millis(200);

/// Prints events until the server has said that it ends.
///
/// # Errors
/// The connection ended without that: the server was killed, or events were lost.
pub(super) fn watch(
    client: &mut Client,
    json: bool,
    bars: bool,
    out: &mut impl Write,
) -> Result<(), CtlError> {
    let mut bars = bars.then(Bars::default);
    let mut ends = false;
    loop {
        let patience = bars.is_some().then_some(REFRESH);
        let event = match client.event(patience) {
            Ok(event) => event,
            Err(ClientError::HungUp) if ends => return Ok(()),
            Err(ClientError::HungUp) => return Err(CtlError::Lost),
            Err(error) => return Err(error.into()),
        };
        if let Some(event) = event {
            ends |= event["event"] == "SHUTDOWN";
            let line = if json { event.to_string() } else { sentence(&event) };
            match &bars {
                // Above the progress bars, which are drawn on the same terminal.
                Some(bars) => bars.group.suspend(|| writeln!(out, "{line}")),
                None => writeln!(out, "{line}"),
            }?;
            out.flush()?;
        }
        if let Some(shown) = &mut bars {
            match client.ask::<Vec<JobInfo>>("query-jobs", json!({})) {
                Ok(jobs) => shown.show(&jobs),
                // Events that came before are printed first.
                Err(ClientError::HungUp) => bars = None,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Waits for the end of a job, and with `complete` completes it when it is ready; any end but success
/// is an error, and so is a state in which it waits for a command.
pub(super) fn wait(
    client: &mut Client,
    id: &str,
    complete: bool,
    json: bool,
    out: &mut impl Write,
) -> Result<(), CtlError> {
    let mut bars = (!json && std::io::stderr().is_terminal()).then(Bars::default);
    let failed = |what: String| Err(CtlError::Job { id: id.to_owned(), what });
    let (mut seen, mut paused) = (false, false);
    loop {
        // Queried first: a job that ended before this client connected has no more events.
        let jobs: Vec<JobInfo> = client.ask("query-jobs", json!({}))?;
        let job = jobs.iter().find(|job| job.id == id);
        seen |= job.is_some();
        if let Some(bars) = &mut bars {
            bars.show(job.map(std::slice::from_ref).unwrap_or_default());
        }
        let mut patience = REFRESH;
        while let Some(event) = client.event(Some(patience))? {
            if let Some(end) = end_of(&event, id) {
                drop(bars);
                return ended(id, end, &event, json, out);
            }
            // Handles all events that have arrived, before the next query.
            patience = Duration::from_millis(1);
        }
        let Some(job) = job else {
            return failed(match seen {
                true => "is gone, and nobody said how it ended".to_owned(),
                false => "is not there: it is over, or was never begun".to_owned(),
            });
        };
        let is_paused = match awaited(job) {
            Awaited::Work => false,
            Awaited::Resume => true,
            Awaited::Complete if complete => {
                client.call("job-complete", json!({ "id": id }))?;
                false
            }
            Awaited::Complete => {
                return failed(format!(
                    "is ready and waits for `job-complete {id}`, which `wait {id} --complete` sends"
                ));
            }
            Awaited::Finalize => {
                return failed(format!("is pending and waits for `job-finalize {id}`"));
            }
            Awaited::Nothing => {
                let end = job.error.clone().map_or(End::Completed, End::Failed);
                drop(bars);
                return ended(id, end, &json!({}), json, out);
            }
        };
        if is_paused && !paused {
            let say = || eprintln!("job {id} is paused: `job-resume {id}` lets it go on");
            bars.as_ref().map_or_else(say, |bars| bars.group.suspend(say));
        }
        paused = is_paused;
    }
}

/// What a job needs before it ends.
#[derive(Debug, PartialEq)]
enum Awaited {
    /// Its own work.
    Work,
    /// `job-resume`
    Resume,
    /// `job-complete`
    Complete,
    /// `job-finalize`
    Finalize,
    /// It is over.
    Nothing,
}

fn awaited(job: &JobInfo) -> Awaited {
    match job.status {
        JobStatus::Ready | JobStatus::Standby if job.completing != Some(true) => Awaited::Complete,
        JobStatus::Paused | JobStatus::Standby => Awaited::Resume,
        JobStatus::Pending => Awaited::Finalize,
        JobStatus::Concluded | JobStatus::Null => Awaited::Nothing,
        JobStatus::Created
        | JobStatus::Running
        | JobStatus::Ready
        | JobStatus::Waiting
        | JobStatus::Aborting => Awaited::Work,
    }
}

/// How a job ended.
#[derive(Debug, PartialEq)]
enum End {
    Completed,
    Cancelled,
    Failed(String),
}

/// The end of the job `id`, if `event` is one.
fn end_of(event: &Value, id: &str) -> Option<End> {
    let data = &event["data"];
    if data["device"] != id {
        return None;
    }
    match event["event"].as_str()? {
        "BLOCK_JOB_CANCELLED" => Some(End::Cancelled),
        "BLOCK_JOB_COMPLETED" => Some(match data["error"].as_str() {
            Some(error) => End::Failed(error.to_owned()),
            None => End::Completed,
        }),
        _ => None,
    }
}

fn ended(
    id: &str,
    end: End,
    event: &Value,
    json: bool,
    out: &mut impl Write,
) -> Result<(), CtlError> {
    let failed = |what| Err(CtlError::Job { id: id.to_owned(), what });
    match end {
        End::Completed if json => Ok(writeln!(out, "{event}")?),
        End::Completed => Ok(writeln!(out, "job {id} is done")?),
        End::Cancelled => failed("was cancelled".to_owned()),
        End::Failed(error) => failed(format!("failed: {error}")),
    }
}

/// An event as a line: time of day (UTC), name, data.
fn sentence(event: &Value) -> String {
    let seconds = event["timestamp"]["seconds"].as_i64().unwrap_or(0).rem_euclid(86_400);
    let millis = event["timestamp"]["microseconds"].as_i64().unwrap_or(0) / 1000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let mut line = format!("{hours:02}:{minutes:02}:{:02}.{millis:03}Z ", seconds % 60);
    line.push_str(event["event"].as_str().unwrap_or("?"));
    for (key, value) in event["data"].as_object().into_iter().flatten() {
        match value.as_str() {
            Some(text) if text.contains(' ') => line.push_str(&format!(" {key}={text:?}")),
            Some(text) => line.push_str(&format!(" {key}={text}")),
            None => line.push_str(&format!(" {key}={value}")),
        }
    }
    line
}

/// A bar for each job that runs.
#[derive(Default)]
struct Bars {
    group: MultiProgress,
    by_job: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn show(&mut self, jobs: &[JobInfo]) {
        self.by_job.retain(|id, bar| {
            let stays = jobs.iter().any(|job| job.id == *id);
            if !stays {
                bar.finish_and_clear();
            }
            stays
        });
        for job in jobs {
            let bar = self.by_job.entry(job.id.clone()).or_insert_with(|| {
                let bar = self.group.add(ProgressBar::new(job.total_progress));
                bar.set_style(style());
                bar.set_prefix(job.id.clone());
                bar
            });
            bar.set_length(job.total_progress);
            bar.set_position(job.current_progress);
            bar.set_message(job.status.as_str());
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.show(&[]);
    }
}

fn style() -> ProgressStyle {
    // The template is fixed; if it did not parse, indicatif's own would do.
    ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3}% {msg}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use snapblk_store::control::job::JobType;

    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = json!({"timestamp": {"seconds": 1_267_061_043, "microseconds": 959_568},
            "event": "SNAPSHOT_OVERFLOW", "data": {"device": "snap0", "reason": "store is full"}});
        assert_eq!(
            sentence(&event),
            "01:24:03.959Z SNAPSHOT_OVERFLOW device=snap0 reason=\"store is full\""
        );
    }

    #[test]
    fn a_job_waits_for_its_work_or_for_a_command() {
        use JobStatus as S;
        let of = |status, completing| {
            awaited(&JobInfo {
                id: "j".into(),
                kind: JobType::Commit,
                status,
                current_progress: 0,
                total_progress: 0,
                error: None,
                completing,
            })
        };
        for status in [S::Created, S::Running, S::Waiting, S::Aborting] {
            assert_eq!(of(status, None), Awaited::Work);
        }
        for status in [S::Ready, S::Standby] {
            assert_eq!(of(status, None), Awaited::Complete);
        }
        assert_eq!(of(S::Ready, Some(true)), Awaited::Work, "it stays ready while it completes");
        assert_eq!(of(S::Standby, Some(true)), Awaited::Resume);
        assert_eq!(of(S::Paused, None), Awaited::Resume);
        assert_eq!(of(S::Pending, None), Awaited::Finalize);
        assert_eq!(of(S::Pending, Some(true)), Awaited::Finalize);
        assert_eq!(of(S::Concluded, None), Awaited::Nothing);
    }

    #[test]
    fn a_job_ends_with_its_own_event() {
        let event = |name: &str, data| json!({"event": name, "data": data});
        let of = |event| end_of(&event, "j");
        assert_eq!(of(event("BLOCK_JOB_COMPLETED", json!({"device": "j"}))), Some(End::Completed));
        assert_eq!(of(event("BLOCK_JOB_COMPLETED", json!({"device": "k"}))), None);
        assert_eq!(of(event("BLOCK_JOB_CANCELLED", json!({"device": "j"}))), Some(End::Cancelled));
        assert_eq!(
            of(event("BLOCK_JOB_COMPLETED", json!({"device": "j", "error": "x"}))),
            Some(End::Failed("x".to_owned()))
        );
        assert_eq!(of(event("BLOCK_JOB_READY", json!({"device": "j"}))), None);
    }
}
