//! `exec` with json framing: a minimal server on bare tokio, and a load for any. The command is
//! `true`; a reply counts when it is whole and empty.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;

use super::{Result, let_go, per_second};

/// More than any header is, and less than what is none.
const HEADER_BYTES_MAX: usize = 4096;

pub(crate) async fn serve_tokio() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    let mut connections = JoinSet::new();
    let accept = async {
        loop {
            let (stream, _) = listener.accept().await?;
            connections.spawn(exec(stream));
            while connections.try_join_next().is_some() {}
        }
    };
    tokio::select! {
        failed = accept => failed,
        () = let_go() => Ok(()),
    }
}

/// What one read gives is a command, as tutorials have it.
async fn exec(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut command = [0; 1024];
    loop {
        let len = stream.read(&mut command).await?;
        if len == 0 {
            return Ok(());
        }
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(std::str::from_utf8(&command[..len])?);
        let done = shell.stdin(Stdio::null()).output().await?;
        let size = done.stdout.len() + done.stderr.len();
        let header = serde_json::to_vec(&serde_json::json!({ "total_size": size }))?;
        let mut reply = u32::try_from(header.len())?.to_le_bytes().to_vec();
        reply.extend([header, done.stdout, done.stderr].concat());
        stream.write_all(&reply).await?;
    }
}

/// Commands a second from so many clients, each with one at a time.
pub(crate) async fn load(port: u16, connections: usize, time: Duration) -> Result<u64> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for stream in streams {
        clients.spawn(client(stream, begun + time));
    }
    let mut replies = 0;
    while let Some(client) = clients.join_next().await {
        replies += client??;
    }
    Ok(per_second(replies, begun))
}

async fn client(mut stream: TcpStream, until: Instant) -> Result<u64> {
    let mut replies = 0;
    while Instant::now() < until {
        stream.write_all(b"true").await?;
        let len = usize::try_from(stream.read_u32_le().await?)?;
        if len > HEADER_BYTES_MAX {
            return Err("what came is no header".into());
        }
        let mut header = vec![0; len];
        stream.read_exact(&mut header).await?;
        let header: serde_json::Value = serde_json::from_slice(&header)?;
        if header["total_size"] != 0 {
            return Err(format!("`true` said something: {header}").into());
        }
        replies += 1;
    }
    Ok(replies)
}
