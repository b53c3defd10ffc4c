# Many clients at once, each with a connection of its own and two commands.
import json, socket, struct, sys, threading

port, count = int(sys.argv[1]), int(sys.argv[2])
wrong = []
all_connected = threading.Barrier(count)


def ask(s, cmd):
    s.send(cmd.encode('utf-8'))
    header_size = struct.unpack('i', s.recv(4))[0]
    total = json.loads(s.recv(header_size))['total_size']
    data = b''
    while len(data) < total:
        data += s.recv(1024)
    return data.decode('utf-8')


def client(number):
    s = socket.create_connection(('127.0.0.1', port))
    all_connected.wait()
    for turn in range(2):
        got = ask(s, f'echo client {number} turn {turn}')
        if got != f'client {number} turn {turn}\n':
            wrong.append(got)
    s.close()


threads = [threading.Thread(target=client, args=(n,)) for n in range(count)]
for t in threads:
    t.start()
for t in threads:
    t.join()
print('wrong', wrong)
