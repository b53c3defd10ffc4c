//! `bowline serve --stdio`, as `ssh:host` starts it: one end of a session. The
//! other end is a server of this user that stays while it has jobs, so a job
//! outlives the ssh connection that it was started over, and the next one finds
//! it again.
//!
//! ```text
//! ssh ◄── stdin, stdout ──► this process ◄── Unix socket ──► bowline serve --until-idle
//! ```
//!
//! This process starts the server where none runs, and then only moves bytes: it
//! looks at none of them. While it lives it holds a shared lock on the file
//! `sessions`; the server ends only with that lock to itself, so nobody connects
//! to a server that is about to end. The file `starting` lets one start it at a time.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::fs::FlockOperation;
use rustix::net::RecvFlags;
use rustix::net::sockopt::socket_peercred;

use crate::config::{ServeFlags, session_dirs};
use crate::keeper;

/// What is moved at once.
const BUFFER_BYTES: usize = 128 * 1024;
/// How long the server stays with nobody connected and nothing running.
const UNTIL_IDLE: Duration = Duration::from_secs(60);
/// A log that is longer is begun anew with the next server; the old one is kept once.
const LOG_BYTES_MAX: u64 = 1024 * 1024;
const SOCKET: &str = "socket";

/// Where a user's server for sessions is.
struct Place(PathBuf);

/// A connection to it, and the lock that has it stay.
struct Session {
    stream: UnixStream,
    _sessions: File,
}

/// Joins standard input and output to this user's server, until either ends.
///
/// # Errors
/// Where there is no place for such a server, or it cannot be started. Nothing
/// was read or written then.
pub(crate) fn serve(flags: &ServeFlags, verbose: u8) -> anyhow::Result<ExitCode> {
    let session = match &flags.state_dir {
        Some(named) => Place(std::path::absolute(named)?).join(flags, verbose)?,
        None => join_first(session_dirs()?, flags, verbose)?,
    };
    session.relay()
}

/// The first of the folders that can be used. One in which a server runs is used.
fn join_first(places: Vec<PathBuf>, flags: &ServeFlags, verbose: u8) -> anyhow::Result<Session> {
    let mut failed = None;
    for place in places {
        match Place(place).join(flags, verbose) {
            Ok(session) => return Ok(session),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Err(failed.unwrap_or_else(|| anyhow::anyhow!("there is no folder for it")))
}

impl Place {
    /// Connects to the server, and starts it first where it does not run.
    fn join(&self, flags: &ServeFlags, verbose: u8) -> anyhow::Result<Session> {
        self.make()?;
        let sessions = self.open(keeper::SESSIONS)?;
        // One that is just ending has it to itself.
        lock(&sessions, FlockOperation::LockShared)?;
        // A gate whose keeper has died would take a connection too, and nobody would
        // ever speak on it.
        let stream = match keeper::is_served(&self.0) {
            true => self.connect()?,
            false => self.connect_first(flags, verbose)?,
        };
        Ok(Session {
            stream,
            _sessions: sessions,
        })
    }

    /// Connects where no server was, which this or another process starts now.
    fn connect_first(&self, flags: &ServeFlags, verbose: u8) -> anyhow::Result<UnixStream> {
        let starting = self.open("starting")?;
        lock(&starting, FlockOperation::LockExclusive)?;
        if !keeper::is_served(&self.0) {
            self.start(flags, verbose)?;
        }
        let stream = self.connect()?;
        // Its hello comes when all of it is there; until then nobody else needs to look.
        match rustix::net::recv(&stream, &mut [0; 1], RecvFlags::PEEK)? {
            (_, 0) => bail!(
                "the server ended at once; {} says why",
                self.log().display()
            ),
            _ => Ok(stream),
        }
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    /// The folder; as root others must be able to pass through it, to the gate's part.
    fn make(&self) -> anyhow::Result<()> {
        let root = rustix::process::geteuid().is_root();
        let mut folder = DirBuilder::new();
        folder
            .recursive(true)
            .mode(if root { 0o711 } else { 0o700 });
        let made = folder.create(&self.0);
        made.with_context(|| format!("cannot make the directory {}", self.0.display()))?;
        let found = std::fs::metadata(&self.0)?;
        if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            bail!("{} is not this user's alone", self.0.display());
        }
        Ok(())
    }

    fn open(&self, name: &str) -> anyhow::Result<File> {
        let path = self.0.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.mode(0o600).open(&path);
        file.with_context(|| format!("cannot open {}", path.display()))
    }

    fn connect(&self) -> anyhow::Result<UnixStream> {
        let stream = UnixStream::connect(self.0.join(SOCKET));
        let stream = stream.context("the server that runs cannot be reached")?;
        let peer = socket_peercred(&stream)?.uid;
        if peer != rustix::process::geteuid() {
            bail!("the server there is of another user ({})", peer.as_raw());
        }
        Ok(stream)
    }

    /// Starts the server, and waits until it listens.
    fn start(&self, flags: &ServeFlags, verbose: u8) -> anyhow::Result<()> {
        let path = self.log();
        if std::fs::metadata(&path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
            std::fs::rename(&path, path.with_extension("old"))?;
        }
        let mut log = OpenOptions::new();
        let log = log.create(true).append(true).mode(0o600).open(&path);
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0(
                std::env::args_os()
                    .next()
                    .unwrap_or_else(|| "bowline".into()),
            )
            .args(self.arguments(flags, verbose))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.with_context(|| format!("cannot open {}", path.display()))?);
        let mut server = command.spawn().context("bowline itself")?;
        let stdout = server.stdout.take().context("its stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        if line.starts_with("listening ") {
            return Ok(());
        }
        let status = server.wait()?;
        bail!(
            "the server does not start ({status}); {} says why",
            path.display()
        );
    }

    /// The flags of this session are the server's.
    fn arguments(&self, flags: &ServeFlags, verbose: u8) -> Vec<std::ffi::OsString> {
        let mut listen = std::ffi::OsString::from("unix:");
        listen.push(self.0.join(SOCKET));
        let until_idle = flags.until_idle.unwrap_or(UNTIL_IDLE);
        let mut arguments = vec!["serve".into(), "--listen".into(), listen];
        arguments.extend(["--state-dir".into(), self.0.clone().into_os_string()]);
        let until_idle = format!("{}ms", until_idle.as_millis());
        arguments.extend(["--until-idle".into(), until_idle.into()]);
        let paths = [
            ("--config", &flags.config),
            ("--authorized-keys", &flags.authorized_keys),
            ("--host-key", &flags.host_key),
        ];
        for (flag, path) in paths {
            let given = path.iter().flat_map(|path| [flag.into(), path.into()]);
            arguments.extend(given);
        }
        if let Some(workers) = flags.workers {
            arguments.extend(["--workers".into(), workers.to_string().into()]);
        }
        arguments.extend((0..verbose).map(|_| "-v".into()));
        arguments
    }
}

impl Session {
    /// Moves bytes in both directions until the server closes, or whoever reads
    /// the output is gone.
    fn relay(self) -> anyhow::Result<ExitCode> {
        let input = File::from(rustix::stdio::stdin().as_fd().try_clone_to_owned()?);
        let output = File::from(rustix::stdio::stdout().as_fd().try_clone_to_owned()?);
        let server = self.stream.try_clone()?;
        // It waits for input that may never come; the process ends without it.
        std::thread::Builder::new()
            .name("input".to_owned())
            .spawn(move || {
                // Whatever it was that ended: nothing more comes.
                let _ = copy(&input, &server);
                let _ = server.shutdown(Shutdown::Write);
            })
            .context("a thread")?;
        // Either way the session is over, and its client sees that it is.
        let _ = copy(&self.stream, &output);
        Ok(ExitCode::SUCCESS)
    }
}

fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(buffer.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn lock(file: &File, how: FlockOperation) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| rustix::fs::flock(file, how))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_others_may_write_to_is_no_place() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let place = Place(folder.path().join("a/b"));
        place.make().unwrap();
        assert_eq!(place.0.metadata().unwrap().mode() & 0o022, 0);
        assert!(place.connect().is_err());
        std::fs::set_permissions(&place.0, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = place.make().unwrap_err();
        assert!(
            error.to_string().contains("not this user's alone"),
            "{error}"
        );
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(Place(file.join("below")).make().is_err());
    }

    #[test]
    fn what_is_moved_arrives_whole() {
        let (mut one, other) = UnixStream::pair().unwrap();
        let bytes: Vec<u8> = (0..3 * BUFFER_BYTES + 7).map(|n| n as u8).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                one.write_all(&bytes).unwrap();
                one.shutdown(Shutdown::Write).unwrap();
            });
            let mut arrived = Vec::new();
            copy(&other, &mut arrived).unwrap();
            assert!(arrived == bytes);
        });
    }
}
