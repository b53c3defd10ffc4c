import hmac, json, os, socket, struct, subprocess, sys

framing = sys.argv[1]
secret = sys.argv[2].encode('utf-8') if len(sys.argv) > 2 else None
server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(('127.0.0.1', 0))
server.listen(5)
print(server.getsockname()[1], flush=True)


def run(cmd):
    obj = subprocess.Popen(cmd, shell=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           stdin=subprocess.DEVNULL)
    return obj.communicate()


def serve(conn):
    if secret:
        msg = os.urandom(32)
        conn.sendall(msg)
        digest = hmac.new(secret, msg, 'md5').digest()
        if not hmac.compare_digest(digest, conn.recv(len(digest))):
            return
    while True:
        if framing == 'framed':
            head = conn.recv(4)
            if not head:
                break
            header = json.loads(conn.recv(struct.unpack('i', head)[0]))
            cmd = b''
            while len(cmd) < header['total_size']:
                cmd += conn.recv(1024)
        else:
            cmd = conn.recv(8096)
            if not cmd:
                break
        out, err = run(cmd.decode('utf-8'))
        size = len(out) + len(err)
        if framing == 'raw':
            conn.send(out + err)
        elif framing == 'ready':
            conn.send(str(size).encode('utf-8'))
            if conn.recv(1024) == b'ready':
                conn.sendall(out + err)
        elif framing == 'len4':
            conn.send(struct.pack('i', size))
            conn.send(out)
            conn.send(err)
        else:
            head = json.dumps({'filename': 'a.txt', 'md5': 'xxdxxx', 'total_size': size})
            conn.send(struct.pack('i', len(head)))
            conn.send(head.encode('utf-8'))
            conn.send(out)
            conn.send(err)


while True:
    conn, client_addr = server.accept()
    try:
        serve(conn)
    except ConnectionResetError:
        pass
    conn.close()
