//! `upper`, on the library and on bare tokio: 64 bytes come back in capitals. A load for both,
//! and a crowd that is idle. It must never count a reply that did not come, or a wrong one.

use std::time::{Duration, Instant};

use bowline::net::{Connection, Limits, ServerBuilder, ServiceError, StreamService};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Result, let_go, per_second, port_of};

const MESSAGE: &[u8; 64] = b"sixty-four bytes of a message that is to come back in capitals..";

struct Upper;

impl StreamService for Upper {
    async fn serve(&self, connection: &mut Connection) -> std::result::Result<(), ServiceError> {
        while let Some(mut bytes) = connection.read().await? {
            bytes.make_ascii_uppercase();
            connection.send(&bytes).await?;
        }
        Ok(())
    }
}

pub(crate) async fn serve_net() -> Result<()> {
    let limits = Limits {
        connections_per_address_max: usize::MAX,
        ..Limits::default()
    };
    let builder = ServerBuilder::new().listen("tcp://127.0.0.1:0".parse()?);
    let server = builder.limits(limits).backlog(4096).stream(Upper).await?;
    let handle = server.handle();
    println!("{}", port_of(&handle.endpoints()[0].to_string()));
    tokio::select! {
        _ = server.serve() => {}
        () = let_go() => {}
    }
    Ok(())
}

pub(crate) async fn serve_tokio() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    let mut connections = JoinSet::new();
    let accept = async {
        loop {
            let (stream, _) = listener.accept().await?;
            connections.spawn(upper(stream));
            while connections.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        failed = accept => failed,
        () = let_go() => Ok(()),
    }
}

/// As a tutorial of tokio has it: a buffer for each connection.
async fn upper(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let len = stream.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        buffer[..len].make_ascii_uppercase();
        stream.write_all(&buffer[..len]).await?;
    }
}

/// Replies a second over so many connections with so many requests under way on each.
pub(crate) async fn load(
    port: u16,
    connections: usize,
    in_flight: usize,
    time: Duration,
) -> Result<u64> {
    let mut clients = JoinSet::new();
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let begun = Instant::now();
    for stream in streams {
        clients.spawn(client(stream, in_flight, begun + time));
    }
    let mut replies = 0;
    while let Some(client) = clients.join_next().await {
        replies += client??;
    }
    Ok(per_second(replies, begun))
}

/// Keeps so many requests under way until then, and takes what is left of the replies.
async fn client(mut stream: TcpStream, in_flight: usize, until: Instant) -> Result<u64> {
    let requests = MESSAGE.repeat(in_flight);
    let expected = requests.to_ascii_uppercase();
    let mut buffer = vec![0; requests.len()];
    stream.write_all(&requests).await?;
    let (mut owed, mut at, mut replies) = (requests.len(), 0, 0);
    while owed > 0 {
        let room = (expected.len() - at).min(owed);
        let len = stream.read(&mut buffer[..room]).await?;
        if len == 0 || buffer[..len] != expected[at..at + len] {
            return Err("the connection ended, or gave something else".into());
        }
        let whole = (at + len) / MESSAGE.len() - at / MESSAGE.len();
        at = (at + len) % expected.len();
        owed -= len;
        replies += u64::try_from(whole)?;
        if whole > 0 && Instant::now() < until {
            stream.write_all(&requests[..whole * MESSAGE.len()]).await?;
            owed += whole * MESSAGE.len();
        }
    }
    Ok(replies)
}

/// Holds connections that have said something once.
pub(crate) async fn idle(port: u16, connections: usize) -> Result<()> {
    let mut held = Vec::new();
    for _ in 0..connections {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let mut reply = [0; 64];
        stream.write_all(MESSAGE).await?;
        stream.read_exact(&mut reply).await?;
        held.push(stream);
    }
    println!("ready");
    let_go().await;
    Ok(())
}
