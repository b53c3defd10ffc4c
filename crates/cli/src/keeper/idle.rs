//! A server that ends by itself when nobody needs it: `serve --until-idle`, as
//! `serve --stdio` starts it.
//!
//! It is needed while there is a job that is not released, a connection that was
//! let in, or a session that holds a lock on the file [`SESSIONS`]. With that
//! lock to itself until its process is gone, it ends unnoticed: a session that
//! comes then waits for the lock and finds no server.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use super::shutdown::Phase;
use super::{Keeper, Timer};

/// The file that sessions lock, in the state directory.
pub(crate) const SESSIONS: &str = "sessions";
/// A session that is there but says nothing is looked for again after this time.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

impl Keeper {
    /// Looks whether anybody needs this server, after whatever has happened.
    pub(super) fn check_idle(&mut self) {
        let Some(until_idle_ms) = self.config.until_idle_ms else {
            return;
        };
        if self.is_needed() {
            return self.timers.cancel(Timer::Idle);
        }
        let at = Instant::now() + Duration::from_millis(until_idle_ms);
        self.timers.set_once(Timer::Idle, at);
    }

    fn is_needed(&self) -> bool {
        self.phase != Phase::Serving
            || self.upgrade.is_some()
            || !self.jobs.by_serial.is_empty()
            || !self.grants.is_empty()
    }

    /// Nobody has needed it for long enough.
    pub(super) fn idle_over(&mut self) {
        let path = self.config.state_dir.join(SESSIONS);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        match options.mode(0o600).open(path).and_then(lock_alone) {
            Ok(sessions) => self.sessions = Some(sessions),
            // The folder is gone: nobody can find this server any more.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return self.timers.set(Timer::Idle, Instant::now() + LOOK_AGAIN),
        }
        self.drain();
    }
}

fn lock_alone(sessions: File) -> io::Result<File> {
    rustix::fs::flock(&sessions, FlockOperation::NonBlockingLockExclusive)?;
    Ok(sessions)
}
