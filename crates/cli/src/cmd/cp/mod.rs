//! `bowline cp`: files and folders to, from and between machines.
//!
//! A copy is a job: the server starts the file worker ([`crate::copy`]) as the target user, and the other
//! worker runs here. Where the line breaks, another attempt goes on with what is there.

mod attempt;
mod ledger;
mod line;
mod notation;
mod progress;
mod remote;

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bowline_proto::copy::glob::{self, Excludes};
use bowline_proto::copy::name::shown;
use bowline_proto::copy::{Fsync, Options, PATTERN_BYTES_MAX, PATTERNS_MAX, Permit};
use serde::Serialize;

use self::attempt::{Attempt, Failed};
use self::ledger::{Ledger, Manner, Totals};
use self::notation::Place;
use self::progress::Progress;
use super::dial::{ConnectFlags, Dialer};
use crate::copy::receiver::Destination;
use crate::copy::sender::{Source, expand_home, permit};
use crate::copy::{WorkerError, worker};
use crate::stderr::tell;
use crate::{duration, exit};

/// Some files were copied and some not: rsync's status for it.
const PARTIAL: u8 = 23;
/// Attempts where the line breaks before a worker has begun.
const ATTEMPTS_MAX: u32 = 6;
/// The pause before the second attempt; it doubles with each.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);

/// The status where nobody reads the copy on stdout any more: that of a program that SIGPIPE has ended.
const UNREAD: u8 = 141;

/// When what was written has to be on the disk
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum FsyncFlag {
    /// When the system there thinks fit
    #[default]
    None,
    /// A file before it takes its name
    File,
    /// And its folder
    All,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CpFlags {
    #[arg(
        help = "What to copy, and last where to: a path, [user@]host:path, [user@]host:port:path, or - for stdin and stdout",
        value_name = "PLACE",
        num_args = 2..,
        required = true
    )]
    places: Vec<OsString>,
    /// Keep times, owners where allowed, special modes and hard links too
    #[arg(long, short)]
    archive: bool,
    /// Remove from the destination's folders what the source's do not have
    #[arg(long)]
    delete: bool,
    /// Leave out what matches, as rsync does (may be given again)
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<OsString>,
    /// Only say what would be done
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Compare contents, whatever sizes and times say
    #[arg(long, short)]
    checksum: bool,
    /// When what was written has to be on the disk
    #[arg(long, value_name = "WHEN", default_value = "none")]
    fsync: FsyncFlag,
    /// Nothing: folders are always copied whole
    #[arg(short = 'r', hide = true)]
    recursive: bool,
    /// Write a record of each entry and a summary as JSON lines on stdout
    #[arg(long)]
    json: bool,
    /// Try so long to go on when the connection breaks
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "10m")]
    retry_for: Duration,
    #[command(flatten)]
    connect: ConnectFlags,
}

/// The last line of `--json`.
#[derive(Serialize)]
struct Summary {
    outcome: &'static str,
    #[serde(flatten)]
    totals: Totals,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// Sources on the same machine, one behind the other in the arguments.
struct Group {
    /// The machine; none is this one.
    target: Option<String>,
    paths: Vec<Vec<u8>>,
    stream: bool,
}

/// # Errors
/// Where the arguments make no sense, before anything was copied.
pub(crate) async fn cp(flags: CpFlags, quiet: bool) -> anyhow::Result<ExitCode> {
    let mut places = Vec::new();
    for argument in &flags.places {
        let place = notation::parse(argument);
        places.push(place.with_context(|| format!("{argument:?}"))?);
    }
    let to = places.pop().context("there is no destination")?;
    let groups = grouped(places);
    check(&flags, &groups, &to)?;
    worker::raise_descriptors();
    let manner = Manner {
        json: flags.json,
        names: flags.dry_run && !flags.json,
        quiet,
    };
    let progress = Progress::new(!quiet && !flags.json && !flags.dry_run);
    let ledger = Arc::new(Ledger::new(manner, progress));
    let mut failure = None;
    let several = groups.iter().map(|group| group.paths.len()).sum::<usize>() > 1;
    for group in &groups {
        let options = options(&flags, group, &to, several)?;
        ledger.begin_group();
        if let Err(failed) = copy(&flags, group, &to, &options, &ledger).await? {
            failure = Some((group, failed));
            break;
        }
    }
    ledger.end();
    if let Some(error) = ledger.unwritten() {
        return Err(error).context("stdout: not all records could be written");
    }
    if let Some((_, Failed::Here(WorkerError::Unread))) = &failure {
        return Ok(ExitCode::from(UNREAD));
    }
    let failure = failure.map(|(group, failed)| sentence(group, &to, &failed));
    Ok(tell(&flags, quiet, ledger.totals(), failure))
}

fn grouped(places: Vec<Place>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for place in places {
        let (target, path, stream) = match place {
            Place::Here(path) => (None, path, false),
            Place::There { target, path } => (Some(target), path, false),
            Place::Stream => (None, b"-".to_vec(), true),
        };
        match groups.last_mut() {
            Some(group) if group.target == target && !group.stream && !stream => {
                group.paths.push(path)
            }
            _ => groups.push(Group {
                target,
                paths: vec![path],
                stream,
            }),
        }
    }
    groups
}

fn check(flags: &CpFlags, groups: &[Group], to: &Place) -> anyhow::Result<()> {
    let stream = groups.iter().any(|group| group.stream);
    let count: usize = groups.iter().map(|group| group.paths.len()).sum();
    if (stream || *to == Place::Stream) && count > 1 {
        bail!("stdin and stdout are for one file");
    }
    if *to == Place::Stream && (flags.json || flags.dry_run || flags.delete) {
        bail!("stdout is for the file, so --json, --dry-run and --delete make no sense");
    }
    if flags.delete && groups.len() > 1 {
        bail!("--delete needs all sources on one machine: each would remove the others' files");
    }
    if let Some(name) = twice(groups) {
        bail!("two of the sources are called {name}; one would take the other's place");
    }
    if count > PATTERNS_MAX || flags.exclude.len() > PATTERNS_MAX {
        bail!("at most {PATTERNS_MAX} sources and {PATTERNS_MAX} patterns");
    }
    let long = |text: &OsString| text.as_bytes().len() > PATTERN_BYTES_MAX;
    if flags.exclude.iter().any(long) {
        bail!("a pattern of --exclude has at most {PATTERN_BYTES_MAX} bytes");
    }
    Ok(())
}

/// A name that two sources would have at the destination, as far as that can be told from here.
fn twice(groups: &[Group]) -> Option<String> {
    let mut names = HashSet::new();
    for group in groups.iter().filter(|group| !group.stream) {
        for path in &group.paths {
            let name = match permit(path, group.target.is_some()) {
                Permit::Name(pattern) if !glob::is_pattern(&pattern) => glob::literal(&pattern),
                _ => continue,
            };
            if !names.insert(name.clone()) {
                return Some(shown(&name));
            }
        }
    }
    None
}

fn options(flags: &CpFlags, group: &Group, to: &Place, several: bool) -> anyhow::Result<Options> {
    let permits = group
        .paths
        .iter()
        .map(|path| match (&group.target, group.stream) {
            (_, true) => Permit::Name(b"stdin".to_vec()),
            (Some(_), _) => permit(&expand_home(path), true),
            (None, _) => permit(path, false),
        });
    let slash = match to {
        Place::Here(path) | Place::There { path, .. } => path.ends_with(b"/"),
        Place::Stream => false,
    };
    let patterns = flags
        .exclude
        .iter()
        .map(|pattern| pattern.as_bytes().to_vec());
    Ok(Options {
        archive: flags.archive,
        checksum: flags.checksum,
        dry_run: flags.dry_run,
        delete: flags.delete,
        into_folder: several || slash,
        stream: group.stream || *to == Place::Stream,
        fsync: match flags.fsync {
            FsyncFlag::None => Fsync::None,
            FsyncFlag::File => Fsync::Files,
            FsyncFlag::All => Fsync::All,
        },
        origin: origin(group),
        excludes: Excludes::new(patterns.collect()),
        permits: permits.collect(),
    })
}

/// A number that is the same for each attempt at copying these sources, also tomorrow's.
fn origin(group: &Group) -> u64 {
    let mut hasher = blake3::Hasher::new();
    let folder = match group.target {
        None => std::env::current_dir().unwrap_or_default(),
        Some(_) => PathBuf::new(),
    };
    let target = group.target.iter().map(String::as_bytes);
    let parts = target.chain([folder.as_os_str().as_bytes()]);
    for part in parts.chain(group.paths.iter().map(Vec::as_slice)) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let hash = hasher.finalize();
    let first = hash.as_bytes().first_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(first)
}

/// Copies one group, over as many attempts as it takes. The inner error is the copy's.
async fn copy(
    flags: &CpFlags,
    group: &Group,
    to: &Place,
    options: &Options,
    ledger: &Arc<Ledger>,
) -> anyhow::Result<Result<(), Failed>> {
    let dialer = |target: &String| Dialer::new(target, None, &flags.connect);
    let mut from_dialer = group.target.as_ref().map(dialer).transpose()?;
    let mut to_dialer = match to {
        Place::There { target, .. } => Some(dialer(target)?),
        _ => None,
    };
    let (mut pause, mut begun, mut attempts) = (RETRY_PAUSE, false, 0);
    let (mut moved, mut since) = (ledger.totals(), Instant::now());
    let copied = loop {
        ledger.begin();
        let attempt = Attempt { options, ledger };
        let result = match (&mut from_dialer, &mut to_dialer, to) {
            (None, None, _) => attempt.local(sources(group)?, destination(to)?),
            (None, Some(dialer), Place::There { path, .. }) => {
                attempt.send(sources(group)?, dialer, path).await
            }
            (Some(dialer), None, _) => {
                attempt
                    .receive(dialer, &group.paths, destination(to)?)
                    .await
            }
            (Some(from), Some(dialer), Place::There { path, .. }) => {
                attempt.relay((from, &group.paths), (dialer, path)).await
            }
            (_, Some(_), _) => bail!("a destination without a machine"),
        };
        let Err(failed) = result else { break Ok(()) };
        let now = ledger.totals();
        if now != moved {
            (moved, since, pause) = (now, Instant::now(), RETRY_PAUSE);
        }
        begun |= failed.had_begun();
        attempts += 1;
        let late = if begun {
            since.elapsed() >= flags.retry_for
        } else {
            attempts == ATTEMPTS_MAX
        };
        if late || options.stream || !failed.is_passing(begun) {
            break Err(failed);
        }
        tracing::info!(?failed, "the line broke; trying again");
        tokio::time::sleep(pause).await;
        pause = pause.saturating_mul(2).min(RETRY_PAUSE_MAX);
    };
    from_dialer
        .into_iter()
        .chain(to_dialer)
        .for_each(Dialer::finish);
    Ok(copied)
}

fn sources(group: &Group) -> anyhow::Result<Vec<Source>> {
    if group.stream {
        let stdin = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3);
        return Ok(vec![Source::Stream(stdin.context("stdin")?)]);
    }
    let paths = group.paths.iter().enumerate();
    Ok(paths
        .map(|(index, path)| Source::Path(index as u64, path.clone()))
        .collect())
}

fn destination(to: &Place) -> anyhow::Result<Destination> {
    Ok(match to {
        Place::Here(path) | Place::There { path, .. } => Destination::Path(path.clone()),
        Place::Stream => {
            let stdout = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3);
            Destination::Stream(stdout.context("stdout")?)
        }
    })
}

/// What is said of a copy that failed as a whole: a sentence with its code, and the status.
fn sentence(group: &Group, to: &Place, failed: &Failed) -> (String, u8) {
    let to_target = match to {
        Place::There { target, .. } => Some(target),
        _ => None,
    };
    let host = group
        .target
        .as_ref()
        .or(to_target)
        .map_or("", String::as_str);
    match failed {
        Failed::Here(error) => (format!("{} [copy_failed]", exit::chain(error)), 1),
        Failed::Killed => (
            format!("{host}: the file worker there was killed [copy_failed]"),
            1,
        ),
        Failed::There(complaint) => (format!("{host}: {complaint} [copy_failed]"), 1),
        Failed::NoWorker(why) => (format!("{host}: {why} [no_file_worker]"), u8::MAX),
        Failed::Line(error, _) => {
            let hint = exit::hint(error.code(), host);
            let hint = hint
                .map(|hint| format!("\n  hint: {hint}"))
                .unwrap_or_default();
            (
                format!("{host}: {} [{}]{hint}", exit::chain(error), error.code()),
                u8::MAX,
            )
        }
    }
}

fn tell(flags: &CpFlags, quiet: bool, totals: Totals, failure: Option<(String, u8)>) -> ExitCode {
    // A file that changed while it was read has failed, and has been copied all the same.
    let some = totals.copied + totals.unchanged + totals.removed + totals.bytes > 0;
    let (outcome, status) = match (&failure, totals.failed) {
        (Some((_, status)), _) => ("failed", *status),
        (None, 0) => ("complete", 0),
        (None, _) if some => ("partial", PARTIAL),
        (None, _) => ("failed", 1),
    };
    if flags.json {
        let summary = Summary {
            outcome,
            totals,
            message: failure.as_ref().map(|(text, _)| text.clone()),
        };
        if let Ok(line) = serde_json::to_string(&summary) {
            let _ = exit::print(&format!("{line}\n"));
        }
    }
    if let Some((text, _)) = failure.filter(|_| !quiet) {
        tell!("bowline: {text}");
    }
    ExitCode::from(status)
}
