"""A path that breaks when it is told to, and a stream that is watched across it.

Every 8 bytes of the stream say where they are, so what is lost or comes twice is
no measurement but an error. All times are of one clock, in one process.
"""

import os
import select
import signal
import socket
import struct
import threading
import time

from .processes import descendants, spawn, wait

# Sends a position every millisecond, until it is ended.
PROGRAM = """
import os, struct, time
at = 0
while True:
    os.write(1, struct.pack("<Q", at))
    at += 8
    time.sleep(0.001)
"""
# A silence that is no pause of the program.
PAUSE_MIN = 0.002
# A pause begins so near the moment that makes it.
NEAR = 0.05
# Nothing is waited for longer.
PATIENCE = 60


class Path:
    """Passes connections on to a port, for as long as the `with` block.

    One thread does everything, so that a socket can be closed at a moment of one's choice.
    """

    def __init__(self, to_port):
        self.to_port = to_port
        self.selector = select.epoll()
        self.work, self.other = {}, {}
        self.asked, self.stopper, self.over = None, None, False
        self.listener = self.bind(0)
        self.listen()
        self.port = self.listener.getsockname()[1]
        self.wake, self.waker = socket.socketpair()
        self.thread = threading.Thread(target=self.loop)

    def __enter__(self):
        self.watch(self.wake, self.obey)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ask(self.end)
        self.thread.join()

    # What is done from outside, each with the moment at which it is done.

    def cut(self, reset):
        """Ends every connection: by a reset, or in order."""
        return self.ask(lambda: self.close_all(reset))

    def silence(self):
        """Passes nothing on any more over the connections that are there; new ones work."""
        return self.ask(self.forget_all)

    def refuse(self):
        """Ends every connection by a reset; who comes is refused."""
        return self.ask(self.stop_listening)

    def drop(self):
        """Ends every connection by a reset; who comes gets no answer at all."""
        return self.ask(self.fill_queue)

    def back(self):
        """After `refuse` or `drop`: connections are accepted again."""
        return self.ask(self.listen_again)

    # What the thread does.

    def ask(self, function):
        done = threading.Event()
        self.asked = (function, done)
        self.waker.send(b"x")
        if not done.wait(PATIENCE):
            raise TimeoutError("the proxy")
        return self.moment

    def obey(self, wake):
        wake.recv(1)
        function, done = self.asked
        self.moment = time.monotonic()
        function()
        done.set()

    def loop(self):
        while not self.over:
            for descriptor, _ in self.selector.poll():
                # One that was closed a moment ago is no longer there.
                if work := self.work.get(descriptor):
                    work[1](work[0])
        for source, _ in list(self.work.values()):
            source.close()
        self.selector.close()
        self.waker.close()

    def watch(self, source, function):
        self.work[source.fileno()] = (source, function)
        self.selector.register(source, select.EPOLLIN)

    def leave(self, source):
        if self.work.pop(source.fileno(), None):
            self.selector.unregister(source)

    def bind(self, port):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        return listener

    def listen(self):
        self.listener.listen(128)
        self.watch(self.listener, self.accept)

    def accept(self, listener):
        client, _ = listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self.to_port))
        except OSError:
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.other[one] = other
            self.watch(one, self.carry)

    def carry(self, source):
        try:
            data = source.recv(65536)
            self.other[source].sendall(data)
            if not data:
                self.other[source].shutdown(socket.SHUT_WR)
                self.leave(source)
        except OSError:
            self.close(source)
            self.close(self.other[source])

    def close(self, source, reset=False):
        if source.fileno() < 0:
            return
        self.leave(source)
        if reset:
            source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        source.close()

    def close_all(self, reset):
        for source in list(self.other):
            self.close(source, reset)
        self.other.clear()

    def forget_all(self):
        # They stay open: nobody is told anything.
        for source in self.other:
            self.leave(source)

    def stop_listening(self):
        self.close(self.listener)
        # The port stays ours: whoever comes must not meet somebody else there.
        self.listener = self.bind(self.port)
        self.close_all(True)

    def fill_queue(self):
        # A queue that is full has the kernel drop the first packet of a connection (listen(2)).
        self.leave(self.listener)
        self.listener.listen(0)
        self.stopper = socket.create_connection(("127.0.0.1", self.port))
        self.close_all(True)

    def listen_again(self):
        if self.stopper:
            self.stopper.close()
            self.stopper = None
        self.listen()
        self.moment = time.monotonic()

    def end(self):
        self.close_all(True)
        self.over = True


class Stream:
    """A client that shows a stream, and when each part of it came."""

    def __init__(self, peer, port, flags=()):
        argv = peer.run(["python3", "-c", PROGRAM], port)
        argv[2:2] = flags
        (self.out, out), (self.err, err) = os.pipe(), os.pipe()
        for descriptor in (self.out, self.err):
            os.set_inheritable(descriptor, False)
        self.pid = spawn(argv, peer.env, stdout=out, stderr=err)
        os.close(out)
        os.close(err)
        self.at, self.last, self.wrong = 0, None, None
        self.pauses, self.said = [], []
        self.came = threading.Condition()
        self.threads = [threading.Thread(target=work) for work in (self.hear, self.read)]
        for thread in self.threads:
            thread.start()

    def read(self):
        rest = b""
        while data := os.read(self.out, 65536):
            now = time.monotonic()
            rest += data
            whole = len(rest) - len(rest) % 8
            for (at,) in struct.iter_unpack("<Q", rest[:whole]):
                if at != self.at:
                    self.wrong = self.wrong or f"{at} came at {self.at}"
                self.at += 8
            rest = rest[whole:]
            with self.came:
                if self.last and now - self.last > PAUSE_MIN:
                    self.pauses.append((self.last, now))
                self.last = now
                self.came.notify_all()
        with self.came:
            self.last = float("inf")
            self.came.notify_all()

    def hear(self):
        with os.fdopen(self.err, "rb") as lines:
            for line in lines:
                self.said.append((time.monotonic(), line.decode(errors="replace")))

    def until(self, moment):
        """Waits until something comes after that."""
        with self.came:
            there = self.came.wait_for(lambda: self.last and self.last > moment, PATIENCE)
        if not there or self.last == float("inf"):
            raise RuntimeError(f"the stream ended, or stands: {self.words()}")

    def end(self):
        """Ends the program; all of its stream must have come as it is."""
        os.kill(self.pid, signal.SIGTERM)
        status = wait(self.pid)
        for thread in self.threads:
            thread.join()
        os.close(self.out)
        if self.wrong or status != 128 + signal.SIGTERM:
            raise RuntimeError(f"{self.wrong or status}: {self.words()}")

    def words(self):
        return " ".join(line.strip() for _, line in self.said)

    def pause(self, moment):
        """The longest pause that begins about then: its beginning and its end."""
        near = [pause for pause in self.pauses if abs(pause[0] - moment) < NEAR]
        # There may be none that can be told from the program's own.
        return max(near, key=lambda pause: pause[1] - pause[0], default=(moment, moment))

    def noticed(self):
        """When the client said that its line is lost."""
        for moment, line in self.said:
            if "the connection is lost" in line:
                return moment
        raise RuntimeError(f"it noticed nothing: {self.words()}")


def gate_of(peer):
    """The server's network process."""
    for pid in descendants(peer.pid):
        with open(f"/proc/{pid}/cmdline", "rb") as words:
            if b"gate" in words.read().split(b"\0"):
                return pid
    raise RuntimeError("there is no gate")


def kill_gate(peer):
    gate = gate_of(peer)
    moment = time.monotonic()
    os.kill(gate, signal.SIGKILL)
    return moment
