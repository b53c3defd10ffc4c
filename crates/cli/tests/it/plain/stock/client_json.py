import json, socket, struct, sys

phone = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
phone.connect(('127.0.0.1', int(sys.argv[1])))
for cmd in sys.stdin:
    cmd = cmd.strip()
    if not cmd:
        continue
    phone.send(cmd.encode('utf-8'))
    # the length of the header
    obj = phone.recv(4)
    header_size = struct.unpack('i', obj)[0]
    # the header
    header_bytes = phone.recv(header_size)
    header_dic = json.loads(header_bytes.decode('utf-8'))
    total_size = header_dic['total_size']
    # the data
    recv_size = 0
    recv_data = bytearray()
    while recv_size < total_size:
        res = phone.recv(1024)
        recv_data += res
        recv_size += len(res)
    print(recv_data.decode('utf-8'))
phone.close()
