//! The processes of a job: finding them all, signalling them, ending them.
//!
//! With a cgroup the kernel knows the processes and ends them exactly. Without
//! one they are found by walking /proc: the descendants of the main process,
//! its session and process group, whatever carries the job's cookie in its
//! environment, whatever was seen to belong earlier, and the descendants of
//! all these. A process that cleared its environment, left its session and
//! lost its parent between two looks may escape, so that is called best effort.
//!
//! A pid that was read may be another process a moment later, so everything is
//! signalled through a pidfd that was opened before a second look.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read as _;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::cgroup::Cgroup;
use crate::ipc::Tree;

/// How often the freezing and the killing look for processes that were new.
const ROUNDS_MAX: u32 = 64;
/// How much of a process's environment is searched, in bytes.
const ENVIRON_BYTES_MAX: u64 = 256 * 1024;

/// A line of /proc/PID/stat: some fifty numbers and a name of 64 bytes at most.
const STAT_BYTES_MAX: usize = 2048;

/// What a job's processes have in common.
#[derive(Debug)]
pub(crate) struct Roots {
    main: Pid,
    /// The main process is not reaped yet, so its number can mean nobody else.
    main_held: bool,
    cookie: Vec<u8>,
    /// Processes that were seen to belong to the job.
    seen: HashSet<Process>,
}

/// A process, named so that no later one has the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Process {
    pid: Pid,
    /// In clock ticks since the boot.
    started: u64,
}

/// A line of /proc/PID/stat, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    process: Process,
    parent: i32,
    group: i32,
    session: i32,
    dead: bool,
}

impl Roots {
    /// Those of the job with this main process, whose environments hold `cookie` (`NAME=value`).
    pub(crate) fn new(main: Pid, cookie: Vec<u8>) -> Self {
        Self {
            main,
            main_held: true,
            cookie,
            seen: HashSet::new(),
        }
    }

    /// The main process has been reaped: its number may be another's soon.
    pub(crate) fn main_reaped(&mut self) {
        self.main_held = false;
    }

    /// Sends a signal to every process of the job.
    pub(crate) fn signal(&mut self, cgroup: Option<&Cgroup>, signal: Signal) {
        match cgroup {
            Some(cgroup) => signal_cgroup(cgroup, signal),
            None => {
                for process in self.members() {
                    send(process, signal);
                }
            }
        }
    }

    /// Ends every process of the job with SIGKILL.
    pub(crate) fn kill(&mut self, cgroup: Option<&Cgroup>) -> Tree {
        if cgroup.is_some_and(|cgroup| cgroup.kill().is_ok()) {
            return Tree::Exact;
        }
        // What is stopped cannot fork away from the walk.
        self.rounds(Signal::STOP);
        self.rounds(Signal::KILL);
        Tree::BestEffort
    }

    /// Signals every process once, until a walk finds none that is new.
    fn rounds(&mut self, signal: Signal) {
        let mut done = HashSet::new();
        for _ in 0..ROUNDS_MAX {
            let fresh: Vec<Process> = self.members().into_iter().collect();
            let fresh: Vec<_> = fresh.into_iter().filter(|&p| done.insert(p)).collect();
            if fresh.is_empty() {
                return;
            }
            for process in fresh {
                send(process, signal);
            }
        }
    }

    /// The living processes of the job at this moment.
    fn members(&mut self) -> HashSet<Process> {
        let table: Vec<Stat> = processes().collect();
        let mut members = HashSet::new();
        for stat in &table {
            if self.belongs(stat, &table) {
                members.insert(stat.process);
            }
        }
        add_descendants(&table, &mut members);
        self.seen.extend(&members);
        let dead: HashSet<_> = table.iter().filter(|s| s.dead).map(|s| s.process).collect();
        members.retain(|process| !dead.contains(process));
        members
    }

    fn belongs(&self, stat: &Stat, table: &[Stat]) -> bool {
        let main = self.main.as_raw_pid();
        // A session's number is not given away while the session has members. Once the main
        // process is reaped, a process with its number is somebody else's leader.
        let number_is_ours =
            self.main_held || !table.iter().any(|other| other.process.pid == self.main);
        let by_number = stat.session == main || stat.group == main || stat.process.pid == self.main;
        (number_is_ours && by_number)
            || self.seen.contains(&stat.process)
            || has_cookie(stat.process.pid, &self.cookie)
    }
}

fn add_descendants(table: &[Stat], members: &mut HashSet<Process>) {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for stat in table {
        children.entry(stat.parent).or_default().push(stat.process);
    }
    let mut open: Vec<Process> = members.iter().copied().collect();
    while let Some(process) = open.pop() {
        let below = children.get(&process.pid.as_raw_pid());
        for &child in below.into_iter().flatten() {
            if members.insert(child) {
                open.push(child);
            }
        }
    }
}

/// Signals a process if it still is the one that was meant.
fn send(process: Process, signal: Signal) {
    let Ok(pidfd) = pidfd_open(process.pid, PidfdFlags::empty()) else {
        return;
    };
    if stat(process.pid).is_some_and(|now| now.process == process) {
        // It may have ended, or be of a user whom this keeper may not signal.
        let _ = pidfd_send_signal(pidfd, signal);
    }
}

fn signal_cgroup(cgroup: &Cgroup, signal: Signal) {
    let open = |pid: Pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?));
    let opened: Vec<_> = cgroup.processes().into_iter().filter_map(open).collect();
    let still: HashSet<Pid> = cgroup.processes().into_iter().collect();
    for (_, pidfd) in opened.iter().filter(|(pid, _)| still.contains(pid)) {
        let _ = pidfd_send_signal(pidfd, signal);
    }
}

fn processes() -> impl Iterator<Item = Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| stat(Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?))
}

fn stat(pid: Pid) -> Option<Stat> {
    let path = format!("/proc/{}/stat", pid.as_raw_pid());
    // The kernel writes the line anew for each read, and it fits.
    let mut text = [0; STAT_BYTES_MAX];
    let count = File::open(path).and_then(|mut file| file.read(&mut text));
    parse_stat(pid, text.get(..count.ok()?)?)
}

/// proc_pid_stat(5). The name in parentheses may hold anything, so what counts
/// starts behind the last one.
fn parse_stat(pid: Pid, text: &[u8]) -> Option<Stat> {
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let mut number = || fields.next()?.parse().ok();
    let (parent, group, session) = (number()?, number()?, number()?);
    // Field 22; the session was the sixth.
    let started = fields.nth(15)?.parse().ok()?;
    Some(Stat {
        process: Process { pid, started },
        parent,
        group,
        session,
        dead: matches!(state, "Z" | "X" | "x"),
    })
}

fn has_cookie(pid: Pid, cookie: &[u8]) -> bool {
    let mut environ = Vec::new();
    let read = |file: File| file.take(ENVIRON_BYTES_MAX).read_to_end(&mut environ);
    let path = format!("/proc/{}/environ", pid.as_raw_pid());
    File::open(path).and_then(read).is_ok() && environ.split(|&b| b == 0).any(|var| var == cookie)
}

/// This process's children that have ended and are not reaped.
pub(crate) fn dead_children() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_pid();
    let ours = processes().filter(|stat| stat.dead && stat.parent == own);
    ours.map(|stat| stat.process.pid).collect()
}

/// When a process was started, in clock ticks since the boot.
pub(crate) fn start_time(pid: Pid) -> Option<u64> {
    stat(pid).map(|stat| stat.process.started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_its_line() {
        let pid = Pid::from_raw(7).unwrap();
        let line = |name: &str| {
            format!("7 ({name}) S 3 4 5 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 12345 0 0\n").into_bytes()
        };
        let expected = Stat {
            process: Process {
                pid,
                started: 12345,
            },
            parent: 3,
            group: 4,
            session: 5,
            dead: false,
        };
        for name in ["sh", "a b", ") Z 1 1 1 (", "\n)"] {
            assert_eq!(parse_stat(pid, &line(name)), Some(expected), "{name:?}");
        }
        for cut in 0..line("sh").len() - 10 {
            let _ = parse_stat(pid, &line("sh")[..cut]);
        }
        assert_eq!(parse_stat(pid, b""), None);
    }

    #[test]
    fn this_process_is_found_as_it_is() {
        let own = rustix::process::getpid();
        let found = processes().find(|stat| stat.process.pid == own).unwrap();
        let parent = rustix::process::getppid().unwrap();
        assert_eq!(found.parent, parent.as_raw_pid());
        let session = rustix::process::getsid(None).unwrap();
        assert_eq!(found.session, session.as_raw_pid());
        assert_eq!(start_time(own), Some(found.process.started));
    }
}
