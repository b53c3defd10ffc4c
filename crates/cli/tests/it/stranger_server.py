"""A server of bowline that was written from PROTOCOL.md alone, of an old minor.

It shares no code with bowline. Usage: stranger_server.py SOCKET MINOR [CUT]. It serves whoever may
open the socket, and takes no key in a header that its minor does not know: a client must not send one
whose meaning matters. With CUT the first connection breaks when so many bytes of stdout were sent
over it. It prints a line for each frame that opens a channel, and for what is wrong.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

STDIN, STDOUT, STDERR = 0x01, 0x02, 0x03
HELLO, AUTH, GRANTED, REFUSED = 0x10, 0x11, 0x12, 0x13
START, STARTED, ATTACH, SIGNAL, RESIZE, WINDOW, EXIT, FORGET, LIST, JOBS = range(0x20, 0x2A)
PING, PONG, BYE = 0x30, 0x31, 0x3F
END = 1
FIRST_WINDOW = 262144
PAYLOAD_MAX = 65536

START_KEYS = {"job", "args", "vars", "cwd", "bytes", "shell", "null_stdin", "timeout_ms", "wait_output"}
START_KEYS_1 = {"on_disconnect", "grace_ms", "detach", "spool", "spool_bytes", "pty", "login"}
ATTACH_KEYS = {"job", "stdout", "stderr"}
ATTACH_KEYS_1 = {"from", "since_ms", "stdin"}


def say(*words):
    print(*words, flush=True)


def frame(kind, channel=0, header=None, payload=b"", flags=0):
    text = b"" if header is None else json.dumps(header).encode()
    return struct.pack("<BBHII", kind, flags, len(text), channel, len(payload)) + text + payload


class Job:
    """A program, everything that it has written, and whom that is sent to."""

    def __init__(self, header, argv):
        self.id = header["job"]
        self.argv = argv
        self.changed = threading.Condition()
        self.connection = None
        self.sent, self.limit = [0, 0], [FIRST_WINDOW] * 2
        self.written, self.ended = [bytearray(), bytearray()], [False, False]
        self.taken, self.stdin_closed = 0, header.get("null_stdin", False)
        self.status = None
        stdin = subprocess.DEVNULL if self.stdin_closed else subprocess.PIPE
        pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(argv, start_new_session=True, **pipes)
        self.started_ms = int(time.time() * 1000)
        for stream, pipe in enumerate((self.process.stdout, self.process.stderr)):
            threading.Thread(target=self.read, args=(stream, pipe), daemon=True).start()
        threading.Thread(target=self.tell, daemon=True).start()

    def read(self, stream, pipe):
        while True:
            data = os.read(pipe.fileno(), PAYLOAD_MAX)
            with self.changed:
                self.written[stream] += data
                self.ended[stream] = not data
                self.changed.notify_all()
            if not data:
                return

    def begin(self, connection, channel, offsets):
        with self.changed:
            self.connection, self.channel = connection, channel
            self.sent, self.limit = list(offsets), [at + FIRST_WINDOW for at in offsets]
            self.told_end = [False, False]
            started = {"pid": self.process.pid, "unix_ms": self.started_ms, "stdin": self.taken}
            if connection.minor >= 1:
                started["stdin_closed"] = self.stdin_closed
            connection.send(frame(STARTED, channel, started))
            self.changed.notify_all()

    def leave(self, connection):
        with self.changed:
            if self.connection is connection:
                self.connection = None

    def next_frame(self):
        """What can be sent now, as a frame; None where nothing can."""
        for stream, kind in enumerate((STDOUT, STDERR)):
            at, written = self.sent[stream], self.written[stream]
            data = bytes(written[at : min(self.limit[stream], at + PAYLOAD_MAX)])
            end = self.ended[stream] and at + len(data) == len(written)
            if data or (end and not self.told_end[stream]):
                self.sent[stream] += len(data)
                self.told_end[stream] = end
                return frame(kind, self.channel, None, data, END if end else 0)
        if all(self.told_end):
            code = self.process.wait()
            exit = {"outcome": "exited", "code": code} if code >= 0 else {"outcome": "signaled", "signal": -code}
            exit.update(stdin=self.taken, stdout=self.sent[0], stderr=self.sent[1])
            self.status = exit
            return frame(EXIT, self.channel, exit)
        return None

    def tell(self):
        while True:
            with self.changed:
                now = None
                while now is None:
                    now = self.next_frame() if self.connection and not self.status else None
                    if now is None:
                        self.changed.wait()
                connection, stdout = self.connection, self.sent[0]
            connection.send(now)
            if self.status:
                return
            if connection.cut is not None and stdout >= connection.cut:
                say("cut")
                connection.close()

    def input(self, data, end):
        self.process.stdin.write(data)
        self.process.stdin.flush()
        self.taken += len(data)
        if end:
            self.process.stdin.close()
            self.stdin_closed = True
        limit = self.taken + FIRST_WINDOW
        return {"stream": "stdin", "acked": self.taken, "limit": limit}

    def row(self):
        row = {"job": self.id, "user": "", "source": "", "pid": self.process.pid, "unix_ms": self.started_ms}
        row["command"] = b" ".join(self.argv).decode(errors="replace")[:512]
        return row


class Connection:
    jobs = {}

    def __init__(self, peer, minor, cut):
        self.socket, self.minor, self.cut = peer, minor, cut
        self.lock = threading.Lock()
        self.channels = {}

    def send(self, *frames):
        try:
            with self.lock:
                self.socket.sendall(b"".join(frames))
        except OSError:
            pass

    def close(self):
        self.cut = None
        for job in self.jobs.values():
            job.leave(self)
        self.socket.shutdown(socket.SHUT_RDWR)

    def exactly(self, count):
        data = bytearray()
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def receive(self):
        kind, flags, header_len, channel, payload_len = struct.unpack("<BBHII", self.exactly(12))
        assert payload_len <= PAYLOAD_MAX and header_len <= 16372
        header = json.loads(self.exactly(header_len)) if header_len else None
        return kind, flags, channel, header, self.exactly(payload_len)

    def known(self, header, keys, keys_1):
        known = keys | keys_1 if self.minor >= 1 else keys
        assert set(header) <= known, f"not of minor {self.minor}: {set(header) - known}"

    def serve(self):
        hello = {"protocol": "bowline/1", "software": "a strange server", "nonce": os.urandom(32).hex()}
        if self.minor > 0:
            hello["minor"] = self.minor
        self.send(frame(HELLO, 0, hello))
        kind, _, _, header, _ = self.receive()
        if kind == BYE:
            return
        assert kind == HELLO and header["protocol"] == "bowline/1"
        kind, _, _, header, _ = self.receive()
        assert kind == AUTH and {"type": "peer"} in header["proofs"]
        self.send(frame(GRANTED, 0, {"user": header["user"]}))
        while True:
            if self.one(*self.receive()):
                return

    def one(self, kind, flags, channel, header, payload):
        job = self.channels.get(channel)
        if kind == START:
            self.start(flags, channel, header, payload)
        elif kind == ATTACH:
            self.attach(channel, header)
        elif kind == STDIN and not job.status:
            self.send(frame(WINDOW, channel, job.input(payload, flags & END)))
        elif kind == WINDOW and job:
            with job.changed:
                job.limit[0 if header["stream"] == "stdout" else 1] = header["limit"]
                job.changed.notify_all()
        elif kind == SIGNAL and channel == 0:
            found = [job for id, job in self.jobs.items() if id.startswith(header["job"]) and not job.status]
            for job in found if len(found) == 1 else []:
                os.killpg(job.process.pid, header["signal"])
            self.send(frame(JOBS, 0, {"jobs": [job.row() for job in found]}))
        elif kind == SIGNAL and not job.status:
            os.killpg(job.process.pid, signal.SIGKILL if header.get("tree") else header["signal"])
        elif kind == LIST:
            running = [job.row() for job in self.jobs.values() if not job.status]
            self.send(frame(JOBS, 0, {"jobs": running}))
        elif kind == PING:
            self.send(frame(PONG, 0, header))
        elif kind == BYE:
            return True
        else:
            assert kind in (STDIN, WINDOW, SIGNAL, RESIZE, FORGET), f"kind {kind:#x}"
        return False

    def start(self, flags, channel, header, payload):
        self.known(header, START_KEYS, START_KEYS_1)
        while not flags & END:
            kind, flags, at, more, part = self.receive()
            assert (kind, at, more) == (START, channel, None)
            payload += part
        assert len(payload) == header["bytes"]
        strings = payload.split(b"\0")[:-1]
        argv = strings[: header["args"]]
        assert len(strings) == header["args"] + header.get("vars", 0) + header.get("cwd", False)
        job = self.jobs.get(header["job"]) or Job(header, argv)
        self.jobs[job.id] = self.channels[channel] = job
        say("start", header.get("on_disconnect", "kill"))
        job.begin(self, channel, (0, 0))

    def attach(self, channel, header):
        self.known(header, ATTACH_KEYS, ATTACH_KEYS_1)
        say("attach", header["stdout"], header["stderr"])
        job = self.jobs[header["job"]]
        self.channels[channel] = job
        job.begin(self, channel, (header["stdout"], header["stderr"]))


def serve(connection):
    try:
        connection.serve()
    except (EOFError, ConnectionError):
        pass
    except Exception as error:
        say("wrong", repr(error))
        connection.socket.close()
    if connection.minor == 0:
        # Nothing else was asked for: a job ends with its connection.
        for job in connection.channels.values():
            if not job.status:
                os.killpg(job.process.pid, signal.SIGKILL)


def main(path, minor, cut=None):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(100)
    say("listening")
    cut = None if cut is None else int(cut)
    while True:
        peer, _ = listener.accept()
        connection, cut = Connection(peer, int(minor), cut), None
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
