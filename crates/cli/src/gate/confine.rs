//! Taking away from the gate what it does not need, before it reads a byte of
//! the network.
//!
//! | measure | what is left |
//! | --- | --- |
//! | no_new_privs, not dumpable | no set-uid program gives power; no other process of this uid reads the memory |
//! | capabilities | none |
//! | Landlock | its own folders to read and write, the time zone to read; no TCP port to bind or connect to; no signal and no abstract socket to outside |
//! | seccomp | the calls of [`ALLOWED`], some with certain arguments only; EPERM for the others, death for [`DEADLY`] |
//!
//! A call that is allowed whatever its arguments costs nothing more, because the
//! kernel remembers the verdict; one whose arguments decide costs 0.2 µs more.
//!
//! Each measure that the kernel does not have is logged and left out: the
//! other ones, and the gate's own uid, still stand. What it must never do is to
//! widen anything: a list grows only for a call that the gate was seen to make.

use std::collections::BTreeMap;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// What outside the gate's own folders it reads: the time zone, and randomness
/// where getrandom(2) is missing.
const READABLE: [&str; 4] = [
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/dev/urandom",
    "/dev/null",
];

/// Why the gate must not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    /// Without it, a set-uid program would give power back.
    #[error("cannot set no_new_privs")]
    NoNewPrivs(#[source] std::io::Error),
    /// Others of the same uid could read keys of sessions from its memory.
    #[error("cannot hide the memory from other processes")]
    Dumpable(#[source] std::io::Error),
    /// It was started with power and cannot put it down.
    #[error("cannot give up capabilities")]
    Capabilities(#[source] std::io::Error),
}

/// What stands after [`confine`]; whatever does not was logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Confined {
    /// How much of the file rules the kernel enforces.
    pub(crate) landlock: Enforced,
    /// Whether system calls are filtered.
    pub(crate) seccomp: bool,
}

/// How much of something is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Enforced {
    Fully,
    Partly,
    Not,
}

/// Confines this process. To be called before the first thread is started: the
/// file rules hold for this thread and those that it starts from here on.
///
/// # Errors
/// [`ConfineError`], for what every kernel has.
pub(crate) fn confine(folders: &[&Path]) -> Result<Confined, ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(|e| ConfineError::NoNewPrivs(e.into()))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| ConfineError::Dumpable(e.into()))?;
    drop_capabilities().map_err(ConfineError::Capabilities)?;
    let landlock = restrict_files(folders).unwrap_or_else(|error| {
        tracing::warn!(error = %crate::exit::chain(&error), "the gate's files are not restricted");
        Enforced::Not
    });
    match landlock {
        Enforced::Fully => {}
        Enforced::Partly => {
            tracing::info!("this kernel restricts the gate's files in part (Landlock)");
        }
        Enforced::Not => {
            tracing::warn!("this kernel does not restrict the gate's files (Landlock)")
        }
    }
    let seccomp = filter_calls();
    if let Err(error) = &seccomp {
        tracing::warn!(error = %crate::exit::chain(error), "the gate's system calls are not filtered");
    }
    Ok(Confined {
        landlock,
        seccomp: seccomp.is_ok(),
    })
}

fn drop_capabilities() -> std::io::Result<()> {
    // Kernels before 4.3 have no ambient set, and nothing in it.
    let _ = rustix::thread::clear_ambient_capability_set();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, none)?)
}

fn restrict_files(folders: &[&Path]) -> Result<Enforced, landlock::RulesetError> {
    // The newest rules that this program knows; older kernels leave out what they do not have.
    let abi = ABI::V6;
    let own = AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::ReadDir
        | AccessFs::MakeReg
        | AccessFs::RemoveFile
        | AccessFs::Truncate;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    for folder in folders {
        if let Ok(folder) = PathFd::new(folder) {
            rules = rules.add_rule(PathBeneath::new(folder, own))?;
        }
    }
    for path in READABLE {
        if let Ok(place) = PathFd::new(path) {
            let access = match Path::new(path).is_dir() {
                true => AccessFs::ReadFile | AccessFs::ReadDir,
                false => AccessFs::ReadFile.into(),
            };
            rules = rules.add_rule(PathBeneath::new(place, access))?;
        }
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Enforced::Fully,
        RulesetStatus::PartiallyEnforced => Enforced::Partly,
        RulesetStatus::NotEnforced => Enforced::Not,
    })
}

/// Why system calls are not filtered.
#[derive(Debug, thiserror::Error)]
enum FilterError {
    /// seccompiler knows no calls of this processor.
    #[error("there is no filter for this processor")]
    Architecture(#[source] seccompiler::BackendError),
    /// The lists make no valid filter.
    #[error("the filter cannot be built")]
    Build(#[from] seccompiler::BackendError),
    /// The kernel does not take it.
    #[error("the filter cannot be installed")]
    Install(#[from] seccompiler::Error),
}

/// Installs three filters; of their verdicts the strictest counts.
fn filter_calls() -> Result<(), FilterError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(FilterError::Architecture)?;
    let every = |calls: &[i64]| -> BTreeMap<i64, Vec<SeccompRule>> {
        calls.iter().map(|&call| (call, Vec::new())).collect()
    };
    let build = |rules, otherwise, matching| -> Result<BpfProgram, FilterError> {
        Ok(SeccompFilter::new(rules, otherwise, matching, arch)?.try_into()?)
    };
    let deadly = build(
        every(DEADLY),
        SeccompAction::Allow,
        SeccompAction::KillProcess,
    )?;
    // clone3 hides its flags behind a pointer, where no filter sees them. With
    // ENOSYS libc turns to clone(2), whose flags are in a register.
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let absent = build(every(&[libc::SYS_clone3]), SeccompAction::Allow, absent)?;
    let mut rules = every(ALLOWED);
    rules.extend(every(ALLOWED_OF_ARCH));
    rules.insert(libc::SYS_clone3, Vec::new());
    rules.extend(conditional()?);
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    let allowed = build(rules, denied, SeccompAction::Allow)?;
    for filter in [&deadly, &absent, &allowed] {
        seccompiler::apply_filter_all_threads(filter)?;
    }
    Ok(())
}

/// The calls whose arguments decide.
fn conditional() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    // Each rule looks at one argument: its number, how to compare, with what.
    let rule = |argument: u8, operator: SeccompCmpOp, value: u64| {
        let length = SeccompCmpArgLen::Dword;
        let condition = SeccompCondition::new(argument, length, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    let one_of = |argument: u8, values: &[u64]| {
        let rules = values.iter().map(|&v| rule(argument, SeccompCmpOp::Eq, v));
        rules.collect::<Result<Vec<_>, _>>()
    };
    let thread = libc::CLONE_THREAD as u64;
    let exec = libc::PROT_EXEC as u64;
    let not_exec = || rule(2, SeccompCmpOp::MaskedEq(exec), 0);
    let own_pid = rustix::process::getpid().as_raw_nonzero().get() as u64;
    Ok(BTreeMap::from([
        // A thread, never a process.
        (
            libc::SYS_clone,
            vec![rule(0, SeccompCmpOp::MaskedEq(thread), thread)?],
        ),
        (libc::SYS_mmap, vec![not_exec()?]),
        (libc::SYS_mprotect, vec![not_exec()?]),
        // abort(3) and the handlers of a runtime signal this process alone.
        (libc::SYS_tgkill, one_of(0, &[own_pid])?),
        (libc::SYS_prlimit64, one_of(0, &[0, own_pid])?),
        (libc::SYS_socketpair, one_of(0, &[libc::AF_UNIX as u64])?),
        (libc::SYS_ioctl, one_of(1, IOCTLS)?),
        (libc::SYS_fcntl, one_of(1, FCNTLS)?),
        (libc::SYS_prctl, one_of(0, PRCTLS)?),
    ]))
}

/// Non-blocking and close-on-exec, bytes that wait, terminals and their size.
#[allow(
    clippy::unnecessary_cast,
    reason = "another libc has another type for them"
)]
const IOCTLS: &[u64] = &[
    libc::FIONBIO as u64,
    libc::FIOCLEX as u64,
    libc::FIONREAD as u64,
    libc::TIOCOUTQ as u64,
    libc::TCGETS as u64,
    libc::TIOCGWINSZ as u64,
    libc::TIOCSWINSZ as u64,
];

/// All but F_SETOWN and its kind, with which one signals others.
const FCNTLS: &[u64] = &[
    libc::F_DUPFD as u64,
    libc::F_DUPFD_CLOEXEC as u64,
    libc::F_GETFD as u64,
    libc::F_SETFD as u64,
    libc::F_GETFL as u64,
    libc::F_SETFL as u64,
    libc::F_GETLK as u64,
    libc::F_SETLK as u64,
    libc::F_SETLKW as u64,
    libc::F_OFD_GETLK as u64,
    libc::F_OFD_SETLK as u64,
    libc::F_OFD_SETLKW as u64,
    libc::F_GETPIPE_SZ as u64,
    libc::F_SETPIPE_SZ as u64,
    libc::F_ADD_SEALS as u64,
    libc::F_GET_SEALS as u64,
];

/// Names of threads and of memory.
const PRCTLS: &[u64] = &[
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    libc::PR_SET_VMA as u64,
    libc::PR_GET_DUMPABLE as u64,
    libc::PR_GET_NO_NEW_PRIVS as u64,
];

/// What nothing in the gate ever does: whoever tries has taken it over.
const DEADLY: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
];

/// What tokio, rustls with aws-lc, SQLite and libc need, whatever the arguments.
/// Not among them: socket, bind, listen, connect, fork, kill, mount, chmod of
/// paths, links, io_uring.
const ALLOWED: &[i64] = &[
    // Bytes of open descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_sendfile,
    libc::SYS_copy_file_range,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fadvise64,
    // Files, as far as Landlock and the uid let them.
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_unlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchown,
    libc::SYS_umask,
    // Sockets that exist already.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_membarrier,
    // Threads and signals to oneself.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_getcpu,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Who and where one is.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_getrandom,
];

/// The older names of such calls, which libc still uses on this processor.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OF_ARCH: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_unlink,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_create,
    libc::SYS_eventfd,
    libc::SYS_getrlimit,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OF_ARCH: &[i64] = &[];

#[cfg(test)]
#[path = "confine_tests.rs"]
mod tests;
