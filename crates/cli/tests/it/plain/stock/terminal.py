# A person at a terminal: waits for each thing on the screen before typing the next.
import os, pty, sys

program, args = sys.argv[1], sys.argv[1:]
pid, screen = pty.fork()
if pid == 0:
    os.environ['TERM'] = 'xterm'
    os.execv(program, args)
seen = b''


def read():
    try:
        return os.read(screen, 1024)
    except OSError:  # the program has closed the terminal
        return b''


def wait_for(*texts):
    global seen
    for text in texts:
        while text not in seen:
            data = read()
            if not data:
                sys.exit('the end came before %r: %r' % (text, seen))
            seen += data
        seen = seen[seen.index(text) + len(text):]


wait_for(b'>>: ')
os.write(screen, b'ac\x1b[Db\r')
wait_for(b'ABC', b'>>: ')
os.write(screen, b'\x1b[A\r')
wait_for(b'ABC', b'>>: ')
os.write(screen, b'\r')
wait_for(b'\n', b'>>: ')
os.write(screen, b'quit\r')
while read():
    pass
_, status = os.waitpid(pid, 0)
print('exit', os.waitstatus_to_exitcode(status))
