//! The processes of a job: finding them all, signalling them, ending them.
//!
//! With a cgroup the kernel knows the processes and ends them exactly. Without
//! one they are found by walking /proc: the descendants of the main process,
//! its session and process group, whatever carries the job's cookie in its
//! environment, whatever was seen to belong earlier, and the descendants of
//! all these. A process that cleared its environment, left its session and
//! lost its parent between two looks may escape, so that is called best effort.
//!
//! A look costs some microseconds for each process of the machine, so one look
//! serves all the jobs that are to be signalled or ended at the same moment.
//!
//! A pid that was read may be another process a moment later, so everything is
//! signalled through a pidfd that was opened before a second look.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read as _;

use bowline_proto::id::JobId;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::cgroup::Cgroup;
use super::program::COOKIE;

/// How often the freezing and the killing look for processes that were new.
const ROUNDS_MAX: u32 = 64;
/// How much of a process's environment is searched, in bytes.
const ENVIRON_BYTES_MAX: u64 = 256 * 1024;
/// A line of /proc/PID/stat: some fifty numbers and a name of 64 bytes at most.
const STAT_BYTES_MAX: usize = 2048;

/// What a job's processes have in common.
#[derive(Debug)]
pub(crate) struct Roots {
    job: JobId,
    main: Pid,
    /// The main process is not reaped yet, so its number can mean nobody else.
    main_held: bool,
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

/// Whose cookie each process carries, as far as looked. It does not change: a
/// process has its environment from its birth, main processes aside, which are
/// known by their number.
#[derive(Debug, Default)]
pub(crate) struct Cookies(HashMap<Process, Option<JobId>>);

/// The processes of the machine at one moment.
struct Look {
    alive: HashMap<Pid, Process>,
    /// The number of a main process may be taken by anything, dead or alive.
    taken: HashSet<Pid>,
    children: HashMap<i32, Vec<Process>>,
    /// Sessions and groups, which are named by the process that made them.
    led: HashMap<i32, Vec<Process>>,
    carrying: HashMap<JobId, Vec<Process>>,
}

/// Sends signals to every process of each job, all of them to each, in this order.
pub(crate) fn signal_all(jobs: &mut [(&mut Roots, &[Signal])], cookies: &mut Cookies) {
    if jobs.is_empty() {
        return;
    }
    let look = Look::now(cookies);
    for (roots, signals) in jobs {
        for process in roots.members(&look) {
            signals.iter().for_each(|&signal| send(process, signal));
        }
    }
}

/// Ends every process of each job with SIGKILL.
pub(crate) fn kill_all(jobs: &mut [&mut Roots], cookies: &mut Cookies) {
    if jobs.is_empty() {
        return;
    }
    // What is stopped cannot fork away from the walk.
    let mut stopped = HashSet::new();
    for _ in 0..ROUNDS_MAX {
        if !signal_new(jobs, &mut stopped, Signal::STOP, cookies) {
            break;
        }
    }
    let mut killed = HashSet::new();
    for _ in 0..ROUNDS_MAX {
        if !signal_new(jobs, &mut killed, Signal::KILL, cookies) {
            break;
        }
    }
}

/// Signals the processes that were not signalled yet; says whether there were any.
fn signal_new(
    jobs: &mut [&mut Roots],
    done: &mut HashSet<Process>,
    signal: Signal,
    cookies: &mut Cookies,
) -> bool {
    let look = Look::now(cookies);
    let mut any = false;
    for roots in jobs {
        for process in roots.members(&look) {
            if done.insert(process) {
                any = true;
                send(process, signal);
            }
        }
    }
    any
}

impl Roots {
    /// Those of the job with this main process.
    pub(crate) fn new(job: JobId, main: Pid) -> Self {
        Self {
            job,
            main,
            main_held: true,
            seen: HashSet::new(),
        }
    }

    /// Goes on with what an earlier program of this process has seen.
    pub(crate) fn remember(&mut self, seen: &[(i32, u64)]) {
        let processes = seen.iter().filter_map(|&(pid, started)| {
            let pid = Pid::from_raw(pid)?;
            Some(Process { pid, started })
        });
        self.seen.extend(processes);
    }

    /// The processes that were seen to belong to the job: pid and start time.
    pub(crate) fn seen(&self) -> Vec<(i32, u64)> {
        let seen = self.seen.iter();
        seen.map(|process| (process.pid.as_raw_pid(), process.started))
            .collect()
    }

    /// The main process has been reaped: its number may be another's soon.
    pub(crate) fn main_reaped(&mut self) {
        self.main_held = false;
    }

    /// The living processes of the job.
    fn members(&mut self, look: &Look) -> Vec<Process> {
        let mut found: Vec<Process> = Vec::new();
        // A session's number is not given away while the session has members. Once the main
        // process is reaped, a process with its number is somebody else's leader.
        let main = self.main.as_raw_pid();
        let main_lives = look.alive.get(&self.main);
        let main_lives = main_lives.is_some_and(|process| self.seen.contains(process));
        if self.main_held || main_lives || !look.taken.contains(&self.main) {
            found.extend(look.led.get(&main).into_iter().flatten());
            found.extend(look.alive.get(&self.main));
            found.extend(look.children.get(&main).into_iter().flatten());
        }
        found.extend(look.carrying.get(&self.job).into_iter().flatten());
        let alive = |process: &&Process| look.alive.get(&process.pid) == Some(*process);
        found.extend(self.seen.iter().filter(alive));
        self.seen = look.with_descendants(found);
        self.seen.iter().copied().collect()
    }
}

impl Look {
    fn now(cookies: &mut Cookies) -> Self {
        let mut look = Self {
            alive: HashMap::new(),
            taken: HashSet::new(),
            children: HashMap::new(),
            led: HashMap::new(),
            carrying: HashMap::new(),
        };
        let mut known = HashMap::new();
        for stat in processes() {
            let process = stat.process;
            look.taken.insert(process.pid);
            if stat.dead {
                continue;
            }
            look.alive.insert(process.pid, process);
            look.children.entry(stat.parent).or_default().push(process);
            look.led.entry(stat.session).or_default().push(process);
            look.led.entry(stat.group).or_default().push(process);
            let before = cookies.0.get(&process).copied();
            let Some(carried) = before.or_else(|| cookie(process.pid)) else {
                continue;
            };
            known.insert(process, carried);
            if let Some(job) = carried {
                look.carrying.entry(job).or_default().push(process);
            }
        }
        // Only the living are remembered.
        cookies.0 = known;
        look
    }

    fn with_descendants(&self, mut open: Vec<Process>) -> HashSet<Process> {
        let mut members: HashSet<Process> = open.iter().copied().collect();
        while let Some(process) = open.pop() {
            let below = self.children.get(&process.pid.as_raw_pid());
            for &child in below.into_iter().flatten() {
                if members.insert(child) {
                    open.push(child);
                }
            }
        }
        members
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

/// Sends signals to every process of a cgroup, all of them to each, in this order.
pub(crate) fn signal_cgroup(cgroup: &Cgroup, signals: &[Signal]) {
    let open = |pid: Pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?));
    let opened: Vec<_> = cgroup.processes().into_iter().filter_map(open).collect();
    let still: HashSet<Pid> = cgroup.processes().into_iter().collect();
    for (_, pidfd) in opened.iter().filter(|(pid, _)| still.contains(pid)) {
        for &signal in signals {
            let _ = pidfd_send_signal(pidfd, signal);
        }
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

/// Whose cookie a process carries; `None` where nothing can be read, as in the
/// middle of an exec.
fn cookie(pid: Pid) -> Option<Option<JobId>> {
    let mut environ = Vec::new();
    let file = File::open(format!("/proc/{}/environ", pid.as_raw_pid())).ok()?;
    file.take(ENVIRON_BYTES_MAX)
        .read_to_end(&mut environ)
        .ok()?;
    if environ.is_empty() {
        return None;
    }
    let mut variables = environ.split(|&byte| byte == 0);
    let value = variables.find_map(|var| var.strip_prefix(COOKIE.as_bytes())?.strip_prefix(b"="));
    Some(value.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()))
}

/// This process's children that have ended and are not reaped.
pub(crate) fn dead_children() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_pid();
    let ours = processes().filter(|stat| stat.dead && stat.parent == own);
    ours.map(|stat| stat.process.pid).collect()
}

/// The living processes that carry each job's cookie, the oldest first.
pub(crate) fn carrying(cookies: &mut Cookies) -> HashMap<JobId, Vec<(Pid, u64)>> {
    let look = Look::now(cookies);
    let named = look.carrying.into_iter().map(|(job, mut processes)| {
        processes.sort_by_key(|process| (process.started, process.pid.as_raw_pid()));
        let named = processes
            .iter()
            .map(|process| (process.pid, process.started));
        (job, named.collect())
    });
    named.collect()
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
        // A parent or a session leader outside this pid namespace has the number 0, which rustix does
        // not take, so the kernel is asked by way of the C library.
        assert_eq!(found.parent, nix::unistd::getppid().as_raw());
        assert_eq!(found.session, nix::unistd::getsid(None).unwrap().as_raw());
        assert_eq!(start_time(own), Some(found.process.started));
    }
}
