//! The server of the reference: a process for each `START`, its output and
//! status in frames. It must never do more than that. Frames enter from
//! clients that showed the pinned key; processes start here.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::net::unix::pipe;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::wire::{self, BODY_MAX, HEAD};

type Out = Arc<Mutex<WriteHalf<TlsStream<TcpStream>>>>;

pub async fn serve(dir: &Path, address: &str) -> Result<()> {
    let acceptor = TlsAcceptor::from(crate::tls::server(dir)?);
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(address.parse()?)?;
    let listener: TcpListener = socket.listen(4096)?;
    println!("listening {}", listener.local_addr()?);
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        connections.spawn(async move {
            let _ = connection(acceptor, stream).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(acceptor: TlsAcceptor, stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let tls = acceptor.accept(stream).await?;
    let (mut input, output) = tokio::io::split(tls);
    let output: Out = Arc::new(Mutex::new(output));
    let mut stdins: HashMap<u32, ChildStdin> = HashMap::new();
    let mut jobs = JoinSet::new();
    let mut body = Vec::new();
    // The end of the connection drops `jobs`, and that ends the processes.
    loop {
        let (kind, channel) = wire::read(&mut input, &mut body).await?;
        match kind {
            wire::START => {
                let mut child = spawn(&body)?;
                if let Some(stdin) = child.stdin.take() {
                    stdins.insert(channel, stdin);
                }
                let output = Arc::clone(&output);
                jobs.spawn(async move {
                    let _ = job(child, channel, output).await;
                });
                while jobs.try_join_next().is_some() {}
            }
            wire::STDIN if body.is_empty() => {
                stdins.remove(&channel);
            }
            wire::STDIN => {
                if let Some(stdin) = stdins.get_mut(&channel) {
                    // A program need not read its input.
                    if stdin.write_all(&body).await.is_err() {
                        stdins.remove(&channel);
                    }
                }
            }
            kind => anyhow::bail!("a frame of kind {kind}"),
        }
    }
}

fn spawn(argv: &[u8]) -> Result<Child> {
    let argv = argv.strip_suffix(b"\0").context("an argv")?;
    let mut argv = argv.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let child = Command::new(argv.next().context("a program")?)
        .args(argv)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}

async fn job(mut child: Child, channel: u32, output: Out) -> Result<()> {
    let stdout = child.stdout.take().context("a stdout")?.into_owned_fd()?;
    let stderr = child.stderr.take().context("a stderr")?.into_owned_fd()?;
    let (out, err, status) = tokio::join!(
        copy(stdout, wire::STDOUT, channel, &output),
        copy(stderr, wire::STDERR, channel, &output),
        child.wait()
    );
    out?;
    err?;
    let status = status?;
    let signal = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signal).unwrap_or(255) as u8;
    let mut output = output.lock().await;
    output
        .write_all(&wire::frame(wire::STATUS, channel, &[code]))
        .await?;
    output.flush().await?;
    Ok(())
}

/// Sends what comes out of a pipe, until its end. A buffer is there only while
/// there is something to read.
async fn copy(pipe: OwnedFd, kind: u8, channel: u32, output: &Out) -> Result<()> {
    let pipe = pipe::Receiver::from_owned_fd(pipe)?;
    loop {
        pipe.readable().await?;
        let mut buffer = vec![0; HEAD + BODY_MAX];
        loop {
            let len = match pipe.try_read(&mut buffer[HEAD..]) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            buffer[..HEAD].copy_from_slice(&wire::head(kind, channel, len));
            let mut output = output.lock().await;
            output.write_all(&buffer[..HEAD + len]).await?;
            output.flush().await?;
        }
    }
}
