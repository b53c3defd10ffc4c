//! A cgroup for each job, where cgroups can be made: the one way to end every
//! process of a job for certain (cgroups(7), `cgroup.kill`).
//!
//! Owns one folder below the keeper's own cgroup and the groups in it. A group
//! is used again for another job once it is empty, unless it was killed. No controller is ever enabled here, so nothing is
//! limited or accounted, and the keeper may stay in the parent.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::Pid;

use super::state::{CgroupState, CgroupsState, Pass, PlaceState};
use crate::inherited;

/// How the folders of keepers begin.
const PREFIX: &str = "bowline-keeper-";
/// Names of a folder to try: a keeper of the same number may live in another pid namespace.
const NAMES_MAX: u32 = 16;
/// Empty groups that are kept for the next jobs.
const FREE_MAX: usize = 64;
/// Groups with survivors that are looked at again for each new job.
const LOOK_AGAIN: usize = 4;
/// The processes of one group that are signalled; the rest is for `cgroup.kill`.
const PROCS_BYTES_MAX: u64 = 1024 * 1024;
/// How long killed processes are waited for at the very end.
const DYING_MAX: Duration = Duration::from_secs(1);
/// How deep groups that a job made inside its own are followed.
const DEPTH_MAX: u32 = 16;

/// The groups of a keeper.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    /// `None` where no group can be made.
    place: Option<Place>,
    free: Vec<Cgroup>,
    /// Groups whose job is over and in which something still runs.
    lingering: VecDeque<Cgroup>,
    made: u64,
}

/// A keeper's folder, locked (flock(2)) for as long as the keeper lives. Whoever gets the lock of a
/// folder knows that its keeper is gone; the number in its name does not tell that, as keepers in
/// several pid namespaces may share a place.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    lock: OwnedFd,
}

/// One group.
#[derive(Debug)]
pub(crate) struct Cgroup {
    folder: OwnedFd,
    path: PathBuf,
    /// See [`Cgroup::kill`].
    killed: Cell<bool>,
    /// A keeper that died made it, below a folder of its own.
    foreign: bool,
}

impl Cgroups {
    /// Finds the place for the groups of the process `keeper`. Without one, no
    /// group will ever be made.
    pub(crate) fn find(keeper: Pid) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let place = own_folders(&mounts, &own).find_map(|parent| {
            remove_stale(&parent);
            let place = Place::make(&parent, keeper)?;
            let usable = place.path.join("cgroup.kill").exists();
            if !usable {
                let _ = fs::remove_dir(&place.path);
            }
            usable.then_some(place)
        });
        Self {
            place,
            ..Self::default()
        }
    }

    /// Goes on with the groups of an earlier program of this process.
    pub(crate) fn resume(state: CgroupsState) -> io::Result<Self> {
        let lingering = state.lingering.into_iter().map(Cgroup::resume);
        Ok(Self {
            place: state.place.map(Place::resume).transpose()?,
            free: Vec::new(),
            lingering: lingering.collect::<io::Result<_>>()?,
            made: state.made,
        })
    }

    /// What the next program of this process needs to know; groups that are free
    /// are not told of.
    pub(crate) fn state<'a>(&'a self, pass: &mut Pass<'a, '_>) -> io::Result<CgroupsState> {
        let place = self.place.as_ref().map(|place| place.state(pass));
        let lingering = self.lingering.iter().map(|group| group.state(pass));
        Ok(CgroupsState {
            place: place.transpose()?,
            made: self.made,
            lingering: lingering.collect::<io::Result<_>>()?,
        })
    }

    /// Removes the groups that wait for jobs.
    pub(crate) fn remove_free(&mut self) {
        self.free.drain(..).for_each(Cgroup::remove);
    }

    /// Makes sure, with a child that does nothing, that programs can be started
    /// in a group and live there: a group kills its newborns where the keeper's
    /// own was killed once (see [`Cgroup::kill`]), and some may not be joined.
    pub(crate) fn prove(&mut self, start_in: impl FnOnce(&Cgroup) -> bool) {
        let Some(group) = self.take() else { return };
        let usable = start_in(&group);
        self.give_back(group);
        if !usable {
            self.give_up();
        }
    }

    /// An empty group; `None` where none can be made.
    pub(crate) fn take(&mut self) -> Option<Cgroup> {
        if let Some(group) = self.free.pop() {
            return Some(group);
        }
        for _ in 0..self.lingering.len().min(LOOK_AGAIN) {
            let group = self.lingering.pop_front()?;
            if group.is_reusable() {
                return Some(group);
            }
            self.put_away(group);
        }
        self.made += 1;
        let place = self.place.as_ref()?;
        let path = place.path.join(format!("job-{}", self.made));
        Cgroup::make(path).ok()
    }

    /// Takes back the group of a job that is over.
    pub(crate) fn give_back(&mut self, group: Cgroup) {
        if group.is_reusable() && self.free.len() < FREE_MAX {
            self.free.push(group);
        } else {
            self.put_away(group);
        }
    }

    fn put_away(&mut self, group: Cgroup) {
        if group.is_empty() {
            group.remove();
        } else {
            self.lingering.push_back(group);
        }
    }

    /// Stops making groups: the kernel does not let programs be started in them.
    pub(crate) fn give_up(&mut self) {
        self.remove();
        self.place = None;
    }

    /// Removes what is empty or was killed; what still runs keeps its group.
    pub(crate) fn remove(&mut self) {
        for group in self.free.drain(..).chain(self.lingering.drain(..)) {
            if group.killed.get() {
                group.wait_until_empty();
            }
            group.remove();
        }
        if let Some(place) = &self.place {
            let _ = fs::remove_dir(&place.path);
        }
    }
}

impl Place {
    fn make(parent: &Path, keeper: Pid) -> Option<Self> {
        (0..NAMES_MAX).find_map(|number| {
            let path = parent.join(format!("{PREFIX}{}-{number}", keeper.as_raw_pid()));
            fs::create_dir(&path).ok()?;
            let lock = lock(&path)?;
            Some(Self { path, lock })
        })
    }

    /// Goes on with the folder of an earlier program of this process, and with its lock.
    fn resume(state: PlaceState) -> io::Result<Self> {
        Ok(Self {
            path: state.path,
            lock: inherited::take(state.lock)?,
        })
    }

    fn state<'a>(&'a self, pass: &mut Pass<'a, '_>) -> io::Result<PlaceState> {
        Ok(PlaceState {
            path: self.path.clone(),
            lock: pass(self.lock.as_fd())?,
        })
    }
}

/// The lock of a keeper's folder; `None` where another has it, or the folder is gone.
fn lock(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).ok()?;
    // Between its making and its lock, another keeper may have taken it for stale.
    let (locked, named) = (rustix::fs::fstat(&folder), rustix::fs::stat(path));
    (locked.ok()?.st_ino == named.ok()?.st_ino).then_some(folder)
}

impl Cgroup {
    fn make(path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(folder) => Ok(Self {
                folder,
                path,
                killed: Cell::new(false),
                foreign: false,
            }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error.into())
            }
        }
    }

    /// Goes on with a group of an earlier program of this process.
    pub(crate) fn resume(state: CgroupState) -> io::Result<Self> {
        Ok(Self {
            folder: inherited::take(state.folder)?,
            path: state.path,
            killed: Cell::new(state.killed),
            foreign: state.foreign,
        })
    }

    /// The group that a keeper that died made for the job of this process.
    pub(crate) fn of_process(process: Pid) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let of_process = format!("/proc/{}/cgroup", process.as_raw_pid());
        let of_process = fs::read_to_string(of_process).ok()?;
        // The job may have made groups inside its own.
        let path = own_folders(&mounts, &of_process)
            .find_map(|folder| folder.ancestors().find(is_of_a_job).map(Path::to_owned))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Some(Self {
            folder: rustix::fs::open(&path, flags, Mode::empty()).ok()?,
            path,
            killed: Cell::new(false),
            foreign: true,
        })
    }

    /// What the next program of this process needs to know.
    pub(crate) fn state<'a>(&'a self, pass: &mut Pass<'a, '_>) -> io::Result<CgroupState> {
        Ok(CgroupState {
            folder: pass(self.folder.as_fd())?,
            path: self.path.clone(),
            killed: self.killed.get(),
            foreign: self.foreign,
        })
    }

    /// For clone3(2).
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Ends every process in the group and below it, also those that are just
    /// being forked.
    ///
    /// The group cannot be used again. On Linux 6.18 it kills every child that is
    /// cloned into it later: a child is compared with the kills that its parent's
    /// group has seen, not with those of its own.
    ///
    /// # Errors
    /// Where the kernel is older than 5.14.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.killed.set(true);
        self.open("cgroup.kill", OFlags::WRONLY)?.write_all(b"1")
    }

    /// The processes in the group and below it at this moment.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let mut found = Vec::new();
        collect(&self.path, DEPTH_MAX, &mut found);
        found
    }

    fn open(&self, file: &str, flags: OFlags) -> io::Result<fs::File> {
        let flags = flags | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.folder, file, flags, Mode::empty())?.into())
    }

    fn is_reusable(&self) -> bool {
        // Two links are the folder itself: a job of root may have made groups inside.
        let plain = || rustix::fs::fstat(&self.folder).is_ok_and(|stat| stat.st_nlink <= 2);
        !self.killed.get() && !self.foreign && self.is_empty() && plain()
    }

    /// Whether no process is in the group or below it.
    fn is_empty(&self) -> bool {
        let mut events = [0; 256];
        let file = self.open("cgroup.events", OFlags::RDONLY);
        let Ok(count) = file.and_then(|mut file| file.read(&mut events)) else {
            return false;
        };
        let mut lines = events[..count].split(|&byte| byte == b'\n');
        lines.any(|line| line == b"populated 0")
    }

    /// The killed are still on their way out for a moment.
    fn wait_until_empty(&self) {
        let Ok(events) = self.open("cgroup.events", OFlags::RDONLY) else {
            return;
        };
        let until = Instant::now() + DYING_MAX;
        while !self.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = left.try_into().ok();
            // The file says that it has changed since it was last read, here at its opening.
            let mut changed = [PollFd::new(&events, PollFlags::PRI)];
            if left.is_zero() || rustix::event::poll(&mut changed, timeout.as_ref()) == Ok(0) {
                return;
            }
            let _ = rustix::io::pread(&events, &mut [0; 256], 0);
        }
    }

    fn remove(self) {
        remove_below(&self.path, DEPTH_MAX);
        if let (true, Some(folder)) = (self.foreign, self.path.parent()) {
            // With its last group.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Whether a keeper makes such a group for a job: `bowline-keeper-PID-N/job-M`.
fn is_of_a_job(folder: &&Path) -> bool {
    let name = |path: Option<&Path>| path?.file_name()?.to_str().map(str::to_owned);
    let is_number = |text: &str| text.parse::<u64>().is_ok();
    let job = name(Some(folder));
    let keeper = name(folder.parent());
    job.is_some_and(|name| name.strip_prefix("job-").is_some_and(is_number))
        && keeper.is_some_and(|name| {
            let numbers = name.strip_prefix(PREFIX);
            let numbers = numbers.and_then(|numbers| numbers.split_once('-'));
            numbers.is_some_and(|(pid, number)| is_number(pid) && is_number(number))
        })
}

fn collect(folder: &Path, depth: u32, found: &mut Vec<Pid>) {
    let mut text = String::new();
    let read = |file: fs::File| file.take(PROCS_BYTES_MAX).read_to_string(&mut text);
    if fs::File::open(folder.join("cgroup.procs"))
        .and_then(read)
        .is_ok()
    {
        let pids = text.lines().filter_map(|line| line.parse().ok());
        found.extend(pids.filter_map(Pid::from_raw));
    }
    if depth > 0 {
        subfolders(folder).for_each(|inner| collect(&inner, depth - 1, found));
    }
}

fn remove_below(folder: &Path, depth: u32) {
    if depth > 0 {
        subfolders(folder).for_each(|inner| remove_below(&inner, depth - 1));
    }
    let _ = fs::remove_dir(folder);
}

fn subfolders(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

/// Removes the empty groups of keepers that are gone.
fn remove_stale(parent: &Path) {
    for folder in subfolders(parent) {
        let name = folder.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.starts_with(PREFIX))
            && let Some(_lock) = lock(&folder)
        {
            remove_below(&folder, DEPTH_MAX);
        }
    }
}

/// The folders in which this process's own cgroup shows, one for each mount of
/// cgroup2: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside version 1.
fn own_folders(mounts: &str, own: &str) -> impl Iterator<Item = PathBuf> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::"));
    mounts.lines().filter_map(move |line| {
        // proc_pid_mountinfo(5): id parent major:minor root point options… - type source options
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        if after.split(' ').next()? != "cgroup2" {
            return None;
        }
        let below = Path::new(own?).strip_prefix(root).ok()?;
        let escapes = below.components().any(|part| part.as_os_str() == "..");
        (!escapes).then(|| Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
40 30 0:36 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";

    #[test]
    fn a_jobs_group_is_told_by_its_name() {
        let is = |path: &str| is_of_a_job(&Path::new(path));
        assert!(is("/sys/fs/cgroup/bowline-keeper-12-0/job-3"));
        assert!(!is("/sys/fs/cgroup/bowline-keeper-12-0/job-3/inner"));
        assert!(!is("/sys/fs/cgroup/bowline-keeper-12-0"));
        assert!(!is("/sys/fs/cgroup/bowline-keeper-12/job-3"));
        assert!(!is("/sys/fs/cgroup/bowline-12-0/job-3"));
        assert!(!is("/job-3"));
    }

    #[test]
    fn a_folder_is_stale_when_its_keeper_is_gone_whatever_its_number() {
        let parent = tempfile::tempdir().unwrap();
        // No process has this number, as none of another pid namespace has one here.
        let nobody = Pid::from_raw(i32::MAX).unwrap();
        let place = Place::make(parent.path(), nobody).unwrap();
        let other = Place::make(parent.path(), nobody).unwrap();
        assert_ne!(place.path, other.path);
        fs::create_dir(place.path.join("job-1")).unwrap();
        let foreign = parent.path().join("somebody-else");
        fs::create_dir(&foreign).unwrap();
        remove_stale(parent.path());
        assert!(place.path.join("job-1").exists() && other.path.exists());
        let gone = place.path.clone();
        drop(place);
        remove_stale(parent.path());
        assert!(!gone.exists() && other.path.exists() && foreign.exists());
        // Its name may be had again.
        assert_eq!(Place::make(parent.path(), nobody).unwrap().path, gone);
    }

    #[test]
    fn a_folder_that_was_removed_is_not_locked() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("bowline-keeper-1-0");
        assert!(lock(&path).is_none());
        fs::create_dir(&path).unwrap();
        let held = lock(&path).unwrap();
        assert!(lock(&path).is_none(), "it is held");
        drop(held);
        assert!(lock(&path).is_some());
    }

    #[test]
    fn the_mount_is_found_beside_version_1_too() {
        let of = |mounts: &str, own: &str| own_folders(mounts, own).collect::<Vec<_>>();
        let unified = Path::new("/sys/fs/cgroup/unified");
        assert_eq!(of(HYBRID, "1:cpu:/x\n0::/\n"), [unified]);
        assert_eq!(of(HYBRID, "0::/a/b.scope\n"), [unified.join("a/b.scope")]);
        assert_eq!(of(HYBRID, "1:cpu:/x\n"), [] as [PathBuf; 0]);
        assert_eq!(of(HYBRID, "0::/../x\n"), [] as [PathBuf; 0]);
        let inner = "1 0 0:1 /docker/1 /cg rw - cgroup2 c rw\n";
        assert_eq!(of(inner, "0::/docker/1/x\n"), [Path::new("/cg/x")]);
        assert_eq!(of(inner, "0::/elsewhere\n"), [] as [PathBuf; 0]);
        assert_eq!(of("", "0::/\n"), [] as [PathBuf; 0]);
        assert_eq!(of("garbage - cgroup2\n1 2\n", "0::/\n"), [] as [PathBuf; 0]);
    }
}
