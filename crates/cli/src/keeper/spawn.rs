//! Starting a program: the one file of the keeper that is not safe Rust.
//!
//! A child is made with clone3(2) and shares the keeper's memory until it
//! executes its program (CLONE_VM), but the keeper does not wait for it (no
//! CLONE_VFORK). Measured on two cores: 13 µs until clone returns, against
//! 58 µs for fork from a process of 2 MiB and 538 µs from one of 64 MiB; and a
//! program or a working directory on a file system that hangs then holds up
//! nobody but its own job. In return the child is like a second thread without
//! thread-local storage: it runs [`child`] alone, on a stack of its own, with
//! raw system calls alone (no libc, whose errno it would share), and reads
//! nothing but its [`Plan`]. What became of it is told through a pipe that the
//! kernel closes with exec or exit, in both cases after the child has left the
//! keeper's memory; only then are its plan and stack used again.
//!
//! A child that changes its uid shares the memory of a root process for some
//! microseconds. Nobody of that uid can look into it: with the change the
//! kernel makes the memory undumpable, which forbids ptrace(2).
//!
//! Programs enter as [`Program`], prepared with every lookup done; a
//! [`Spawned`] leaves.

mod pending;

use std::cell::Cell;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};

pub(crate) use self::pending::{Pending, Progress, Stacks, Stage};
use self::pending::{STACK_BYTES, Stack};

/// What is to be executed and as whom; everything looked up already.
#[derive(Debug)]
pub(crate) struct Program {
    /// The places to try, in this order, as execvp(3) does.
    pub(crate) image: Image,
    /// The arguments, the program's own name first.
    pub(crate) argv: Vec<CString>,
    /// The whole environment.
    pub(crate) envp: Vec<CString>,
    /// Places for the working directory; the first that can be entered is it.
    /// That of the keeper where there are none.
    pub(crate) cwd: Vec<CString>,
    /// Another account than the keeper's.
    pub(crate) ids: Option<Ids>,
    /// The limit of open descriptors, soft and hard.
    pub(crate) nofile: (u64, u64),
    /// The file mode creation mask.
    pub(crate) umask: u32,
    /// Whether its descriptor 1 is a terminal that its session is to control.
    pub(crate) terminal: bool,
    /// Whether no program that it executes may gain privileges.
    pub(crate) no_new_privs: bool,
}

/// Where the program is.
#[derive(Debug)]
pub(crate) enum Image {
    /// Paths to try.
    Paths(Vec<CString>),
    /// An open file.
    Open(OwnedFd),
}

/// The numbers of an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// A child that was made; it may not have executed its program yet.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) pending: Pending,
    /// Whether it was born in the cgroup that was asked for.
    pub(crate) in_cgroup: bool,
}

/// Starts `program` with `fds` as its descriptors 0, 1, 2 and so on, and no others.
///
/// It gets a session and process group of its own, every signal at its default
/// and none blocked.
///
/// # Errors
/// As clone3(2) and pipe2(2); `InvalidInput` where one of `fds` is itself one
/// of the numbers to be filled.
pub(crate) fn spawn(
    program: Program,
    fds: &[BorrowedFd<'_>],
    cgroup: Option<BorrowedFd<'_>>,
    stacks: &mut Stacks,
) -> io::Result<Spawned> {
    let (status, report) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let count = RawFd::try_from(fds.len()).unwrap_or(RawFd::MAX);
    let mut used = vec![report.as_raw_fd()];
    used.extend(fds.iter().map(AsRawFd::as_raw_fd));
    if let Image::Open(file) = &program.image {
        used.push(file.as_raw_fd());
    }
    if used.iter().any(|&fd| fd < count) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let plan = Box::new(Plan::new(program, fds, report.as_raw_fd()));
    let stack = stacks.take();
    let made = match cgroup {
        Some(cgroup) => clone_child(&plan, &stack, Some(cgroup)).map(|made| (made, true)),
        None => clone_child(&plan, &stack, None).map(|made| (made, false)),
    };
    let ((pid, pidfd), in_cgroup) = match made {
        Ok(made) => made,
        // The cgroup was removed, or it may not be joined: the job matters more.
        Err(error) if cgroup.is_some() && !is_exhaustion(error) => {
            (clone_child(&plan, &stack, None)?, false)
        }
        Err(error) => return Err(error.into()),
    };
    Ok(Spawned {
        pid,
        pidfd,
        pending: Pending::new(status, plan, stack),
        in_cgroup,
    })
}

fn is_exhaustion(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE
    )
}

/// The signal with this number, real-time ones among them.
pub(crate) fn signal_of(number: i32) -> Option<Signal> {
    // SAFETY: the number is one that kill(2) takes. Those that libc keeps for itself
    // are only ever sent to other programs, never caught or blocked here.
    (1..=64)
        .contains(&number)
        .then(|| unsafe { Signal::from_raw_unchecked(number) })
}

/// Makes sure that children are there to be reaped: whoever started this
/// program may have left SIGCHLD ignored, and the kernel then reaps by itself.
pub(crate) fn keep_children() {
    // SAFETY: SIG_DFL runs no code of this program.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// The signals that this process ignores. Found once, as nothing changes a disposition after
/// [`keep_children`]: to ask for each child would cost 64 system calls a job.
fn ignored() -> &'static [usize] {
    static IGNORED: OnceLock<Vec<usize>> = OnceLock::new();
    IGNORED.get_or_init(|| {
        let ignores = |signal: &usize| {
            let mut action = [0_u64; 4];
            let at = (&raw mut action) as usize;
            // SAFETY: without a new action the kernel only fills in the present one, whose
            // handler comes first; libc's own call would refuse its own two signals.
            unsafe { arch::syscall(libc::SYS_rt_sigaction, [*signal, 0, at, 8, 0]) };
            action[0] == libc::SIG_IGN as u64
        };
        (1..=64).filter(ignores).collect()
    })
}

/// Everything that a child reads, as plain pointers and numbers into what `program` owns.
struct Plan {
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// `sh`, the path that is filled in by the child, and the arguments: for a
    /// file that is neither a binary nor starts with `#!`.
    script: Vec<Cell<*const libc::c_char>>,
    fds: Vec<RawFd>,
    ignored: &'static [usize],
    report: RawFd,
    program: Program,
}

const SHELL: &std::ffi::CStr = c"/bin/sh";
const EMPTY: &std::ffi::CStr = c"";

impl Plan {
    fn new(program: Program, fds: &[BorrowedFd<'_>], report: RawFd) -> Self {
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            let ends = std::iter::once(std::ptr::null());
            strings.iter().map(|s| s.as_ptr()).chain(ends).collect()
        };
        let argv = pointers(&program.argv);
        let mut script = vec![Cell::new(SHELL.as_ptr()), Cell::new(std::ptr::null())];
        script.extend(argv.iter().skip(1).copied().map(Cell::new));
        Self {
            envp: pointers(&program.envp),
            script,
            argv,
            fds: fds.iter().map(AsRawFd::as_raw_fd).collect(),
            ignored: ignored(),
            report,
            program,
        }
    }
}

/// `struct clone_args` of clone(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// No handler of the keeper's may run in a child that shares its memory.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn clone_child(
    plan: &Plan,
    stack: &Stack,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<(Pid, OwnedFd), Errno> {
    let mut pidfd: RawFd = -1;
    let mut flags = (libc::CLONE_VM | libc::CLONE_PIDFD) as u64 | CLONE_CLEAR_SIGHAND;
    if cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let args = CloneArgs {
        flags,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.start() as u64,
        stack_size: STACK_BYTES as u64,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: `plan` and `stack` outlive the child's use of them: the caller keeps both
    // until the status pipe says that the child has left. `args` is read before the call returns.
    let pid = unsafe { arch::clone3(&args, std::ptr::from_ref(plan)) };
    let pid = usize_result(pid)?;
    let pid = Pid::from_raw(i32::try_from(pid).unwrap_or(0)).ok_or(Errno::INVAL)?;
    // SAFETY: with CLONE_PIDFD and success the kernel has stored a new descriptor there.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

fn usize_result(returned: isize) -> Result<usize, Errno> {
    usize::try_from(returned).map_err(|_| Errno::from_raw_os_error(-returned as i32))
}

/// What the child does. It must not panic, allocate or touch thread-local storage.
///
/// # Safety
/// To be run on a stack of its own, with a plan that stays as it is meanwhile.
unsafe extern "C" fn child(plan: *const Plan) -> ! {
    // SAFETY: the caller's promise; every pointer that is handed to the kernel below
    // lies in the plan or on this stack.
    unsafe {
        let plan = &*plan;
        let (stage, errno) = match prepare(plan) {
            Ok(()) => (3, execute(plan)),
            Err(failed) => failed,
        };
        let mut report = [stage, 0, 0, 0, 0];
        let bytes = (errno as i32).to_le_bytes();
        let mut at = 0;
        while at < 4 {
            *report.as_mut_ptr().add(at + 1) = *bytes.as_ptr().add(at);
            at += 1;
        }
        let fd = plan.report as usize;
        arch::syscall(libc::SYS_write, [fd, report.as_ptr() as usize, 5, 0, 0]);
        loop {
            arch::syscall(libc::SYS_exit_group, [127, 0, 0, 0, 0]);
        }
    }
}

/// # Safety
/// As [`child`].
#[inline(always)]
unsafe fn prepare(plan: &Plan) -> Result<(), (u8, isize)> {
    // SAFETY: as for the caller.
    unsafe {
        let call = |stage: u8, number: libc::c_long, arguments: [usize; 5]| {
            let returned = arch::syscall(number, arguments);
            if returned < 0 {
                Err((stage, -returned))
            } else {
                Ok(())
            }
        };
        let program = &plan.program;
        // A disposition of "ignore" survives clone and exec; `sa_handler` 0 is SIG_DFL.
        let default = [0_u64; 4];
        for &signal in plan.ignored {
            let action = default.as_ptr() as usize;
            call(0, libc::SYS_rt_sigaction, [signal, action, 0, 8, 0])?;
        }
        call(0, libc::SYS_setsid, [0; 5])?;
        let mut target = 0;
        for &fd in &plan.fds {
            call(0, libc::SYS_dup3, [fd as usize, target, 0, 0, 0])?;
            target += 1;
        }
        if program.terminal {
            let request = libc::TIOCSCTTY as usize;
            call(0, libc::SYS_ioctl, [1, request, 0, 0, 0])?;
        }
        let (first, last) = (target, u32::MAX as usize);
        let cloexec = libc::CLOSE_RANGE_CLOEXEC as usize;
        call(0, libc::SYS_close_range, [first, last, cloexec, 0, 0])?;
        let limit = [program.nofile.0, program.nofile.1];
        let (resource, limit) = (libc::RLIMIT_NOFILE as usize, limit.as_ptr() as usize);
        call(0, libc::SYS_prlimit64, [0, resource, limit, 0, 0])?;
        call(0, libc::SYS_umask, [program.umask as usize, 0, 0, 0, 0])?;
        if let Some(ids) = &program.ids {
            let (gid, uid) = (ids.gid as usize, ids.uid as usize);
            let groups = [ids.groups.len(), ids.groups.as_ptr() as usize, 0, 0, 0];
            call(1, libc::SYS_setgroups, groups)?;
            call(1, libc::SYS_setresgid, [gid, gid, gid, 0, 0])?;
            call(1, libc::SYS_setresuid, [uid, uid, uid, 0, 0])?;
        }
        if program.no_new_privs {
            let option = libc::PR_SET_NO_NEW_PRIVS as usize;
            call(0, libc::SYS_prctl, [option, 1, 0, 0, 0])?;
        }
        let mut entered = Ok(());
        for cwd in &program.cwd {
            entered = call(2, libc::SYS_chdir, [cwd.as_ptr() as usize, 0, 0, 0, 0]);
            if entered.is_ok() {
                break;
            }
        }
        entered?;
        let none = 0_u64;
        let (how, none) = (libc::SIG_SETMASK as usize, (&raw const none) as usize);
        call(0, libc::SYS_rt_sigprocmask, [how, none, 0, 8, 0])
    }
}

/// Tries the places in order and returns the errno of the failure that says most.
///
/// # Safety
/// As [`child`].
#[inline(always)]
unsafe fn execute(plan: &Plan) -> isize {
    // SAFETY: as for the caller.
    unsafe {
        let (argv, envp) = (plan.argv.as_ptr() as usize, plan.envp.as_ptr() as usize);
        let paths = match &plan.program.image {
            Image::Paths(paths) => paths,
            Image::Open(file) => {
                let (fd, empty) = (file.as_raw_fd() as usize, EMPTY.as_ptr() as usize);
                let flags = libc::AT_EMPTY_PATH as usize;
                let arguments = [fd, empty, argv, envp, flags];
                return -arch::syscall(libc::SYS_execveat, arguments);
            }
        };
        let mut worst = libc::ENOENT as isize;
        for path in paths {
            let at = path.as_ptr() as usize;
            let errno = -arch::syscall(libc::SYS_execve, [at, argv, envp, 0, 0]);
            match errno as i32 {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => worst = errno,
                libc::ENOEXEC => {
                    // Its second element is always there; indexing could panic.
                    (*plan.script.as_ptr().add(1)).set(path.as_ptr());
                    let (shell, script) = (SHELL.as_ptr() as usize, plan.script.as_ptr() as usize);
                    return -arch::syscall(libc::SYS_execve, [shell, script, envp, 0, 0]);
                }
                _ => return errno,
            }
        }
        worst
    }
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use super::{CloneArgs, Plan, child};
    use std::arch::asm;

    /// Makes a child that runs [`child`]; returns its pid, or a negative errno.
    ///
    /// # Safety
    /// `args` names a stack that nobody else uses and that outlives the child, as `plan` does.
    pub(super) unsafe fn clone3(args: &CloneArgs, plan: *const Plan) -> isize {
        let returned: isize;
        // SAFETY: the parent only sees a system call. The child never leaves the block:
        // it starts with an aligned stack of its own, calls `child`, which does not return.
        unsafe {
            asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "mov rdi, r12",
                "call r13",
                "ud2",
                "2:",
                inlateout("rax") libc::SYS_clone3 as isize => returned,
                in("rdi") std::ptr::from_ref(args),
                in("rsi") size_of::<CloneArgs>(),
                in("r12") plan,
                in("r13") child as unsafe extern "C" fn(*const Plan) -> !,
                out("rcx") _,
                out("r11") _,
            );
        }
        returned
    }

    /// A system call that leaves errno alone.
    ///
    /// # Safety
    /// As the call itself.
    #[inline(always)]
    pub(super) unsafe fn syscall(number: libc::c_long, arguments: [usize; 5]) -> isize {
        let [a, b, c, d, e] = arguments;
        let returned: isize;
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") number as isize => returned,
                in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
                out("rcx") _, out("r11") _,
                options(nostack),
            );
        }
        returned
    }
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use super::{CloneArgs, Plan, child};
    use std::arch::asm;

    /// Makes a child that runs [`child`]; returns its pid, or a negative errno.
    ///
    /// # Safety
    /// `args` names a stack that nobody else uses and that outlives the child, as `plan` does.
    pub(super) unsafe fn clone3(args: &CloneArgs, plan: *const Plan) -> isize {
        let returned: isize;
        // SAFETY: the parent only sees a system call. The child never leaves the block:
        // it starts with an aligned stack of its own, calls `child`, which does not return.
        unsafe {
            asm!(
                "svc 0",
                "cbnz x0, 2f",
                "mov x29, xzr",
                "mov x0, x20",
                "blr x21",
                "brk 1",
                "2:",
                in("x8") libc::SYS_clone3,
                inlateout("x0") std::ptr::from_ref(args) => returned,
                in("x1") size_of::<CloneArgs>(),
                in("x20") plan,
                in("x21") child as unsafe extern "C" fn(*const Plan) -> !,
            );
        }
        returned
    }

    /// A system call that leaves errno alone.
    ///
    /// # Safety
    /// As the call itself.
    #[inline(always)]
    pub(super) unsafe fn syscall(number: libc::c_long, arguments: [usize; 5]) -> isize {
        let [a, b, c, d, e] = arguments;
        let returned: isize;
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "svc 0",
                in("x8") number,
                inlateout("x0") a => returned,
                in("x1") b, in("x2") c, in("x3") d, in("x4") e,
                options(nostack),
            );
        }
        returned
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the keeper starts programs on x86_64 and aarch64 only; add `arch` for yours");
