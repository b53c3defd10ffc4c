import socket

phone = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
phone.bind(('127.0.0.1', 0))
phone.listen(5)
print(phone.getsockname()[1], flush=True)
while True:
    conn, addr = phone.accept()
    data = conn.recv(1024)
    print('client said', data, flush=True)
    conn.send('nice to meet you'.encode('utf-8'))
    conn.close()
