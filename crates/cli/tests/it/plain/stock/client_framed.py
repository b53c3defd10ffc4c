import json, socket, struct, sys


def send(s, data):
    header = json.dumps({'total_size': len(data)}).encode('utf-8')
    s.send(struct.pack('i', len(header)))
    s.send(header)
    s.send(data)


def recv(s):
    header_size = struct.unpack('i', s.recv(4))[0]
    header = json.loads(s.recv(header_size).decode('utf-8'))
    data = bytearray()
    while len(data) < header['total_size']:
        data += s.recv(min(1024, header['total_size'] - len(data)))
    return header, data


s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
s.connect(('127.0.0.1', int(sys.argv[1])))
for cmd in sys.stdin:
    cmd = cmd.strip()
    if not cmd:
        continue
    send(s, cmd.encode('utf-8'))
    header, data = recv(s)
    print(data.decode('utf-8'))
    print('exit', header['exit'], 'signal', header['signal'],
          'sizes', header['stdout_size'], header['stderr_size'])
s.close()
