"""What is measured: each line is a name, a unit, which way is better, and a function.

A function measures one value of one peer; `measure.rounds` interleaves the
peers, so that what else the machine does hits all of them alike.
"""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

from . import processes
from .delay_proxy import DelayProxy
from .processes import spawn, timed, wait

SINK = ["dd", "bs=128k", "of=/dev/null"]


class Sizes:
    """How much of everything, at full length or quick."""

    def __init__(self, quick):
        self.rounds = 2 if quick else 5
        self.cold = 3 if quick else 20
        self.warm = {1: 20, 16: 48, 64: 128} if quick else {1: 1000, 16: 2000, 64: 4000}
        self.warm_ssh = {1: 3, 16: 16, 64: 64} if quick else {1: 60, 16: 200, 64: 400}
        self.bytes = 64 << 20 if quick else 2 << 30
        # The slow ones get less, to be done the same day.
        self.bytes_slow = 32 << 20 if quick else 512 << 20
        self.idle = 20 if quick else 1000
        self.idle_ssh = 3 if quick else 50
        self.sleeps = 20 if quick else 500
        self.sleep_rounds = 1 if quick else 3
        self.delay = 0.05
        self.delay_rounds = 1 if quick else 3


def cold(peer, sizes):
    """Milliseconds of one cold run: the median of a few, so that one value is worth something."""
    argv = peer.run(["true"])
    times = sorted(timed(argv, peer.env)[0] for _ in range(sizes.cold))
    return times[len(times) // 2] * 1000


def cold_cpu(peer, sizes):
    """Milliseconds of CPU that the client alone uses in a cold run."""
    argv = peer.run(["true"])
    return sum(timed(argv, peer.env)[1] for _ in range(sizes.cold)) / sizes.cold * 1000


def warm(parallel):
    def measure(peer, sizes):
        if hasattr(peer, "warm"):
            said, status = processes.output_of(peer.warm(sizes.warm[parallel], parallel), peer.env)
            if status != 0:
                raise RuntimeError(said)
            return json.loads(said)["per_second"]
        count = sizes.warm_ssh[parallel]
        argv = peer.run(["true"])
        begun = time.perf_counter()
        with ThreadPoolExecutor(parallel) as pool:
            for status in pool.map(lambda _: wait(spawn(argv, peer.env)), range(count)):
                if status != 0:
                    raise RuntimeError(f"{argv} came to {status}")
        return count / (time.perf_counter() - begun)

    return measure


def warm_latency(peer, sizes):
    """Milliseconds of one `true` after another over one connection, the median."""
    if hasattr(peer, "warm"):
        said, status = processes.output_of(peer.warm(sizes.warm[1], 1), peer.env)
        if status != 0:
            raise RuntimeError(said)
        return json.loads(said)["median_us"] / 1000
    argv = peer.run(["true"])
    times = sorted(timed(argv, peer.env)[0] for _ in range(sizes.warm_ssh[1]))
    return times[len(times) // 2] * 1000


def stdout(peer, sizes):
    """MB/s of remote output into a program that counts it."""
    total = amount(peer, sizes)
    argv = ["head", "-c", str(total), "/dev/zero"]
    client = peer.listening_for(argv, False) if peer.name == "socat" else peer.run(argv)
    begun = time.perf_counter()
    read, write = os.pipe()
    pid = spawn(client, peer.env, stdout=write, stderr=peer.log.fileno())
    os.close(write)
    buffer = bytearray(128 * 1024)
    got = 0
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while size := pipe.readinto(buffer):
            got += size
    took = time.perf_counter() - begun
    finish(peer, pid)
    if got != total:
        raise RuntimeError(f"{peer.name}: {got} of {total} bytes")
    return total / took / 1e6


def stdin(peer, sizes):
    """MB/s of local input into a remote program that counts it."""
    total = amount(peer, sizes)
    sink = ["sh", "-c", " ".join(SINK) + " 2>&1"]
    client = peer.listening_for(sink, True) if peer.name == "socat" else peer.shell(sink[2])
    source_read, source_write = os.pipe()
    read, write = os.pipe()
    begun = time.perf_counter()
    pid = spawn(client, peer.env, stdin=source_read, stdout=write, stderr=peer.log.fileno())
    source = ["head", "-c", str(total), "/dev/zero"]
    source = spawn(source, peer.env, stdout=source_write)
    for descriptor in (source_read, source_write, write):
        os.close(descriptor)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    took = time.perf_counter() - begun
    wait(source)
    finish(peer, pid)
    if f"{total} bytes" not in said:
        raise RuntimeError(f"{peer.name}: {said[:200]!r}")
    return total / took / 1e6


def amount(peer, sizes):
    return sizes.bytes if peer.name in ("reference", "bowline", "socat") else sizes.bytes_slow


def finish(peer, client):
    status = wait(client)
    if peer.name == "socat":
        wait(peer.pid)
        peer.pid = None
    if status != 0:
        raise RuntimeError(f"{peer.name} came to {status}")


def crowd(peer, sizes):
    """Seconds until the last of many clients of `sleep 2` has ended, and how many succeeded."""
    argv = peer.run(["sleep", "2"])
    deadline = time.monotonic() + 120
    begun = time.perf_counter()
    pids = [spawn(argv, peer.env, stderr=peer.log.fileno()) for _ in range(sizes.sleeps)]
    statuses = [wait(pid, max(1, deadline - time.monotonic())) for pid in pids]
    return time.perf_counter() - begun, statuses.count(0)


def round_trips(peer, sizes):
    """Round trips from the client's start to the first byte of output.

    Two delays, and the slope between them: the time that the two machines
    compute is the same at both and cancels out.
    """
    near, far = (first_byte(peer, delay) for delay in (0.0, sizes.delay))
    return (far - near) / (2 * sizes.delay)


def first_byte(peer, delay):
    with DelayProxy(peer.port, delay) as proxy:
        argv = peer.run(["echo", "x"], port=proxy.port)
        read, write = os.pipe()
        begun = time.perf_counter()
        pid = spawn(argv, peer.env, stdout=write, stderr=peer.log.fileno())
        os.close(write)
        with os.fdopen(read, "rb", buffering=0) as pipe:
            first = pipe.read(1)
            took = time.perf_counter() - begun
        if wait(pid) != 0 or first != b"x":
            raise RuntimeError(f"{peer.name} said {first!r} through the proxy")
    return took
