"""The servers that are measured side by side, and the command lines of their clients.

Each has keys, configuration and port of its own on loopback, all in one
temporary folder; nothing of the user's or the machine's is read or changed.
"""

import os
import shlex
import shutil
import socket
import tempfile
from pathlib import Path

from . import processes
from .processes import environment, output_of, spawn

BENCH = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", BENCH.parent / "target"))
REFERENCE = BENCH / "reference/target/release/ref"
USER = __import__("pwd").getpwuid(os.geteuid()).pw_name


def which(program):
    return shutil.which(program, path=processes.PATH)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class Peer:
    """A server with its clients. `port` may be given where a proxy stands before it."""

    name = ""

    def __init__(self, folder):
        self.home = Path(folder) / self.name
        self.home.mkdir(mode=0o711)
        self.env = environment(self.home)
        self.port = free_port()
        self.pid = None
        self.log = open(self.home / "log", "wb", buffering=0)

    @classmethod
    def missing(cls):
        """What this peer needs and the machine has not; None where nothing."""
        return next((need for need in cls.needs if not which(need)), None)

    needs = ()

    def serve(self, argv, cgroup=None):
        if cgroup:
            join = 'echo $$ > "$0"; exec "$@"'
            argv = ["sh", "-c", join, f"{cgroup}/cgroup.procs", *argv]
        self.pid = spawn(argv, self.env, stdout=self.log.fileno(), stderr=self.log.fileno())
        try:
            processes.wait_until(f"{self.name} to listen", lambda: answers(self.port))
        except TimeoutError as error:
            raise RuntimeError((self.home / "log").read_text()) from error

    def stop(self):
        if self.pid:
            processes.end(self.pid)
            self.pid = None

    def started_by(self):
        """Server processes: those that run the server's program."""
        program = os.stat(f"/proc/{self.pid}/exe")
        for pid in processes.descendants(self.pid):
            try:
                if os.path.samestat(os.stat(f"/proc/{pid}/exe"), program):
                    yield pid
            except (FileNotFoundError, ProcessLookupError):
                pass

    def shell(self, text, port=None):
        """The client's command line for a text that a shell is to run."""
        return self.run(["sh", "-c", text], port)

    def version(self):
        return ""


class Reference(Peer):
    name = "reference"

    @classmethod
    def missing(cls):
        return None if REFERENCE.exists() else str(REFERENCE)

    def start(self, cgroup=None):
        keys = str(self.home / "keys")
        output_of([str(REFERENCE), "keys", keys])
        self.serve([str(REFERENCE), "serve", keys, f"127.0.0.1:{self.port}"], cgroup)

    def client(self, mode, *rest, port=None):
        address = f"127.0.0.1:{port or self.port}"
        return [str(REFERENCE), mode, str(self.home / "keys"), address, *rest]

    def run(self, argv, port=None):
        return self.client("run", "--", *argv, port=port)

    def warm(self, count, parallel):
        return self.client("warm", str(count), str(parallel))

    def idle(self, what, count):
        return self.client("idle", what, str(count))


class Bowline(Peer):
    name = "bowline"
    program = str(TARGET / "release/bowline")
    holder = str(TARGET / "release/examples/idle")

    @classmethod
    def missing(cls):
        return None if Path(cls.program).exists() else cls.program

    def start(self, cgroup=None):
        home = self.home / "home"
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        self.env = environment(home)
        key = home / ".ssh/id_ed25519"
        make_key(key)
        grants = self.home / "authorized_keys"
        shutil.copy(key.with_suffix(".pub"), grants)
        argv = [self.program, "serve", "--listen", f"127.0.0.1:{self.port}"]
        argv += ["--state-dir", str(self.home / "state")]
        argv += ["--host-key", str(self.home / "host_key"), "--authorized-keys", str(grants)]
        if os.geteuid() == 0:
            argv += ["--allow-user", USER]
        self.serve(argv, cgroup)
        self.pinned = set()
        self.pin(self.port)

    def pin(self, port):
        if port in self.pinned:
            return
        self.pinned.add(port)
        folder = Path(self.env["HOME"]) / ".config/bowline"
        folder.mkdir(parents=True, exist_ok=True)
        key = output_of(["ssh-keygen", "-yf", str(self.home / "host_key")])[0]
        with open(folder / "known_hosts", "a") as known:
            known.write(f"[127.0.0.1]:{port} {key}")

    def run(self, argv, port=None):
        self.pin(port or self.port)
        return [self.program, "run", f"127.0.0.1:{port or self.port}", "--", *argv]

    def warm(self, count, parallel):
        argv = [self.program, "ping", f"127.0.0.1:{self.port}", "--job", "--json"]
        return argv + ["--count", str(count), "--parallel", str(parallel)]

    def idle(self, what, count):
        key = Path(self.env["HOME"]) / ".ssh/id_ed25519"
        known = Path(self.env["HOME"]) / ".config/bowline/known_hosts"
        return [self.holder, str(key), str(known), USER, f"127.0.0.1:{self.port}", what, str(count)]

    def version(self):
        return output_of([self.program, "--version"])[0].strip()


class OpenSSH(Peer):
    """OpenSSH as Debian sets its algorithms; the variants below differ in the client."""

    name = "ssh"
    needs = ("sshd", "ssh", "ssh-keygen")
    options = ()

    def start(self, cgroup=None):
        make_key(self.home / "host_key")
        make_key(self.home / "key")
        shutil.copy(self.home / "key.pub", self.home / "authorized_keys")
        if os.geteuid() == 0:
            # sshd refuses to start without it; Debian's boot makes it.
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        (self.home / "sshd_config").write_text(
            f"""Port {self.port}
ListenAddress 127.0.0.1
HostKey {self.home}/host_key
AuthorizedKeysFile {self.home}/authorized_keys
StrictModes no
PidFile none
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 2000
MaxSessions 2000
LogLevel ERROR
Subsystem sftp internal-sftp
# bash, told that sshd started it, would read what the user's own ~/.bashrc says.
SetEnv HOME={self.home}
"""
        )
        host_key = (self.home / "host_key.pub").read_text()
        (self.home / "known_hosts").write_text(f"bench {host_key}")
        self.serve([which("sshd"), "-D", "-e", "-f", str(self.home / "sshd_config")], cgroup)

    def client(self, options, words, port=None):
        fixed = {
            "HostName": "127.0.0.1",
            "Port": port or self.port,
            "User": USER,
            "HostKeyAlias": "bench",
            "IdentityFile": self.home / "key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.home / "known_hosts",
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        argv = ["ssh", "-F", "none"]
        for key, value in fixed.items():
            argv += ["-o", f"{key}={value}"]
        return [*argv, *self.options, *options, "bench", *words]

    def run(self, argv, port=None):
        return self.client((), [shlex.join(argv)], port)

    def shell(self, text, port=None):
        return self.client((), [text], port)

    def version(self):
        return output_of(["ssh", "-V"])[0].strip()


class OpenSSHCurve25519(OpenSSH):
    name = "ssh-curve25519"
    options = ("-o", "KexAlgorithms=curve25519-sha256")


class OpenSSHAes(OpenSSH):
    name = "ssh-aes128-gcm"
    options = ("-o", "Ciphers=aes128-gcm@openssh.com")


class ControlMaster(OpenSSH):
    """A master connection is opened at the start; the commands go over it."""

    name = "ssh-mux"

    def start(self, cgroup=None):
        super().start(cgroup)
        # A Unix socket's path has 108 bytes, and ssh appends to it.
        self.socket_dir = tempfile.mkdtemp(prefix="bm")
        path = f"{self.socket_dir}/s"
        master = self.client(("-M", "-N", "-S", path), ())
        self.master = spawn(master, self.env, stderr=self.log.fileno())
        self.options = ("-S", path)
        processes.wait_until("the master", lambda: os.path.exists(path))

    def stop(self):
        if self.pid:
            processes.end(self.master)
            shutil.rmtree(self.socket_dir, ignore_errors=True)
        super().stop()


class Dropbear(Peer):
    """Reads ~/.ssh/authorized_keys and nothing else, so it gets a /root of its own where it can."""

    name = "dropbear"
    needs = ("dropbear", "dbclient", "dropbearkey", "unshare")
    held_before = 0

    @classmethod
    def missing(cls):
        lacks = super().missing()
        return lacks or (None if os.geteuid() == 0 else "root, for a mount namespace")

    def start(self, cgroup=None):
        for name in ("host_key", "key"):
            output_of(["dropbearkey", "-t", "ed25519", "-f", str(self.home / name)])
        said = output_of(["dropbearkey", "-y", "-f", str(self.home / "key")])[0]
        public = next(line for line in said.splitlines() if line.startswith("ssh-ed25519"))
        root = self.home / "root"
        (root / ".ssh").mkdir(parents=True, mode=0o700)
        os.chmod(root, 0o700)
        (root / ".ssh/authorized_keys").write_text(public + "\n")
        (root / ".ssh/authorized_keys").chmod(0o600)
        argv = ["dropbear", "-F", "-E", "-s", "-r", str(self.home / "host_key")]
        argv += ["-P", str(self.home / "pid"), "-p", f"127.0.0.1:{self.port}"]
        home = os.path.expanduser(f"~{USER}")
        bind = 'mount --bind "$0" "$1"; shift; exec "$@"'
        self.serve(["unshare", "-m", "sh", "-c", bind, str(root), home, *argv], cgroup)

    def run(self, argv, port=None):
        return self.client((), [shlex.join(argv)], port)

    def shell(self, text, port=None):
        return self.client((), [text], port)

    def client(self, options, words, port=None):
        argv = ["dbclient", "-y", "-y", "-q", "-i", str(self.home / "key")]
        return [*argv, *options, "-p", str(port or self.port), f"{USER}@127.0.0.1", *words]

    def logins(self):
        return (self.home / "log").read_bytes().count(b"auth succeeded")

    def version(self):
        return output_of(["dropbear", "-V"])[0].strip()


class Socat(Peer):
    """Bytes over TCP with nobody's authentication or encryption: a landmark for throughput."""

    name = "socat"
    needs = ("socat",)
    done = None

    def start(self, cgroup=None):
        self.log.write(b"")

    def run(self, argv, port=None):
        raise NotImplementedError("socat's server is started for one command")

    def listening_for(self, argv, both_ways):
        """Starts a server for one connection to argv, and gives its client."""
        self.port = free_port()
        listen = f"TCP-LISTEN:{self.port},bind=127.0.0.1,nodelay"
        # socat has ideas of its own about quotes; a script needs none.
        script = self.home / "command"
        script.write_text(f"#!/bin/sh\nexec {shlex.join(argv)}\n")
        script.chmod(0o700)
        command = f"EXEC:{script}"
        ways = ["-t", "600"] if both_ways else ["-U"]
        server = ["socat", "-b", "131072", *ways, listen, command]
        self.pid = spawn(server, self.env, stderr=self.log.fileno())
        listening = f"0100007F:{self.port:04X} 00000000:0000 0A"
        processes.wait_until("socat", lambda: listening in open("/proc/net/tcp").read())
        connect = f"TCP:127.0.0.1:{self.port},nodelay"
        return ["socat", "-b", "131072", *ways, "-", connect]

    def version(self):
        lines = output_of(["socat", "-V"])[0].splitlines()
        return next((line for line in lines if "version" in line), "")


def make_key(path):
    said, status = output_of(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)])
    if status != 0:
        raise RuntimeError(said)


ALL = (
    Reference,
    Bowline,
    OpenSSH,
    OpenSSHCurve25519,
    OpenSSHAes,
    ControlMaster,
    Dropbear,
    Socat,
)
