import hmac, socket, sys

port, secret, digest = int(sys.argv[1]), sys.argv[2].encode('utf-8'), sys.argv[3]


def conn_auth(conn):
    msg = conn.recv(32)
    h = hmac.new(secret, msg, digest)
    conn.sendall(h.digest())


client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
client.connect(('127.0.0.1', port))
conn_auth(client)
for line in sys.stdin:
    client.sendall(line.strip().encode('utf-8'))
    data = client.recv(1024)
    if not data:
        print('closed')
        break
    print(data.decode('utf-8'))
client.close()
