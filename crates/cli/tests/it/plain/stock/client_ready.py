import socket, sys

s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
s.connect(('127.0.0.1', int(sys.argv[1])))
for msg in sys.stdin:
    msg = msg.strip()
    if len(msg) == 0:
        continue
    s.send(msg.encode('utf-8'))
    length = int(s.recv(1024).decode('utf-8'))
    s.send('ready'.encode('utf-8'))
    send_size = recv_size = 0
    data = bytearray()
    while recv_size < length:
        data += s.recv(1024)
        recv_size = len(data)
    print(data.decode('utf-8'))
s.close()
