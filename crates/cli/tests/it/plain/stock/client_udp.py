import socket, sys

server = ('127.0.0.1', int(sys.argv[1]))
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for line in sys.stdin:
    msg = line.rstrip('\n')
    client.sendto(msg.encode('utf-8'), server)
    data, addr = client.recvfrom(1024)
    print(data.decode('utf-8'))
client.close()
