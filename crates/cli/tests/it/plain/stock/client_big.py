# Receives without adding bytes to bytes, which is quadratic.
import hashlib, json, socket, struct, sys

port, framing, cmd = int(sys.argv[1]), sys.argv[2], sys.argv[3]
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
s.connect(('127.0.0.1', port))
s.send(cmd.encode('utf-8'))
if framing == 'ready':
    total = int(s.recv(1024))
    s.send(b'ready')
elif framing == 'len4':
    total = struct.unpack('i', s.recv(4))[0]
else:
    header_size = struct.unpack('i', s.recv(4))[0]
    header = json.loads(s.recv(header_size))
    total = header['total_size']
md5 = hashlib.md5()
got = 0
while got < total:
    res = s.recv(65536)
    md5.update(res)
    got += len(res)
print(got, md5.hexdigest())
s.close()
