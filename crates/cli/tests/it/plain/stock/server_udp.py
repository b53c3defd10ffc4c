import socket, sys, time

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(('127.0.0.1', 0))
print(server.getsockname()[1], flush=True)
while True:
    data, addr = server.recvfrom(1024)
    if sys.argv[1] == 'time':
        fmt = data.decode('utf-8') if data else '%Y-%m-%d-%X'
        server.sendto(time.strftime(fmt).encode('utf-8'), addr)
    else:
        server.sendto(data.upper(), addr)
