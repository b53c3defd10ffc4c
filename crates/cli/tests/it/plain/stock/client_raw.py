from socket import *
import sys

encoding = sys.argv[2] if len(sys.argv) > 2 else 'utf-8'
client = socket(AF_INET, SOCK_STREAM)
client.connect(('127.0.0.1', int(sys.argv[1])))
for cmd in sys.stdin:
    cmd = cmd.strip()
    if not cmd:
        continue
    client.send(cmd.encode(encoding))
    res = client.recv(1024)
    print(res.decode(encoding))
client.close()
