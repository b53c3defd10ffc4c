//! `bowline plain demo sticky`: two sends that arrive as one read, and how each framing
//! keeps messages apart. The sockets are real; the transcript is what they did.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;

use bowline_proto::framing::{Framing, Headed, Int32};

use crate::exit;

/// Show on real sockets how messages stick together, and what keeps them apart
#[derive(Debug, clap::Args)]
pub(crate) struct DemoFlags {
    /// What to show
    what: Demo,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Demo {
    /// Two sends, one read: sticky packets
    Sticky,
}

/// The two messages that are sent one right after the other.
const MESSAGES: [&str; 2] = ["hello", "world"];

/// # Errors
/// Where loopback or stdout cannot be used.
pub(crate) fn demo(flags: &DemoFlags) -> anyhow::Result<ExitCode> {
    let Demo::Sticky = flags.what;
    exit::print(&sticky()?)?;
    Ok(ExitCode::SUCCESS)
}

/// The whole transcript.
fn sticky() -> io::Result<String> {
    let mut told = String::new();
    let _ = writeln!(told, "TCP carries bytes, not messages.\n");
    raw(&mut told)?;
    newline(&mut told)?;
    ready(&mut told)?;
    len4(&mut told)?;
    json(&mut told)?;
    Ok(told)
}

/// A client and a server that are connected over loopback.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    client.set_nodelay(true)?;
    Ok((client, listener.accept()?.0))
}

/// One `recv(1024)` once `len` bytes have arrived, so that the transcript is the same
/// on any machine: without that it would depend on who is faster.
fn recv_when(stream: &mut TcpStream, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 1024];
    loop {
        if stream.peek(&mut bytes)? >= len {
            break;
        }
        std::thread::yield_now();
    }
    let len = stream.read(&mut bytes)?;
    bytes.truncate(len);
    Ok(bytes)
}

/// Bytes as Python shows them.
fn quoted(bytes: &[u8]) -> String {
    format!(
        "b'{}'",
        bytes.escape_ascii().to_string().replace("\\\"", "\"")
    )
}

fn send(told: &mut String, stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let _ = writeln!(told, "  client: send({})", quoted(bytes));
    stream.write_all(bytes)
}

fn read(told: &mut String, how: &str, bytes: &[u8], meaning: &str) {
    let _ = writeln!(told, "  server: {how} = {}{meaning}", quoted(bytes));
}

fn heading(told: &mut String, text: &str) {
    let _ = writeln!(told, "{text}");
}

fn raw(told: &mut String) -> io::Result<()> {
    heading(told, "raw: nothing marks where a message ends");
    let (mut client, mut server) = pair()?;
    for message in MESSAGES {
        send(told, &mut client, message.as_bytes())?;
    }
    let bytes = recv_when(&mut server, MESSAGES.concat().len())?;
    read(
        told,
        "recv(1024)",
        &bytes,
        "   <- two messages, stuck together",
    );
    send(told, &mut client, MESSAGES[0].as_bytes())?;
    let mut part = [0; 3];
    for _ in 0..2 {
        let len = server.read(&mut part)?;
        read(
            told,
            "recv(3)   ",
            &part[..len],
            "   <- one message, in two pieces",
        );
    }
    told.push('\n');
    Ok(())
}

fn newline(told: &mut String) -> io::Result<()> {
    heading(told, "newline: a byte that no message holds ends it");
    let (mut client, mut server) = pair()?;
    for message in MESSAGES {
        send(told, &mut client, format!("{message}\n").as_bytes())?;
    }
    let bytes = recv_when(&mut server, MESSAGES.concat().len() + MESSAGES.len())?;
    read(told, "recv(1024)", &bytes, "");
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        read(told, "up to \\n  ", line, "");
    }
    told.push('\n');
    Ok(())
}

fn ready(told: &mut String) -> io::Result<()> {
    heading(
        told,
        "ready: the length in digits, and a pause until the other side is ready",
    );
    let (mut client, mut server) = pair()?;
    for message in MESSAGES {
        let digits = message.len().to_string();
        send(told, &mut client, digits.as_bytes())?;
        let bytes = recv_when(&mut server, digits.len())?;
        read(told, "recv(1024)", &bytes, "");
        let _ = writeln!(told, "  server: send(b'ready')");
        server.write_all(b"ready")?;
        let mut answer = [0; 5];
        client.read_exact(&mut answer)?;
        send(told, &mut client, message.as_bytes())?;
        let mut body = vec![0; message.len()];
        server.read_exact(&mut body)?;
        read(told, &format!("exactly({}) ", message.len()), &body, "");
    }
    told.push('\n');
    Ok(())
}

/// A message as its framing has it.
fn encoded<F: Framing>(framing: &F, message: &str) -> io::Result<Vec<u8>> {
    let mut encoded = Vec::new();
    let done = framing.encode(message.as_bytes(), &mut encoded);
    done.map_err(io::Error::other)?;
    Ok(encoded)
}

fn len4(told: &mut String) -> io::Result<()> {
    heading(
        told,
        "len4: struct.pack('i', length) goes before each message",
    );
    let (mut client, mut server) = pair()?;
    for message in MESSAGES {
        let encoded = encoded(&Int32::little_endian(usize::MAX), message)?;
        send(told, &mut client, &encoded)?;
    }
    for _ in MESSAGES {
        let mut length = [0; 4];
        server.read_exact(&mut length)?;
        let len = i32::from_le_bytes(length);
        read(told, "exactly(4) ", &length, &format!(" = {len}"));
        let mut body = vec![0; usize::try_from(len).unwrap_or_default()];
        server.read_exact(&mut body)?;
        read(told, &format!("exactly({len}) "), &body, "");
    }
    told.push('\n');
    Ok(())
}

fn json(told: &mut String) -> io::Result<()> {
    heading(
        told,
        "json: a header that can say more, behind its own length",
    );
    let (mut client, mut server) = pair()?;
    for message in MESSAGES {
        let encoded = encoded(&Headed::little_endian(usize::MAX), message)?;
        send(told, &mut client, &encoded)?;
    }
    for _ in MESSAGES {
        let mut length = [0; 4];
        server.read_exact(&mut length)?;
        let mut header = vec![0; usize::try_from(i32::from_le_bytes(length)).unwrap_or_default()];
        server.read_exact(&mut header)?;
        read(told, &format!("exactly({})", header.len()), &header, "");
        let header: serde_json::Value = serde_json::from_slice(&header)?;
        let total = header["total_size"].as_u64().unwrap_or_default();
        let mut body = vec![0; usize::try_from(total).unwrap_or_default()];
        server.read_exact(&mut body)?;
        read(told, &format!("exactly({total}) "), &body, "");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transcript_is_what_sockets_do() {
        let told = sticky().unwrap();
        assert_eq!(told, sticky().unwrap(), "the same each time");
        for line in [
            "  server: recv(1024) = b'helloworld'   <- two messages, stuck together",
            "  server: recv(3)    = b'hel'   <- one message, in two pieces",
            "  server: recv(3)    = b'lo'   <- one message, in two pieces",
            "  client: send(b'\\x05\\x00\\x00\\x00hello')",
            "  server: exactly(5)  = b'world'",
            "  server: exactly(16) = b'{\"total_size\":5}'",
        ] {
            assert!(
                told.lines().any(|told| told == line),
                "{line}\nnot in\n{told}"
            );
        }
    }
}
