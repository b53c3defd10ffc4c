"""Copies of files and trees by each tool, over the servers of `peers`.

Every tool copies from this machine to the server, which is this machine too, in one folder that should lie
in memory. What was copied is compared before its time counts.
"""

import filecmp
import os
import shlex
import shutil
import time
from pathlib import Path

from . import processes
from .delay_proxy import DelayProxy

TREE_FILES = 4096


class Sizes:
    """How much of everything, at full length or quick."""

    def __init__(self, quick):
        self.rounds = 1 if quick else 5
        self.bytes = 64 << 20 if quick else 2 << 30
        self.folders = 10 if quick else 100
        self.files = 20 if quick else 100
        self.delay = 0.025
        self.delay_rounds = 1 if quick else 3


class Tool:
    """A program that copies; `ssh` and `bowline` are the peers whose servers it uses."""

    def __init__(self, bowline, ssh):
        self.bowline, self.ssh = bowline, ssh
        self.env = (self.bowline if self.name == "bowline" else self.ssh).env

    needs = ()

    @property
    def port(self):
        return (self.bowline if self.name == "bowline" else self.ssh).port

    def ssh_options(self, port):
        # Without the program in front, and without the host behind.
        return self.ssh.client(self.options, (), port)[1:-1]

    options = ()


class Cp(Tool):
    """No network: the limit of what files cost."""

    name = "cp"

    def copy(self, source, to, port=None):
        return ["cp", "-r", str(source), str(to)]


class BowlineCp(Tool):
    name = "bowline"

    def copy(self, source, to, port=None):
        port = port or self.port
        self.bowline.pin(port)
        return [self.bowline.program, "cp", "-a", str(source), f"127.0.0.1:{port}:{to}"]


class Scp(Tool):
    name = "scp"
    needs = ("scp",)

    def copy(self, source, to, port=None):
        return ["scp", "-r", "-q", *self.ssh_options(port), str(source), f"bench:{to}"]


class ScpAes(Scp):
    name = "scp-aes128-gcm"
    options = ("-o", "Ciphers=aes128-gcm@openssh.com")


class Sftp(Tool):
    name = "sftp"
    needs = ("sftp",)

    def copy(self, source, to, port=None):
        text = f"put -R {shlex.quote(str(source))} {shlex.quote(str(to))}"
        options = shlex.join(self.ssh_options(port))
        return ["sh", "-c", f"echo {shlex.quote(text)} | exec sftp -q -b - {options} bench"]


class Rsync(Tool):
    name = "rsync"
    needs = ("rsync",)

    def copy(self, source, to, port=None):
        shell = shlex.join(["ssh", *self.ssh_options(port)])
        return ["rsync", "-a", "-e", shell, str(source), f"bench:{to}"]


class Tar(Tool):
    name = "tar-over-ssh"
    needs = ("tar",)

    def copy(self, source, to, port=None):
        there = f"tar -C {shlex.quote(str(to))} -xf -"
        ssh = shlex.join(["ssh", *self.ssh_options(port), "bench", there])
        here = shlex.join(["tar", "-C", str(source.parent), "-cf", "-", source.name])
        return ["sh", "-c", f"{here} | {ssh}"]


ALL = (Cp, BowlineCp, Scp, ScpAes, Sftp, Rsync, Tar)


class Field:
    """The folder in which everything is copied, and what is copied."""

    def __init__(self, folder, sizes):
        self.folder, self.sizes = Path(folder), sizes
        self.source, self.to = self.folder / "from", self.folder / "to"
        self.source.mkdir()

    def fresh(self):
        shutil.rmtree(self.to, ignore_errors=True)
        self.to.mkdir()
        return self.to

    def big(self):
        path = self.source / "big"
        if not path.exists():
            with open(path, "wb") as file:
                for _ in range(self.sizes.bytes >> 20):
                    file.write(os.urandom(1 << 20))
        return path

    def tree(self):
        root = self.source / "tree"
        if not root.exists():
            for folder in range(self.sizes.folders):
                (root / str(folder)).mkdir(parents=True)
                for name in range(self.sizes.files):
                    (root / str(folder) / str(name)).write_bytes(os.urandom(TREE_FILES))
        return root

    def touch_memory(self):
        """Writes a file as large as the one to come, and takes it away: where this is a virtual machine, the host gives
        memory to whoever needs it first, and no copy is to pay for that."""
        if self.sizes.bytes >= 1 << 30:
            piece = os.urandom(1 << 20)
            with open(self.folder / "touched", "wb") as file:
                for _ in range((self.sizes.bytes >> 20) + 512):
                    file.write(piece)
            (self.folder / "touched").unlink()

    def run(self, tool, source, port=None):
        self.touch_memory()
        begun = time.perf_counter()
        pid = processes.spawn(tool.copy(source, self.to, port), tool.env)
        status = processes.wait(pid, 1800)
        took = time.perf_counter() - begun
        if status != 0:
            raise RuntimeError(f"{tool.name} came to {status}")
        self.check(source)
        return took

    def check(self, source):
        copied = self.to / source.name
        if source.is_file():
            same = filecmp.cmp(source, copied, shallow=False)
        else:
            same = all(
                filecmp.cmp(path, copied / path.relative_to(source), shallow=False)
                for path in source.rglob("*") if path.is_file()
            )
        if not same:
            raise RuntimeError("what was copied is not what was to be copied")


def big(tool, field):
    """MB/s of one large file."""
    source = field.big()
    field.fresh()
    return (source.stat().st_size / field.run(tool, source) / 1e6,)


def tree(tool, field):
    """Seconds for a tree of small files."""
    source = field.tree()
    field.fresh()
    return (field.run(tool, source),)


def again(tool, field):
    """Seconds for the same tree where it is already."""
    source = field.tree()
    field.fresh()
    field.run(tool, source)
    return (field.run(tool, source),)


def changed(how):
    """Seconds, and bytes on the wire, for a large file that changed a little."""

    def measure(tool, field):
        source = field.big()
        field.fresh()
        old = field.to / source.name
        with open(source, "rb") as new, open(old, "wb") as file:
            how(new, file)
        # rsync and bowline both look at size and time first.
        os.utime(old, (1, 1))
        with DelayProxy(tool.port, 0) as proxy:
            return field.run(tool, source, proxy.port), proxy.bytes

    return measure


def in_the_middle(new, old):
    shutil.copyfileobj(new, old, 1 << 20)
    old.seek(old.tell() // 2)
    old.write(os.urandom(1 << 20))


def at_the_front(new, old):
    # The old file lacks the first byte of the new one.
    new.seek(1)
    shutil.copyfileobj(new, old, 1 << 20)


def delayed(tool, field):
    """Seconds for the tree over a line of 50 ms there and back."""
    source = field.tree()
    field.fresh()
    with DelayProxy(tool.port, field.sizes.delay) as proxy:
        return (field.run(tool, source, proxy.port),)
