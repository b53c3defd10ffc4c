//! The keeper's hold on a child that shares its memory: how far it is, and when its stack is free.

use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::Plan;

/// What a child was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Descriptors, session, limits.
    Setup,
    /// Groups and user.
    User,
    /// The working directory.
    Directory,
    /// execve(2) itself.
    Exec,
}

/// How far a child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It has not executed its program yet.
    Waiting,
    /// It executes its program, or was killed before it could.
    Running,
    /// It could not, and exits.
    Failed(Stage, i32),
}

/// The bytes of a child's stack. Its frames are one function and inlined calls.
pub(super) const STACK_BYTES: usize = 32 * 1024;
/// Stacks kept for the next children.
const STACKS_KEPT: usize = 64;

#[repr(align(16))]
pub(super) struct Stack([MaybeUninit<u8>; STACK_BYTES]);

impl Stack {
    /// Where it begins.
    pub(super) fn start(&self) -> *const MaybeUninit<u8> {
        self.0.as_ptr()
    }
}

/// Stacks that no child uses.
#[derive(Default)]
pub(crate) struct Stacks(Vec<Box<Stack>>);

impl Stacks {
    pub(super) fn take(&mut self) -> Box<Stack> {
        let fresh = || Box::new(Stack([MaybeUninit::uninit(); STACK_BYTES]));
        self.0.pop().unwrap_or_else(fresh)
    }

    /// Takes back the stack of a child that has left the keeper's memory.
    pub(crate) fn give_back(&mut self, mut pending: Pending) {
        if pending.left
            && self.0.len() < STACKS_KEPT
            && let Some(memory) = pending.memory.take()
        {
            self.0.push(memory.stack);
        }
    }
}

/// The keeper's hold on a child that shares its memory.
pub(crate) struct Pending {
    status: OwnedFd,
    report: Vec<u8>,
    /// The child has executed its program or is gone.
    left: bool,
    /// None of a child that an earlier program of this process has made: what
    /// that one shares is that program's memory, which nobody else has any more.
    memory: Option<Memory>,
}

/// What a child uses of the keeper's memory.
struct Memory {
    _plan: Box<Plan>,
    stack: Box<Stack>,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Pending {
    /// A child that was just made, and what it uses.
    pub(super) fn new(status: OwnedFd, plan: Box<Plan>, stack: Box<Stack>) -> Self {
        Self {
            status,
            report: Vec::new(),
            left: false,
            memory: Some(Memory { _plan: plan, stack }),
        }
    }

    /// Becomes readable when [`Pending::progress`] has something to say.
    pub(crate) fn status(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.status)
    }

    /// Takes over a child from an earlier program of this process.
    pub(crate) fn inherited(status: OwnedFd, report: Vec<u8>) -> Self {
        Self {
            status,
            report,
            left: false,
            memory: None,
        }
    }

    /// What the child has said so far.
    pub(crate) fn report(&self) -> &[u8] {
        &self.report
    }

    /// Looks how far the child is, without waiting.
    pub(crate) fn progress(&mut self) -> Progress {
        let mut buffer = [0; REPORT_BYTES];
        while !self.left {
            match rustix::io::read(&self.status, &mut buffer) {
                Ok(0) => self.left = true,
                Ok(count) => self.report.extend_from_slice(&buffer[..count]),
                Err(Errno::INTR) => {}
                Err(_) => return Progress::Waiting,
            }
        }
        let Some((&stage, errno)) = self.report.split_first() else {
            return Progress::Running;
        };
        let errno = errno.try_into().map_or(libc::EIO, i32::from_le_bytes);
        Progress::Failed(stage_of(stage), errno)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.left {
            // The child may still use it; to lose some kilobytes is the lesser evil.
            let _lost = ManuallyDrop::new(self.memory.take());
        }
    }
}

/// A report is the stage and the errno.
const REPORT_BYTES: usize = 5;

fn stage_of(byte: u8) -> Stage {
    match byte {
        1 => Stage::User,
        2 => Stage::Directory,
        3 => Stage::Exec,
        _ => Stage::Setup,
    }
}
