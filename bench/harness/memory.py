"""What a held session or connection costs the server.

Two figures: the PSS of the server's own processes (the job's are not the
server's), and what the kernel charges to a memory cgroup in which only this
server and its jobs run. Both are differences between nothing held and N.
"""

import os
import select
import signal
import time
from contextlib import contextmanager

from . import processes
from .processes import spawn

ROOT = "/sys/fs/cgroup/memory"


@contextmanager
def cgroup():
    """A memory cgroup (version 1) of our own; None where none can be made."""
    path = f"{ROOT}/bowline-bench-{os.getpid()}"
    try:
        os.mkdir(path)
        readable = os.path.exists(f"{path}/memory.kmem.usage_in_bytes")
    except OSError:
        yield None
        return
    try:
        yield path if readable else None
    finally:
        end_jobs(path)
        processes.wait_until("the cgroup to be empty", lambda: removed(path))


def end_jobs(path):
    """Ends what sshd and dropbear leave running when a connection ends. All of the group is ours."""
    with open(f"{path}/cgroup.procs") as members:
        for pid in members.read().split():
            if comm(pid) == "sleep":
                os.kill(int(pid), signal.SIGTERM)


def comm(pid):
    try:
        with open(f"/proc/{pid}/comm") as name:
            return name.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def removed(path):
    try:
        os.rmdir(path)
        return True
    except OSError:
        return False


def pss(peer):
    """KiB of all processes of the server."""
    total = 0
    for pid in peer.started_by():
        try:
            with open(f"/proc/{pid}/smaps_rollup") as rollup:
                total += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return total


def kernel(path):
    """KiB that the kernel holds for the cgroup."""
    with open(f"{path}/memory.kmem.usage_in_bytes") as usage:
        return int(usage.read()) / 1024


def settled(read):
    """A reading that no longer changes much: servers give back memory late."""
    last = read()
    for _ in range(20):
        time.sleep(0.25)
        now = read()
        if abs(now - last) <= max(8, now // 500):
            return now
        last = now
    return last


def per_idle(kind, what, folder, sizes):
    """KiB of PSS and of the kernel for each of N idle `sessions` or `connections`."""
    with cgroup() as group:
        peer = kind(folder)
        peer.start(group)
        try:
            return per_idle_of(peer, what, group, sizes)
        finally:
            peer.stop()


def per_idle_of(peer, what, group, sizes):
    count = sizes.idle if hasattr(peer, "idle") else sizes.idle_ssh
    if what == "sessions" and not group and not hasattr(peer, "idle"):
        raise RuntimeError("there is no cgroup to find the jobs that it leaves")
    # A few first: what a server does once is not the cost of each.
    with held(peer, what, group, 10):
        pass
    read = (lambda: pss(peer)), (lambda: kernel(group) if group else 0)
    # One is held in the first reading too: a client of the same program shares pages with the
    # server, and PSS counts those by halves.
    with held(peer, what, group, 1):
        before = [settled(one) for one in read]
    with held(peer, what, group, 1 + count):
        after = [settled(one) for one in read]
    user, system = ((late - early) / count for early, late in zip(before, after))
    return user, system if group else None, count


@contextmanager
def held(peer, what, group, count):
    """Holds that many open while the block runs; all have been let in before it begins."""
    if hasattr(peer, "idle"):
        with holder(peer, what, count):
            yield
        return
    pids, ends = [], []
    try:
        for _ in range(count):
            read, write = os.pipe()
            pids.append(spawn(idle_client(peer, what), peer.env, stdout=write))
            os.close(write)
            ends.append(read)
            # One after another: dropbear refuses many newcomers at once.
            wait_in(peer, what, read)
        yield
    finally:
        for pid in pids:
            processes.end(pid)
        for end in ends:
            os.close(end)
        if group:
            end_jobs(group)
        gone(peer)


@contextmanager
def holder(peer, what, count):
    """One client process that holds all of them."""
    stdin, let_go = os.pipe()
    read, write = os.pipe()
    pid = spawn(peer.idle(what, count), peer.env, stdin=stdin, stdout=write, stderr=2)
    os.close(stdin)
    os.close(write)
    try:
        if os.read(read, 16) != b"ready\n":
            raise RuntimeError(f"{peer.name}: the client that holds them failed")
        yield
    finally:
        os.close(let_go)
        os.close(read)
        processes.wait(pid)
        gone(peer)


def idle_client(peer, what):
    if what == "sessions":
        return peer.shell("echo here; exec sleep 100000")
    if peer.name == "dropbear":
        return peer.client(("-N",), ())
    return peer.client(("-N", "-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo here"), ())


def wait_in(peer, what, end):
    """Waits until a client is let in, and its job has said something."""
    if peer.name == "dropbear" and what == "connections":
        peer.held_before += 1
        processes.wait_until("dropbear's login", lambda: peer.logins() >= peer.held_before)
        return
    ready = select.select([end], [], [], 60)[0]
    if not ready or os.read(end, 16) == b"":
        raise RuntimeError(f"{peer.name}: a client that was to be held has ended")


def gone(peer):
    """Waits until the server has nothing left of what was held."""

    def no_jobs():
        return "sleep" not in map(comm, processes.descendants(peer.pid))

    processes.wait_until(f"{peer.name}'s jobs to end", no_jobs)
