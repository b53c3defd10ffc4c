"""What the machine is and how busy others keep it."""

import os
import platform
import time
from contextlib import contextmanager

CPU_GROUPS = "/sys/fs/cgroup/cpu"


def describe():
    with open("/proc/cpuinfo") as cpus:
        models = [line.split(":", 1)[1].strip() for line in cpus if line.startswith("model name")]
    with open("/proc/meminfo") as memory:
        total = int(next(line for line in memory if line.startswith("MemTotal")).split()[1])
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": total // 1024,
        "kernel": platform.release(),
        "system": next(
            (line.split("=", 1)[1].strip().strip('"') for line in open("/etc/os-release")
             if line.startswith("PRETTY_NAME=")), "",
        ),
    }


def busy(seconds=1.0):
    """The part of all cores' time that others use while this process waits, 0 to 1."""
    idle0, all0 = cpu_times()
    time.sleep(seconds)
    idle1, all1 = cpu_times()
    return 1 - (idle1 - idle0) / max(1, all1 - all0)


def cpu_times():
    with open("/proc/stat") as stat:
        times = [int(field) for field in stat.readline().split()[1:9]]
    return times[3] + times[4], sum(times)


def wait_for_quiet(at_most_busy, seconds):
    """Waits until others use less than that; gives how busy they were in the end."""
    deadline = time.monotonic() + seconds
    while True:
        now = busy()
        if now <= at_most_busy or time.monotonic() > deadline:
            return round(now, 3)


@contextmanager
def before_others():
    """While the block runs, this process and all that it starts get the CPU before others.

    nice(1) would not do on Linux: with autogroups it counts only within a
    session, and every server here makes sessions of its own. A cpu cgroup
    (version 1) holds them all.
    """
    with open("/proc/self/cgroup") as groups:
        fields = (line.rstrip().split(":", 2) for line in groups)
        own = next(path for _, what, path in fields if "cpu" in what.split(","))
    group = f"{CPU_GROUPS}/bowline-bench-{os.getpid()}"
    os.mkdir(group)
    try:
        write(f"{group}/cpu.shares", "262144")
        write(f"{group}/cgroup.procs", str(os.getpid()))
        yield
    finally:
        write(f"{CPU_GROUPS}{own}/cgroup.procs", str(os.getpid()))
        os.rmdir(group)


def write(path, text):
    with open(path, "w") as file:
        file.write(text)
