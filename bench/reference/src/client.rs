//! The clients of the reference: one command, many over one connection, and
//! many held open. They must never retry or hide a failure: a measurement
//! would lie. Frames enter from a server that showed the pinned key; output
//! leaves by stdout and stderr.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::wire::{self, BODY_MAX, HEAD};

type Tls = TlsStream<TcpStream>;

async fn connect(config: &Arc<rustls::ClientConfig>, address: &str) -> Result<Tls> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let connector = TlsConnector::from(Arc::clone(config));
    Ok(connector
        .connect(ServerName::try_from("reference")?, stream)
        .await?)
}

fn start(channel: u32, argv: &[&str]) -> Vec<u8> {
    let mut body = Vec::new();
    for arg in argv {
        body.extend_from_slice(arg.as_bytes());
        body.push(0);
    }
    wire::frame(wire::START, channel, &body)
}

/// Runs one command and gives its status.
pub async fn run(dir: &Path, address: &str, argv: &[&str]) -> Result<i32> {
    let tls = connect(&crate::tls::client(dir)?, address).await?;
    let (input, mut output) = tokio::io::split(tls);
    output.write_all(&start(1, argv)).await?;
    output.flush().await?;
    let mut running = std::pin::pin!(receive(input));
    let mut stdin = std::pin::pin!(send_stdin(output));
    tokio::select! {
        status = &mut running => status,
        // The end of our input is not the end of the command.
        _output = &mut stdin => running.await,
    }
}

async fn receive(mut input: ReadHalf<Tls>) -> Result<i32> {
    // As files they have no buffer of std's between us and the kernel.
    let mut stdout = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    let mut body = Vec::new();
    loop {
        match wire::read(&mut input, &mut body).await?.0 {
            wire::STDOUT => stdout.write_all(&body)?,
            wire::STDERR => std::io::stderr().write_all(&body)?,
            wire::STATUS => {
                return Ok(body.first().copied().context("a status")?.into());
            }
            kind => anyhow::bail!("a frame of kind {kind}"),
        }
    }
}

/// A thread blocks on our stdin, and its frames are sent from here. Gives back
/// the sending side: dropping it would close the connection.
async fn send_stdin(mut output: WriteHalf<Tls>) -> Result<WriteHalf<Tls>> {
    let (sender, mut frames) = mpsc::channel::<Vec<u8>>(4);
    std::thread::spawn(move || -> Result<()> {
        let mut stdin = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        loop {
            let mut frame = vec![0; HEAD + BODY_MAX];
            let len = stdin.read(&mut frame[HEAD..])?;
            frame[..HEAD].copy_from_slice(&wire::head(wire::STDIN, 1, len));
            frame.truncate(HEAD + len);
            sender.blocking_send(frame)?;
            if len == 0 {
                return Ok(());
            }
        }
    });
    while let Some(frame) = frames.recv().await {
        output.write_all(&frame).await?;
        output.flush().await?;
    }
    Ok(output)
}

/// `count` times `true` over one connection, `parallel` at a time.
pub async fn warm(dir: &Path, address: &str, count: u32, parallel: u32) -> Result<()> {
    let tls = connect(&crate::tls::client(dir)?, address).await?;
    let (mut input, mut output) = tokio::io::split(tls);
    let mut begun = vec![Instant::now(); count as usize];
    let mut times = Vec::new();
    let (mut asked, mut body) = (0, Vec::new());
    let first = Instant::now();
    while times.len() < begun.len() {
        while asked < count && (asked as usize) < times.len() + parallel as usize {
            begun[asked as usize] = Instant::now();
            let mut ask = start(asked, &["true"]);
            ask.extend_from_slice(&wire::frame(wire::STDIN, asked, &[]));
            output.write_all(&ask).await?;
            output.flush().await?;
            asked += 1;
        }
        let (kind, channel) = wire::read(&mut input, &mut body).await?;
        if kind == wire::STATUS {
            ensure!(body == [0], "`true` came to {body:?}");
            let begun = begun.get(channel as usize).context("a channel")?;
            times.push(begun.elapsed().as_micros());
        }
    }
    let rate = f64::from(count) / first.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    println!(
        "{{\"count\":{count},\"parallel\":{parallel},\"min_us\":{},\"median_us\":{},\"p99_us\":{},\
         \"max_us\":{},\"per_second\":{rate:.1}}}",
        at(0),
        at(50),
        at(99),
        at(100)
    );
    Ok(())
}

/// Opens connections, each with a process that has said something or with
/// none, says "ready", and holds them until its stdin ends.
pub async fn idle(dir: &Path, address: &str, sessions: bool, count: usize) -> Result<()> {
    let config = crate::tls::client(dir)?;
    let mut held = Vec::new();
    for _ in 0..count {
        let mut tls = connect(&config, address).await?;
        // The server has let us in when it answers; a connection's first process has gone then.
        let argv: &[&str] = match sessions {
            true => &["sh", "-c", "echo here; exec sleep 100000"],
            false => &["true"],
        };
        tls.write_all(&start(1, argv)).await?;
        tls.flush().await?;
        let until = if sessions { wire::STDOUT } else { wire::STATUS };
        let mut body = Vec::new();
        while wire::read(&mut tls, &mut body).await?.0 != until {}
        held.push(tls);
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(held);
    Ok(())
}
