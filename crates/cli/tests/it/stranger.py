"""A client of bowline that was written from PROTOCOL.md alone.

It shares no code with bowline: a server that it can talk to speaks what the
document says. Usage: stranger.py SOCKET USER KEY [MINOR]. It prints what it has seen to
work, a line each, and fails with a traceback where the document is not kept.
Without MINOR it is a client of the time before there were minors.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading

STDIN, STDOUT, STDERR = 0x01, 0x02, 0x03
HELLO, AUTH, GRANTED, REFUSED = 0x10, 0x11, 0x12, 0x13
START, STARTED, ATTACH, SIGNAL, RESIZE, WINDOW, EXIT, FORGET, LIST, JOBS = range(0x20, 0x2A)
GAP = 0x2A
PING, PONG, BYE = 0x30, 0x31, 0x3F
END = 1
FIRST_WINDOW = 262144
PAYLOAD_MAX = 65536


def frame(kind, channel=0, header=None, payload=b"", flags=0):
    text = b"" if header is None else json.dumps(header).encode()
    return struct.pack("<BBHII", kind, flags, len(text), channel, len(payload)) + text + payload


def proof_by_key(nonce, user, key):
    """Section 8: five fields, signed by a stock ssh-keygen."""
    fields = [b"publickey", b"server-nonce", nonce, user.encode(), b"bowline/1"]
    message = b"".join(struct.pack("<I", len(field)) + field for field in fields)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "message")
        with open(path, "wb") as file:
            file.write(message)
        sign = ["ssh-keygen", "-q", "-Y", "sign", "-n", "auth@bowline", "-f", key, path]
        subprocess.run(sign, check=True, stderr=subprocess.DEVNULL)
        with open(path + ".sig") as file:
            lines = [line.strip() for line in file if "-----" not in line]
    return {"type": "publickey", "sshsig": "".join(lines)}


class Connection:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(60)
        self.socket.connect(path)
        kind, _, channel, hello, _ = self.receive()
        assert (kind, channel) == (HELLO, 0) and hello["protocol"] == "bowline/1"
        self.nonce = bytes.fromhex(hello["nonce"])
        assert len(self.nonce) == 32
        self.next_channel = 1

    def exactly(self, count):
        data = bytearray()
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError("the server closed the connection")
            data += part
        return bytes(data)

    def receive(self):
        kind, flags, header_len, channel, payload_len = struct.unpack("<BBHII", self.exactly(12))
        assert payload_len <= PAYLOAD_MAX and header_len <= 16372
        header = json.loads(self.exactly(header_len)) if header_len else None
        return kind, flags, channel, header, self.exactly(payload_len)

    def send(self, *frames):
        self.socket.sendall(b"".join(frames))

    def authenticate(self, user, proofs, minor=None):
        hello = {"protocol": "bowline/1", "software": "a stranger", "of a later version": [1]}
        if minor is not None:
            hello["minor"] = minor
        self.send(frame(HELLO, 0, hello), frame(AUTH, 0, {"user": user, "proofs": proofs}))

    def start(self, argv, env=(), cwd=None, parts=None, **more):
        """Gives the channel and the frames that start a job."""
        channel = self.next_channel
        self.next_channel += 1
        strings = list(argv) + list(env) + ([cwd] if cwd else [])
        payload = b"".join(string + b"\0" for string in strings)
        header = {"job": os.urandom(16).hex(), "args": len(argv), "vars": len(env)}
        header.update({"cwd": cwd is not None, "bytes": len(payload)}, **more)
        size = parts or PAYLOAD_MAX
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
        frames = [
            frame(START, channel, None if at else header, piece, END if at == len(pieces) - 1 else 0)
            for at, piece in enumerate(pieces)
        ]
        return channel, header["job"], b"".join(frames)

    def finish(self, channel, stdin=None, already=0):
        """Sends stdin within its window, takes all output, and gives it with the outcome."""
        output = {STDOUT: bytearray(), STDERR: bytearray()}
        ended, limit, sent = set(), FIRST_WINDOW, already
        started = False
        while True:
            while stdin is not None and sent < min(limit, len(stdin)):
                piece = stdin[sent : min(limit, len(stdin), sent + PAYLOAD_MAX)]
                sent += len(piece)
                self.send(frame(STDIN, channel, None, piece, END if sent == len(stdin) else 0))
            kind, flags, at, header, payload = self.receive()
            assert at == channel, (kind, at)
            if kind in output:
                assert started and kind not in ended
                output[kind] += payload
                if flags & END:
                    ended.add(kind)
                else:
                    name = "stdout" if kind == STDOUT else "stderr"
                    offset = len(output[kind])
                    window = {"stream": name, "acked": offset, "limit": offset + FIRST_WINDOW}
                    self.send(frame(WINDOW, channel, window))
            elif kind == STARTED:
                assert not started and header["pid"] > 0
                started = True
            elif kind == WINDOW:
                assert header["stream"] == "stdin" and header["acked"] <= sent
                limit = header["limit"]
            elif kind in (EXIT, REFUSED):
                if kind == EXIT:
                    ends = (header["stdout"], header["stderr"])
                    assert ends == tuple(len(data) for data in output.values())
                return header, bytes(output[STDOUT]), bytes(output[STDERR])
            else:
                raise AssertionError(f"kind {kind:#x} on a job's channel")

    def run(self, argv, stdin=b"", **more):
        channel, _, start = self.start(argv, null_stdin=not stdin, **more)
        self.send(start)
        return self.finish(channel, stdin or None)


def granted(connection):
    kind, _, channel, header, _ = connection.receive()
    assert (kind, channel) == (GRANTED, 0), (kind, header)
    return header["user"]


def of_minor(path, user, minor):
    connection = Connection(path)
    connection.authenticate(user, [{"type": "peer"}], minor)
    granted(connection)
    return connection


def main(path, user, key, minor=None):
    minor = None if minor is None else int(minor)
    one_flight(path, user)
    by_key(path, user, key)
    connection = of_minor(path, user, minor)
    for check in (exact, outcomes, large, signals, others, asked, many):
        check(connection)
    connection.send(frame(BYE, 0, {}))
    dropped(path, user, minor)
    refused(path, user)


def one_flight(path, user):
    connection = Connection(path)
    channel, _, start = connection.start([b"cat"])
    hello = frame(HELLO, 0, {"protocol": "bowline/1"})
    auth = frame(AUTH, 0, {"user": user, "proofs": [{"type": "peer"}]})
    connection.send(hello, auth, start, frame(STDIN, channel, None, b"early", END))
    assert granted(connection) == user
    outcome, out, err = connection.finish(channel, already=5)
    assert (outcome["outcome"], outcome["code"], out, err) == ("exited", 0, b"early", b"")
    assert outcome["stdin"] == 5
    print("hello, auth, start and stdin in one flight")


def by_key(path, user, key):
    connection = Connection(path)
    wrong = {"type": "secret", "mac": "00" * 32}
    connection.authenticate(user, [wrong, proof_by_key(connection.nonce, user, key)])
    assert granted(connection) == user
    assert connection.run([b"echo", b"in"])[1] == b"in\n"
    print("a proof by ssh-keygen, behind one that is not good")


def exact(connection):
    odd = [b"a b", b"'\"$*", b"line\nline", b"\xff\xfe", b"", b"x" * 100_000]
    script = b"import os,sys;sys.stdout.buffer.write(b'\\0'.join(os.fsencode(a) for a in sys.argv[1:]))"
    _, out, _ = connection.run([b"python3", b"-c", script, *odd], parts=30_000)
    assert out.split(b"\0") == odd
    _, out, _ = connection.run([b"sh", b"-c", b"pwd; echo $A"], env=[b"A=b=c"], cwd=b"/")
    assert out == b"/\nb=c\n"
    print("arguments, variables and directory as bytes, a start in four frames")


def outcomes(connection):
    def of(*argv, **more):
        return connection.run(list(argv), **more)[0]

    assert (of(b"sh", b"-c", b"exit 7")["outcome"], of(b"sh", b"-c", b"exit 7")["code"]) == ("exited", 7)
    killed = of(b"sh", b"-c", b"kill -9 $$")
    assert (killed["outcome"], killed["signal"]) == ("signaled", 9)
    missing = of(b"/no/such/program")
    assert (missing["outcome"], missing["code"], missing["error"]) == ("not_started", 127, "not_found")
    assert of(b"true", cwd=b"/no/such/folder")["code"] == 125
    late = of(b"sleep", b"100", timeout_ms=100)
    assert late["outcome"] == "timed_out"
    shell = connection.run([b"exit 3"], shell=True)[0]
    assert (shell["outcome"], shell["code"]) == ("exited", 3)
    print("exited, signaled, not_started, timed_out")


def large(connection):
    data = os.urandom(3_000_000)
    outcome, out, err = connection.run([b"tee", b"/dev/stderr"], data)
    assert out == data and err == data and outcome["stdin"] == len(data)
    print("windows of all three streams")


def signals(connection):
    channel, _, start = connection.start([b"sh", b"-c", b"trap 'echo got; exit 5' USR1; echo up; while :; do sleep 0.1; done"])
    connection.send(start, frame(RESIZE, channel, {"cols": 80, "rows": 24}))
    seen = b""
    while not seen.endswith(b"up\n"):
        kind, _, _, _, payload = connection.receive()
        assert kind in (STARTED, STDOUT)
        seen += payload
    connection.send(frame(SIGNAL, channel, {"signal": 10}))
    out = b""
    while True:
        kind, _, at, header, payload = connection.receive()
        assert at == channel
        if kind == STDOUT:
            out += payload
        elif kind == EXIT:
            break
    assert out == b"got\n" and header["code"] == 5
    # Late, not wrong.
    connection.send(
        frame(STDIN, channel, None, b"late"),
        frame(SIGNAL, channel, {"signal": 10}),
        frame(WINDOW, channel, {"stream": "stdout", "acked": 0, "limit": 0}),
        frame(PING, 0, {"id": 3}),
    )
    kind, _, _, header, _ = connection.receive()
    assert (kind, header) == (PONG, {"id": 3})
    print("a signal, and what comes late")


def others(connection):
    channel, job, start = connection.start([b"sleep", b"1000"], null_stdin=True)
    connection.send(start)
    kind, _, _, _, _ = connection.receive()
    assert kind == STARTED
    connection.send(frame(LIST, 0, {}))
    kind, _, _, header, _ = connection.receive()
    assert kind == JOBS and not header["more"]
    rows = [row for row in header["jobs"] if row["job"] == job]
    assert len(rows) == 1 and rows[0]["command"] == "sleep 1000" and rows[0].get("outcome") is None
    connection.send(frame(SIGNAL, 0, {"signal": 15, "tree": True, "job": job[:12]}))
    answers = {}
    while len(answers) < 2:
        kind, _, at, header, _ = connection.receive()
        if kind in (JOBS, EXIT):
            answers[kind] = (at, header)
    assert [row["job"] for row in answers[JOBS][1]["jobs"]] == [job]
    assert answers[EXIT][0] == channel and answers[EXIT][1]["outcome"] == "cancelled"
    print("list, and a signal to a job by its name")


def asked(connection):
    channel = connection.next_channel
    connection.next_channel += 1
    header = {"job": os.urandom(16).hex(), "args": 2, "bytes": 2}
    connection.send(frame(START, channel, header, b"x\0", END))
    kind, _, at, header, _ = connection.receive()
    assert (kind, at, header["code"]) == (REFUSED, channel, "bad_start")
    assert connection.run([b"echo", b"on"])[1] == b"on\n"
    print("a start is refused and the connection goes on")


def many(connection):
    """More than the server holds answers for: it pauses, and goes on as they are read."""
    count = 60_000
    pings = b"".join(frame(PING, 0, {"id": number}) for number in range(count))
    sender = threading.Thread(target=connection.send, args=(pings,))
    sender.start()
    for number in range(count):
        kind, _, _, header, _ = connection.receive()
        assert (kind, header) == (PONG, {"id": number})
    sender.join()
    print("60,000 pings in one flight")


def dropped(path, user, minor):
    """Output that is kept no more: of a job that somebody of minor 1 has left there."""
    total = sum(len(str(number)) + 1 for number in range(1, 300_001))
    for at_once in (True, False):
        script = b"echo up; read x; seq 300000" if at_once else b"seq 300000"
        owner = of_minor(path, user, 1)
        argv = [b"sh", b"-c", script]
        _, job, start = owner.start(argv, detach=True, spool="drop_oldest", spool_bytes=1000)
        owner.send(start)
        assert owner.receive()[0] == STARTED
        nothing = {"job": job, "stdout": None, "stderr": None, "stdin": False}
        watcher = of_minor(path, user, 1)
        watcher.send(frame(ATTACH, 1, nothing))
        assert watcher.receive()[0] == STARTED
        reader = of_minor(path, user, minor)
        if at_once:
            # It is there when the bytes are dropped, and has room for a part of them.
            reader.send(frame(ATTACH, 1, {"job": job}))
            kind, _, _, _, _ = reader.receive()
            assert kind == STARTED
            kind, _, _, _, first = reader.receive()
            assert (kind, first) == (STDOUT, b"up\n")
            reader.send(frame(STDIN, 1, None, b"go\n", END))
        kind, _, _, outcome, _ = watcher.receive()
        assert (kind, outcome["code"]) == (EXIT, 0)
        end = outcome["stdout"]
        assert end == total + (3 if at_once else 0)
        if not at_once:
            reader.send(frame(ATTACH, 1, {"job": job}))
        seen, skipped = rest_of(reader, 3 if at_once else 0)
        if minor:
            assert seen == end and skipped > 0
        else:
            assert (seen, skipped) == ("output_lost", 0)
        owner.socket.close()
    print("what is dropped is told to whom can hear it, and refused to others")


def rest_of(reader, offset):
    """The offset behind the last byte or the code of the refusal, and how much was skipped."""
    skipped = 0
    while True:
        kind, _, _, header, payload = reader.receive()
        if kind == REFUSED:
            return header["code"], skipped
        if kind == EXIT:
            assert header["stdout"] == offset
            return offset, skipped
        if kind == STARTED and header.get("stdout") is not None:
            skipped += header["stdout"] - offset
            offset = header["stdout"]
        elif kind == GAP and header["stream"] == "stdout":
            assert header["offset"] > offset
            skipped += header["offset"] - offset
            offset = header["offset"]
        elif kind == STDOUT:
            offset += len(payload)
        if kind in (STDOUT, GAP):
            window = {"stream": "stdout", "acked": offset, "limit": offset + FIRST_WINDOW}
            reader.send(frame(WINDOW, 1, window))


def refused(path, user):
    def ends(after_grant, *frames):
        connection = Connection(path)
        if after_grant:
            connection.authenticate(user, [{"type": "peer"}])
            granted(connection)
        connection.send(*frames)
        kind, _, channel, header, _ = connection.receive()
        assert (kind, channel) == (REFUSED, 0), kind
        connection.socket.shutdown(socket.SHUT_WR)
        try:
            connection.receive()
        except (EOFError, ConnectionResetError):
            return header["code"]
        raise AssertionError("the connection goes on")

    hello = frame(HELLO, 0, {"protocol": "bowline/1"})
    no_proof = {"user": user, "proofs": [{"type": "secret", "mac": "00" * 32}]}
    assert ends(False, hello, frame(AUTH, 0, no_proof)) == "not_authenticated"
    for wrong in [
        hello[:1] + b"\x01" + hello[2:],
        frame(HELLO, 0, {"protocol": "bowline/9"}),
        frame(PING, 0, {"id": 1}),
        struct.pack("<BBHII", HELLO, 0, 16000, 0, 1000),
    ]:
        assert ends(False, wrong) == "protocol_error"
    for wrong in [
        b"\x40" + bytes(11),
        frame(STDOUT, 1, None, b"x"),
        frame(PING, 0, {}),
        struct.pack("<BBHII", STDIN, 0, 0, 1, PAYLOAD_MAX + 1),
        frame(FORGET, 7, {"job": "00" * 16}),
    ]:
        assert ends(True, wrong) == "protocol_error"
    print("errors end the connection, with a code")


if __name__ == "__main__":
    main(*sys.argv[1:])
