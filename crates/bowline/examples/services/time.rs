//! NTP over UDP: a minimal server on bare tokio, and a load for any. A reply counts when it
//! gives back the number that its request carried as a time, and each once.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bowline::proto::plain::ntp::{PACKET_BYTES, Timestamp};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::{Result, let_go, per_second};

/// No leap second, version 4, and the mode of a client and of a server (RFC 5905, section 7.3).
const ASKED: u8 = 4 << 3 | 3;
const ANSWERED: u8 = 4 << 3 | 4;
const ORIGIN: std::ops::Range<usize> = 24..32;
const RECEIVED: std::ops::Range<usize> = 32..40;
const SENT: std::ops::Range<usize> = 40..48;

pub(crate) async fn serve_tokio() -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    println!("{}", socket.local_addr()?.port());
    let answer = async {
        let mut packet = [0; 1024];
        loop {
            let (len, from) = socket.recv_from(&mut packet).await?;
            let received = now();
            if len < PACKET_BYTES || packet[0] & 7 != ASKED & 7 {
                continue;
            }
            // Version 4, stratum 10, a precision of 2^-20 s.
            packet[..4].copy_from_slice(&[ANSWERED, 10, 0, 0xec]);
            packet.copy_within(SENT, ORIGIN.start);
            packet[RECEIVED].copy_from_slice(&received);
            packet[SENT].copy_from_slice(&now());
            socket.send_to(&packet[..PACKET_BYTES], from).await?;
        }
    };
    tokio::select! {
        failed = answer => failed,
        () = let_go() => Ok(()),
    }
}

fn now() -> [u8; 8] {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = time.unwrap_or_default().as_nanos();
    Timestamp::from_unix_nanos(i128::try_from(nanos).unwrap_or_default())
        .0
        .to_be_bytes()
}

/// Answers a second with so many requests under way from one socket.
pub(crate) async fn load(port: u16, in_flight: usize, time: Duration) -> Result<u64> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(("127.0.0.1", port)).await?;
    let begun = Instant::now();
    let mut owed = HashSet::new();
    let (mut next, mut replies) = (1_u64, 0);
    let mut request = [0; PACKET_BYTES];
    request[0] = ASKED;
    let mut reply = [0; 1024];
    loop {
        while owed.len() < in_flight && begun.elapsed() < time {
            request[SENT].copy_from_slice(&next.to_be_bytes());
            socket.send(&request).await?;
            owed.insert(next);
            next += 1;
        }
        if owed.is_empty() {
            return Ok(per_second(replies, begun));
        }
        // On loopback nothing is lost, but what a server drops.
        let len = timeout(Duration::from_secs(2), socket.recv(&mut reply)).await??;
        let number = u64::from_be_bytes(reply[ORIGIN].try_into()?);
        if len != PACKET_BYTES || reply[0] & 7 != ANSWERED & 7 || !owed.remove(&number) {
            return Err("what came is no answer to a request under way".into());
        }
        replies += 1;
    }
}
