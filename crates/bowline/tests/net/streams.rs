//! Readers and writers: lines, halves of messages, half-close, resets.

use std::sync::Arc;

use bowline::net::{Connection, Limits, ServiceError, StreamService};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::{Running, Upper, closed, endpoint, exchange, soon, tcp, unique};

#[tokio::test]
async fn bytes_come_back_over_every_kind_of_stream() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let builder = tcp()
        .listen(endpoint(&format!("unix:{}", path.display())))
        .listen(endpoint(&format!("unix:{}", unique("upper"))));
    let server = Running::stream(builder, Upper).await;
    assert_eq!(server.handle.endpoints().len(), 3);
    for at in server.handle.endpoints().to_vec() {
        let mut client = soon(Connection::connect(&at)).await.unwrap();
        assert_eq!(exchange(&mut client, b"one \xff\0").await, b"ONE \xff\0");
        soon(client.writer.finish()).await.unwrap();
        assert!(closed(&mut client).await);
    }
    assert_eq!(server.stop().await.cut_off, 0);
    assert!(!path.exists());
}

#[tokio::test]
async fn much_at_once_comes_back_whole() {
    let server = Running::stream(tcp(), Upper).await;
    let mut client = server.client().await;
    let sent: Vec<u8> = (0..8_000_000_u32).map(|i| b'a' + (i % 26) as u8).collect();
    let mut came = Vec::new();
    let (reader, writer) = (&mut client.reader, &mut client.writer);
    let write = async {
        writer.send(&sent).await.unwrap();
        writer.finish().await.unwrap();
    };
    soon(async { tokio::join!(write, reader.read_to_end(&mut came)) })
        .await
        .1
        .unwrap();
    assert!(came == sent.to_ascii_uppercase());
}

/// Answers each line with its length, in two parts.
struct Lengths;

impl StreamService for Lengths {
    async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        let mut line = Vec::new();
        while connection.reader.read_line(&mut line).await? {
            connection
                .writer
                .put(line.len().to_string().as_bytes())
                .await?;
            connection.writer.put(b"\n").await?;
            if line == b"now" {
                connection.writer.flush().await?;
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn lines_are_lines_however_they_are_cut() {
    let server = Running::stream(tcp(), Lengths).await;
    let mut client = server.client().await;
    for byte in b"now\r\n" {
        soon(client.send(&[*byte])).await.unwrap();
    }
    let mut reply = Vec::new();
    assert!(soon(client.reader.read_line(&mut reply)).await.unwrap());
    assert_eq!(reply, b"3");
    soon(client.send(b"ab\n\nc\r\nlast without an end"))
        .await
        .unwrap();
    soon(client.writer.finish()).await.unwrap();
    let mut rest = String::new();
    soon(client.reader.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "2\n0\n1\n19\n");
}

#[tokio::test]
async fn a_line_of_the_limit_is_taken_and_one_byte_more_is_not() {
    let limits = Limits {
        message_bytes_max: 1000,
        ..Limits::default()
    };
    let server = Running::stream(tcp().limits(limits), Lengths).await;
    for end in ["\n", "\r\n", ""] {
        for (bytes, reply) in [(999, "999\n"), (1000, "1000\n"), (1001, ""), (70_000, "")] {
            let mut client = server.client().await;
            let line = format!("{}{end}", "x".repeat(bytes));
            soon(client.send(line.as_bytes())).await.unwrap();
            soon(client.writer.finish()).await.unwrap();
            let mut rest = String::new();
            soon(client.reader.read_to_string(&mut rest)).await.unwrap();
            assert_eq!(rest, reply, "{bytes} bytes and {end:?}");
        }
    }
}

/// Takes three bytes, then what a client sends in parts, and answers in one.
struct Exact;

impl StreamService for Exact {
    async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        let mut head = [0; 3];
        connection.reader.read_exact(&mut head).await?;
        let mut body = vec![0; 60_000];
        connection.reader.read_exact(&mut body).await?;
        connection
            .writer
            .send_parts(&[b"<", &head, b"|", &body, b">"])
            .await
    }
}

#[tokio::test]
async fn exact_reads_leave_the_rest_and_parts_go_out_in_order() {
    let server = Running::stream(tcp(), Exact).await;
    let mut client = server.client().await;
    let body: Vec<u8> = (0..60_000_u32).map(|i| i as u8).collect();
    soon(client.send(b"ab")).await.unwrap();
    soon(client.send(&[b"c", &body[..]].concat()))
        .await
        .unwrap();
    let mut came = Vec::new();
    soon(client.reader.read_to_end(&mut came)).await.unwrap();
    assert!(came == [b"<abc|", &body[..], b">"].concat());
}

/// Ends at once, with something that the client sent unread.
struct Greet;

impl StreamService for Greet {
    async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        connection.read().await?;
        connection.send(b"hello").await
    }
}

#[tokio::test]
async fn the_last_reply_is_not_lost_to_a_reset() {
    let server = Running::stream(tcp(), Greet).await;
    let mut client = server.client().await;
    soon(client.send(b"a")).await.unwrap();
    let mut reply = [0; 5];
    soon(client.reader.read_exact(&mut reply)).await.unwrap();
    // The server is done, but takes this and does not reset the connection for it.
    for _ in 0..10 {
        soon(client.send(&[b'x'; 1000])).await.unwrap();
    }
    assert!(closed(&mut client).await);
    assert_eq!(&reply, b"hello");
}

/// Says when a connection is over, and how.
struct Told(Arc<Notify>);

impl StreamService for Told {
    async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        while connection.read().await?.is_some() {}
        self.0.notify_one();
        Ok(())
    }
}

#[tokio::test]
async fn a_reset_is_an_end_like_any_other() {
    let over = Arc::new(Notify::new());
    let server = Running::stream(tcp(), Told(over.clone())).await;
    let address = server.at().to_string();
    let address = address.strip_prefix("tcp://").unwrap();
    let mut other = server.client().await;
    let stream = soon(tokio::net::TcpStream::connect(address)).await.unwrap();
    soon(async { stream.try_write(b"x") }).await.unwrap();
    let socket = socket2::SockRef::from(&stream);
    socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    drop(stream);
    soon(over.notified()).await;
    soon(other.send(b"still served")).await.unwrap();
    drop(other);
    soon(over.notified()).await;
}

#[tokio::test]
async fn both_directions_can_be_used_at_once_and_by_tokio() {
    let server = Running::stream(tcp(), Upper).await;
    let mut client = server.client().await;
    let (reader, writer) = (&mut client.reader, &mut client.writer);
    let write = async {
        writer.write_all(b"abc").await.unwrap();
        writer.flush().await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut came = String::new();
    let read = reader.read_to_string(&mut came);
    soon(async { tokio::join!(write, read) }).await.1.unwrap();
    assert_eq!(came, "ABC");
}
