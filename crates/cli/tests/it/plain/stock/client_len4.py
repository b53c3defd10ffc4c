import socket, struct, sys

phone = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
phone.connect(('127.0.0.1', int(sys.argv[1])))
for cmd in sys.stdin:
    cmd = cmd.strip()
    if not cmd:
        continue
    phone.send(bytes(cmd, encoding='utf-8'))
    header = phone.recv(4)
    total_size = struct.unpack('i', header)[0]
    recv_size = 0
    recv_data = b''
    while recv_size < total_size:
        data = phone.recv(1024)
        recv_data += data
        recv_size += len(data)
    print(recv_data.decode('utf-8'))
phone.close()
