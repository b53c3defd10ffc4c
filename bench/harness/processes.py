"""Starting, timing and ending processes.

Every process is started by posix_spawn(3), which costs a fraction of what
subprocess does, and is known by its id; nothing is ever ended by name.
"""

import os
import signal
import threading
import time

PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def environment(home):
    """What every server and client gets, and nothing else."""
    return {"PATH": PATH, "HOME": str(home), "LANG": "C", "SHELL": "/bin/sh"}


def spawn(argv, env, stdin=None, stdout=None, stderr=None, group=False):
    """Starts argv[0] from PATH; None is /dev/null, a number a descriptor. Gives the process id."""
    actions = []
    for target, source, flags in (
        (0, stdin, os.O_RDONLY),
        (1, stdout, os.O_WRONLY),
        (2, stderr, os.O_WRONLY),
    ):
        if source is None:
            actions.append((os.POSIX_SPAWN_OPEN, target, "/dev/null", flags, 0))
        elif source != target:
            actions.append((os.POSIX_SPAWN_DUP2, source, target))
    extra = {"setpgroup": 0} if group else {}
    return os.posix_spawnp(argv[0], argv, env, file_actions=actions, **extra)


def wait(pid, seconds=180):
    """The exit status (negative for a signal); a process that takes longer is killed."""
    killer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
    killer.start()
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        killer.cancel()


def timed(argv, env, stderr=None):
    """Seconds from the start to the exit, and the CPU seconds that the process used."""
    begun = time.perf_counter()
    pid = spawn(argv, env, stderr=stderr)
    _, status, usage = os.wait4(pid, 0)
    took = time.perf_counter() - begun
    status = os.waitstatus_to_exitcode(status)
    if status != 0:
        raise RuntimeError(f"{argv} came to {status}")
    return took, usage.ru_utime + usage.ru_stime


def output_of(argv, env=None):
    """Everything that a short program writes to stdout and stderr, and its status."""
    read, write = os.pipe()
    try:
        pid = spawn(argv, env or environment("/"), stdout=write, stderr=write)
    except FileNotFoundError:
        os.close(read)
        os.close(write)
        return "", 127
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    return text, wait(pid)


def end(pid, seconds=15):
    """Ends a process of ours: SIGTERM, then SIGKILL."""
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def descendants(pid):
    """The process and all below it."""
    found, rest = [], [pid]
    while rest:
        pid = rest.pop()
        found.append(pid)
        try:
            with open(f"/proc/{pid}/task/{pid}/children") as children:
                rest.extend(int(child) for child in children.read().split())
            for task in os.listdir(f"/proc/{pid}/task"):
                if task != str(pid):
                    with open(f"/proc/{pid}/task/{task}/children") as children:
                        rest.extend(int(child) for child in children.read().split())
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def wait_until(what, condition, seconds=60):
    """Waits for a thing that tells nobody when it happens."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)
