//! What strangers may cost: at each bound, below and above it.

use std::sync::Arc;
use std::time::Duration;

use bowline::net::{Connection, Limits, Peer, ServiceError, StreamService, TimedOut};
use tokio::sync::mpsc;

use crate::{Running, Upper, closed, endpoint, exchange, soon, tcp};

#[tokio::test]
async fn connections_over_the_limit_are_closed_and_the_others_go_on() {
    let limits = Limits {
        connections_max: 3,
        ..Limits::default()
    };
    let server = Running::stream(tcp().limits(limits), Upper).await;
    let mut inside = Vec::new();
    for _ in 0..3 {
        let mut client = server.client().await;
        assert_eq!(exchange(&mut client, b"x").await, b"X");
        inside.push(client);
    }
    for _ in 0..50 {
        let mut outside = server.client().await;
        assert!(closed(&mut outside).await);
    }
    assert_eq!(server.handle.connections(), 3);
    for client in &mut inside {
        assert_eq!(exchange(client, b"y").await, b"Y");
    }
    // One that leaves makes room; the server has noticed when it has closed too.
    let mut leaving = inside.remove(0);
    soon(leaving.writer.finish()).await.unwrap();
    assert!(closed(&mut leaving).await);
    soon(async {
        loop {
            let mut client = server.client().await;
            if client.send(b"z").await.is_ok()
                && matches!(client.read().await, Ok(Some(reply)) if *reply == *b"Z")
            {
                break;
            }
        }
    })
    .await;
}

async fn from(source: &str, server: &Running) -> Connection {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    let at = server.at().to_string();
    let at = at.strip_prefix("tcp://").unwrap().parse().unwrap();
    Connection::tcp(soon(socket.connect(at)).await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_flood_from_one_address_leaves_room_for_others() {
    let limits = Limits {
        connections_per_address_max: 5,
        ..Limits::default()
    };
    let server = Running::stream(tcp().limits(limits), Upper).await;
    let mut flood = Vec::new();
    for number in 0..200 {
        let mut client = from("127.0.0.1", &server).await;
        if number < 5 {
            assert_eq!(exchange(&mut client, b"x").await, b"X");
        } else {
            assert!(closed(&mut client).await, "{number}");
        }
        flood.push(client);
    }
    let mut other = from("127.0.0.2", &server).await;
    assert_eq!(exchange(&mut other, b"y").await, b"Y");
    assert_eq!(server.handle.connections(), 6);
}

/// Reads lines, and tells which time was up.
struct Lines(mpsc::Sender<TimedOut>);

impl StreamService for Lines {
    async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        let mut line = Vec::new();
        while connection.reader.read_line(&mut line).await? {
            connection.send(b"line\n").await?;
        }
        Ok(())
    }

    fn handle_timeout(&self, _: Option<&Peer>, time: TimedOut) {
        self.0.try_send(time).unwrap();
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_first_message_that_drips_is_cut_off_in_time() {
    let (told, mut times) = mpsc::channel(1);
    let limits = Limits {
        idle_time: Some(5 * SECOND),
        first_message_time: Some(20 * SECOND),
        ..Limits::default()
    };
    let server = Running::stream(tcp().limits(limits), Lines(told)).await;
    let mut client = Connection::connect(server.at()).await.unwrap();
    let dripping = async {
        // A byte a second never lets the idle time run out.
        while client.send(b"x").await.is_ok() {
            tokio::time::sleep(SECOND).await;
        }
    };
    tokio::select! {
        () = dripping => {}
        time = times.recv() => assert_eq!(time, Some(TimedOut::FirstMessage(20 * SECOND))),
    }
}

#[tokio::test(start_paused = true)]
async fn idle_time_begins_with_the_last_byte() {
    let (told, mut times) = mpsc::channel(1);
    let limits = Limits {
        idle_time: Some(50 * SECOND),
        first_message_time: Some(20 * SECOND),
        ..Limits::default()
    };
    let server = Running::stream(tcp().limits(limits), Lines(told)).await;
    let mut client = Connection::connect(server.at()).await.unwrap();
    let mut reply = [0; 5];
    for _ in 0..3 {
        client.send(b"a\n").await.unwrap();
        client.reader.read_exact(&mut reply).await.unwrap();
        tokio::time::sleep(40 * SECOND).await;
    }
    assert!(times.try_recv().is_err());
    assert_eq!(times.recv().await, Some(TimedOut::Idle(50 * SECOND)));
    assert!(client.read().await.unwrap().is_none());
}

/// Sends for ever.
struct Endless(mpsc::Sender<TimedOut>);

impl StreamService for Endless {
    async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        loop {
            connection.send(&[0; 65_536]).await?;
        }
    }

    fn handle_timeout(&self, _: Option<&Peer>, time: TimedOut) {
        self.0.try_send(time).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn one_who_takes_nothing_is_idle_too() {
    let (told, mut times) = mpsc::channel(1);
    let limits = Limits {
        idle_time: Some(SECOND),
        ..Limits::default()
    };
    let server = Running::stream(tcp().limits(limits), Endless(told)).await;
    let _client = Connection::connect(server.at()).await.unwrap();
    assert_eq!(times.recv().await, Some(TimedOut::Idle(SECOND)));
}

#[tokio::test]
async fn two_hundred_clients_are_served_at_once() {
    let server = Arc::new(Running::stream(tcp(), Upper).await);
    let mut clients = tokio::task::JoinSet::new();
    let all_here = Arc::new(tokio::sync::Barrier::new(200));
    for number in 0..200 {
        let (server, all_here) = (server.clone(), all_here.clone());
        clients.spawn(async move {
            let mut client = server.client().await;
            let text = format!("client {number}");
            for _ in 0..10 {
                let reply = exchange(&mut client, text.as_bytes()).await;
                assert_eq!(reply, text.to_ascii_uppercase().into_bytes());
                soon(all_here.wait()).await;
            }
        });
    }
    while let Some(done) = soon(clients.join_next()).await {
        done.unwrap();
    }
}

#[tokio::test]
async fn users_of_a_unix_socket_count_as_one_each() {
    let limits = Limits {
        connections_per_address_max: 2,
        ..Limits::default()
    };
    let name = crate::unique("users");
    let builder = bowline::net::ServerBuilder::new()
        .listen(endpoint(&format!("unix:{name}")))
        .limits(limits);
    let server = Running::stream(builder, Upper).await;
    let mut inside = [server.client().await, server.client().await];
    let mut third = server.client().await;
    assert!(closed(&mut third).await);
    for client in &mut inside {
        assert_eq!(exchange(client, b"x").await, b"X");
    }
}
