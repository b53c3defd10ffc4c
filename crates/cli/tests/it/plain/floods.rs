//! Floods that must leave others served.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};

use super::{LONG, Serving, client, runs, stock, wait_until};

#[test]
fn a_flood_of_commands_leaves_others_served() {
    let folder = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/s", folder.path().display());
    let words = ["exec", "--framing", "len4", "--commands-per-client", "3"];
    let listen = ["--listen", "tcp://127.0.0.1:0", "--listen", &unix];
    let server = Serving::bowline(&[&words[..], &listen].concat());
    let pids = folder.path().join("pids");
    let flood: Vec<TcpStream> = (0..60)
        .map(|_| {
            let mut stream = server.connect();
            let command = format!("echo $$ >> {}; exec sleep 1000", pids.display());
            stream.write_all(command.as_bytes()).unwrap();
            stream
        })
        .collect();
    let running = || std::fs::read_to_string(&pids).unwrap_or_default();
    wait_until("three of them run", || running().lines().count() >= 3);
    // Another client is let in, and the flood has no more than its share.
    for _ in 0..5 {
        let words = ["exec", "--framing", "len4", &server.addresses[1]];
        assert_eq!(client(&words, "echo served\n"), "served\n");
        assert_eq!(running().lines().count(), 3);
    }
    drop(flood);
    wait_until("they end with their clients", || {
        !running().lines().any(runs)
    });
}

#[test]
fn a_flood_of_wrong_digests_leaves_others_served() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "sixteen bytes or more").unwrap();
    let secret = ["--secret-file", file.to_str().unwrap(), "--framing", "raw"];
    let words = [&["exec", "--listen", "tcp://127.0.0.1:0"], &secret[..]].concat();
    let server = Serving::bowline(&words);
    let mut silent = Vec::new();
    for round in 0..200 {
        let mut stream = server.connect();
        let mut challenge = [0; 32];
        stream.read_exact(&mut challenge).unwrap();
        if round % 2 == 0 {
            stream.write_all(&[7; 32]).unwrap();
            assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0, "it is closed");
        } else {
            silent.push(stream);
        }
    }
    let right = ["sixteen bytes or more", "sha256"];
    let said = stock("client_secret.py", server.port(), &right, "echo served\n");
    assert_eq!(said, "served\n\n");
}

#[test]
fn a_flood_of_connections_leaves_others_served() {
    let folder = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/s", folder.path().display());
    let words = ["upper", "--connections-per-client-max", "50"];
    let listen = ["--listen", "tcp://127.0.0.1:0", "--listen", &unix];
    let server = Serving::bowline(&[&words[..], &listen].concat());
    let flood: Vec<TcpStream> = (0..300).map(|_| server.connect()).collect();
    let served = flood.iter().filter(|stream| {
        let mut stream = *stream;
        let mut bytes = [0; 1];
        stream.write_all(b"a").is_ok() && matches!(stream.read(&mut bytes), Ok(1))
    });
    assert_eq!(served.count(), 50, "no more than its share");
    assert_eq!(client(&["upper", &server.addresses[1]], "abc\n"), "ABC\n");
}

#[test]
fn datagrams_from_ports_of_other_services_are_not_answered() {
    let server = Serving::bowline(&["time", "--listen", "udp://127.0.0.1:0"]);
    let to = ("127.0.0.1", server.port());
    // Chargen's port and echo's: what answers there would answer our answer.
    let odd = [19, 7].map(|port| UdpSocket::bind(("127.0.0.1", port)));
    let odd: Vec<UdpSocket> = odd.into_iter().flatten().collect();
    for socket in &odd {
        for _ in 0..50 {
            socket.send_to(b"%Y", to).unwrap();
        }
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket.send_to(b"x", to).unwrap();
    let mut bytes = [0; 64];
    assert_eq!(socket.recv(&mut bytes).unwrap(), 1, "others are");
    // Datagrams are taken in turn, so an answer would have been there before.
    for socket in &odd {
        socket.set_nonblocking(true).unwrap();
        let error = socket.recv(&mut bytes).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }
}
