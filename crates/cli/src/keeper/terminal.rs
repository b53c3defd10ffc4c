//! The terminals of jobs: pseudo-terminals (pty(7)), made before the program that gets them.
//!
//! Owns their making and what is asked of a master. The modes are the kernel's
//! own for a new terminal, which are what a login expects. A [`Pty`] enters; a
//! [`Terminal`] leaves. How a child makes one the terminal of its session is in `spawn`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::Pid;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::ipc::Pty;

/// The size where the client has none to tell, as of old.
const SIZE_DEFAULT: (u16, u16) = (80, 24);

/// Both ends of a terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    /// The keeper's.
    pub(super) master: OwnedFd,
    /// The program's.
    pub(super) slave: OwnedFd,
    /// The variable that tells its name.
    pub(super) variable: CString,
}

/// Makes a terminal; `owner` is who it is to belong to, where that is not us.
///
/// # Errors
/// As openpt(3), where there are no more terminals or no /dev/ptmx.
pub(super) fn open(pty: &Pty, utf8: bool, owner: Option<u32>) -> io::Result<Terminal> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    // Of the master itself, not by its name: /dev/pts may be another one's here.
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    if let Some(uid) = owner {
        // The group and the mode are those of devpts, for which see mount(8).
        rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    }
    if utf8 {
        // Erasing one character erases all of its bytes.
        let mut modes = tcgetattr(&slave)?;
        modes.input_modes.insert(InputModes::IUTF8);
        tcsetattr(&slave, OptionalActions::Now, &modes)?;
    }
    let (cols, rows) = match (pty.cols, pty.rows) {
        (0, _) | (_, 0) => SIZE_DEFAULT,
        size => size,
    };
    let size = Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&slave, size)?;
    let name = ptsname(&master, Vec::new())?;
    let variable = [b"BOWLINE_TTY=", name.as_bytes()].concat();
    Ok(Terminal {
        master,
        slave,
        variable: CString::new(variable)?,
    })
}

/// Whether this is the master of a terminal.
pub(super) fn is_master(fd: &impl AsFd) -> bool {
    ptsname(fd, Vec::new()).is_ok()
}

/// The process group in front of a terminal.
pub(super) fn front(master: impl AsFd) -> Option<Pid> {
    rustix::termios::tcgetpgrp(master).ok()
}
