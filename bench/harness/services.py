"""Small servers of the same services, and what is asked of them.

Each runs alone, for one load; the load is a program of one thread on the same cores. The
servers of `bowline` are a service on the library (`upper`) and `bowline plain serve`.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from .peers import TARGET, USER, Bowline, which

PROGRAM = str(TARGET / "release/examples/services")

PYTHON_UPPER = r"""
import socketserver, sys, threading
class Upper(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(1024):
            self.request.sendall(data.upper())
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024
with Server(("127.0.0.1", 0), Upper) as server:
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
"""

PYTHON_EXEC = r"""
import json, socketserver, struct, subprocess, sys, threading
class Exec(socketserver.BaseRequestHandler):
    def handle(self):
        while command := self.request.recv(1024):
            done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            output = done.stdout + done.stderr
            header = json.dumps({"total_size": len(output)}).encode()
            self.request.sendall(struct.pack("i", len(header)) + header + output)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024
with Server(("127.0.0.1", 0), Exec) as server:
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
"""

PYTHON_TIME = r"""
import socket, struct, sys, threading, time
def now():
    return int((time.time() + 2208988800) * 2**32)
def serve():
    while True:
        packet, peer = server.recvfrom(1024)
        received = now()
        sent = struct.unpack_from("!Q", packet, 40)[0]
        head = bytes([0x24, 10, 0, 0xec]) + packet[4:16] + bytes(8)
        server.sendto(head + struct.pack("!QQQ", sent, received, now()), peer)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
threading.Thread(target=serve, daemon=True).start()
sys.stdin.read()
"""

EXEC = ["exec", "--framing", "json", "--listen", "tcp://127.0.0.1:0"]
EXEC += ["--user", USER] if os.geteuid() == 0 else []


def plain(*argv):
    return [Bowline.program, "plain", "serve", *argv]


# Service and peer: the program, which prints its port or address as its first line.
SERVERS = {
    ("upper", "python"): [sys.executable, "-c", PYTHON_UPPER],
    ("upper", "tokio"): [PROGRAM, "serve", "upper", "tokio"],
    ("upper", "bowline"): [PROGRAM, "serve", "upper", "net"],
    ("time", "python"): [sys.executable, "-c", PYTHON_TIME],
    ("time", "tokio"): [PROGRAM, "serve", "time", "tokio"],
    ("time", "chronyd"): None,
    ("time", "bowline"): plain("time", "--local-stratum", "10", "--listen", "udp://127.0.0.1:0"),
    ("exec", "python"): [sys.executable, "-c", PYTHON_EXEC],
    ("exec", "tokio"): [PROGRAM, "serve", "exec", "tokio"],
    ("exec", "bowline"): plain(*EXEC),
}


class Started:
    """A program that runs until its stdin is closed or it is told to end, and its first line."""

    def __init__(self, argv):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL,
                                        text=True)
        self.line = self.process.stdout.readline().strip()
        if not self.line:
            raise RuntimeError(f"{argv[0]} did not come up")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        if self.process.args[0] == Bowline.program:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)
        self.process.stdout.close()

    @property
    def port(self):
        return self.line.rsplit(":", 1)[-1]

    def pss_bytes(self):
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Pss:\s+(\d+) kB", text, re.M).group(1)) * 1024


@contextmanager
def serving(service, peer):
    """The port of a server that runs while the block does."""
    if peer == "chronyd":
        with chronyd() as port:
            yield port
        return
    with Started(SERVERS[service, peer]) as server:
        yield server.port


@contextmanager
def chronyd():
    """One that serves this machine's clock on loopback and sets nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="bowline-bench-") as folder:
        conf = Path(folder) / "chrony.conf"
        conf.write_text(
            f"port {port}\nbindaddress 127.0.0.1\nallow 127.0.0.1\nlocal stratum 10\n"
            f"cmdport 0\nbindcmdaddress /\npidfile {folder}/pid\n"
        )
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        argv = [which("chronyd"), "-d", "-x", "-U", "-f", str(conf)]
        process = subprocess.Popen(argv, **quiet)
        try:
            wait_for_ntp(port)
            yield str(port)
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait_for_ntp(port):
    deadline = time.monotonic() + 10
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect(("127.0.0.1", port))
        asker.settimeout(0.1)
        while True:
            try:
                asker.send(b"\x23" + bytes(39) + b"\1" * 8)
                asker.recv(1024)
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError("chronyd does not answer") from error
                # A refused port is said at once, so this is what keeps from spinning.
                time.sleep(0.02)


def rate(service, peer, *numbers):
    """Replies a second under a load of so many (see examples/services)."""
    with serving(service, peer) as port:
        argv = [PROGRAM, "load", service, port, *map(str, numbers)]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        return int(done.stdout)


def idle_kib(peer, connections):
    """What the server grows by with each connection that has had one answer (PSS)."""
    with Started(SERVERS["upper", peer]) as server:
        # What the first connections of a process cost once is not theirs.
        with Started([PROGRAM, "idle", server.port, "10"]):
            before = server.pss_bytes()
            with Started([PROGRAM, "idle", server.port, str(connections)]):
                return (server.pss_bytes() - before) / connections / 1024
