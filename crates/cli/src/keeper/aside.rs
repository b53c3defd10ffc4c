//! Doing something that may hang in a process of its own, for a bounded time.
//!
//! The keeper is one thread. Where it opens a file in a user's home, that home
//! may lie on a file system whose server is dead or is that very user (FUSE),
//! and no signal but SIGKILL ends such a call. So a copy of the keeper does it
//! and hands the bytes back through a pipe; one that does not is killed.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::unistd::{ForkResult, fork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions};

/// How long a killed copy is waited for before it is left to the keeper's
/// sweeping of orphans: one that the kernel holds may take its time.
const KILLED_WAIT: Duration = Duration::from_millis(100);

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum AsideError {
    /// No process, no pipe, or it broke.
    #[error("a process that reads a file cannot be used")]
    Process(#[source] io::Error),
    /// It took too long and was killed.
    #[error("it takes longer than {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// It died, or said more than it may.
    #[error("the process that reads a file failed")]
    Failed,
}

/// Runs `work` in a copy of this process and gives what it returns, which must
/// be at most `bytes_max` bytes. The copy ends with `work`: nothing else of this
/// program runs in it, and no destructor of the caller's values.
///
/// # Errors
/// [`AsideError`].
pub(super) fn aside(
    within: Duration,
    bytes_max: usize,
    work: impl FnOnce() -> Vec<u8>,
) -> Result<Vec<u8>, AsideError> {
    let failed = |error: rustix::io::Errno| AsideError::Process(error.into());
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
    // SAFETY: the keeper has one thread, so the copy inherits no lock that another
    // thread holds; in tests with threads the allocator of libc is made whole in
    // the child by libc itself. The child calls `work` and ends by _exit.
    let child = match unsafe { fork() } {
        Err(errno) => return Err(AsideError::Process(errno.into())),
        Ok(ForkResult::Parent { child }) => child,
        Ok(ForkResult::Child) => {
            drop(reader);
            let done = catch_unwind(AssertUnwindSafe(work));
            let status = done.map_or(1, |bytes| i32::from(write_all(&writer, &bytes).is_err()));
            // SAFETY: _exit(2) ends the process and returns to nobody.
            unsafe { libc::_exit(status) }
        }
    };
    drop(writer);
    let child = Pid::from_raw(child.as_raw()).ok_or(AsideError::Failed)?;
    let read = read_within(&reader, within, bytes_max);
    if read.is_err() {
        let _ = rustix::process::kill_process(child, Signal::KILL);
    }
    let ended_well = wait(child, read.is_ok());
    match read {
        Ok(_) if !ended_well => Err(AsideError::Failed),
        read => read,
    }
}

fn write_all(pipe: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(pipe, bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads to the end, as long as the time lasts.
fn read_within(pipe: &OwnedFd, within: Duration, bytes_max: usize) -> Result<Vec<u8>, AsideError> {
    let deadline = Instant::now() + within;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| AsideError::Failed)?;
        let mut waiting = [PollFd::new(pipe, PollFlags::IN)];
        match poll(&mut waiting, Some(&timeout)) {
            Ok(0) => return Err(AsideError::TimedOut(within)),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(AsideError::Process(error.into())),
        }
        match rustix::io::read(pipe.as_fd(), &mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(AsideError::Process(error.into())),
        }
        if bytes.len() > bytes_max {
            return Err(AsideError::Failed);
        }
    }
}

/// Reaps the child; says whether it ended with status 0.
fn wait(child: Pid, closed_its_pipe: bool) -> bool {
    if !closed_its_pipe {
        // Killed. Its end shows on a pidfd, which can be waited for with a limit.
        let flags = rustix::process::PidfdFlags::empty();
        if let Ok(pidfd) = rustix::process::pidfd_open(child, flags) {
            let mut waiting = [PollFd::new(&pidfd, PollFlags::IN)];
            let timeout = Timespec::try_from(KILLED_WAIT).ok();
            let _ = poll(&mut waiting, timeout.as_ref());
        }
    }
    let options = match closed_its_pipe {
        true => WaitOptions::empty(),
        false => WaitOptions::NOHANG,
    };
    loop {
        match rustix::process::waitpid(Some(child), options) {
            Ok(Some((_, status))) => return status.exit_status() == Some(0),
            Ok(None) => return false,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn what_is_returned_comes_back() {
        assert_eq!(aside(LONG, 10, Vec::new).unwrap(), b"");
        assert_eq!(
            aside(LONG, 10, || b"0123456789".to_vec()).unwrap(),
            b"0123456789"
        );
        let much = aside(LONG, 1 << 22, || vec![7; 1 << 22]).unwrap();
        assert_eq!(much.len(), 1 << 22);
        // It is another process, and this one is as it was.
        let pid = aside(LONG, 10, || std::process::id().to_le_bytes().to_vec()).unwrap();
        assert_ne!(pid, std::process::id().to_le_bytes());
        let path = format!("/proc/{}", u32::from_le_bytes(pid.try_into().unwrap()));
        assert!(!std::path::Path::new(&path).exists(), "it was not reaped");
    }

    #[test]
    fn who_hangs_is_killed() {
        // The child tells its pid, then waits for what never comes.
        let (told, tell) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let (never, _held) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let started = Instant::now();
        // Long enough for a child to be heard of on a machine that is busy.
        let hung = aside(Duration::from_secs(1), 10, || {
            let _ = rustix::io::write(&tell, &std::process::id().to_le_bytes());
            let _ = rustix::io::read(&never, &mut [0; 1]);
            Vec::new()
        });
        assert!(matches!(hung, Err(AsideError::TimedOut(_))), "{hung:?}");
        assert!(started.elapsed() < LONG);
        drop(tell);
        let mut pid = [0; 4];
        assert_eq!(rustix::io::read(&told, &mut pid), Ok(4));
        let pid = Pid::from_raw(i32::from_le_bytes(pid)).unwrap();
        // Reaped already, or killed and slow to end: then it is the keeper's orphan.
        if let Ok(killed) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            let patience = Timespec::try_from(LONG).ok();
            let ended = poll(
                &mut [PollFd::new(&killed, PollFlags::IN)],
                patience.as_ref(),
            );
            assert_eq!(ended, Ok(1), "it was not killed");
        }
    }

    #[test]
    fn who_says_too_much_or_dies_gives_nothing() {
        let much = aside(LONG, 9, || vec![0; 10]);
        assert!(matches!(much, Err(AsideError::Failed)), "{much:?}");
        let died = aside(LONG, 9, || {
            let pid = rustix::process::getpid();
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            Vec::new()
        });
        assert!(matches!(died, Err(AsideError::Failed)), "{died:?}");
    }
}
