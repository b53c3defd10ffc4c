//! A line that takes its time: what goes in at one end comes out at the other
//! later by a fixed delay, in both directions, and at any rate.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Listens for connections, which are carried to `to`; gives the port.
pub(crate) fn slow_line(to: u16, delay: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.unwrap();
            // One that nobody takes is sent away too.
            let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else {
                continue;
            };
            for socket in [&near, &far] {
                socket.set_nodelay(true).unwrap();
            }
            let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            carry(near, far, delay);
            carry(far_too, near_too, delay);
        }
    });
    port
}

/// One direction: a thread that notes when something came, and one that hands it on when it is due.
fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (came, due) = mpsc::sync_channel::<(Instant, Vec<u8>)>(1024);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            if came
                .send((Instant::now() + delay, buffer[..len].to_vec()))
                .is_err()
            {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        for (at, bytes) in due {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

#[test]
fn a_slow_line_is_slow_and_loses_nothing() {
    let delay = Duration::from_millis(50);
    let echo = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = slow_line(echo.local_addr().unwrap().port(), delay);
    let echoing = std::thread::spawn(move || {
        let (mut socket, _) = echo.accept().unwrap();
        std::io::copy(&mut socket.try_clone().unwrap(), &mut socket).unwrap();
    });
    let began = Instant::now();
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let sent = vec![7; 100_000];
    socket.write_all(&sent).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    socket.read_to_end(&mut back).unwrap();
    assert!(back == sent, "{} bytes came back", back.len());
    assert!(began.elapsed() >= 2 * delay);
    echoing.join().unwrap();
}
