//! Framings over real sockets: batches, bounds, acknowledgements, ends.

use bowline::net::{Connection, Limits, ServiceError, StreamService};
use bowline::proto::framing::{
    ByteOrder, Decimal, Delimited, Framing, Headed, HeadedMessage, Int32, Raw,
};
use tokio::sync::mpsc;

use crate::{Running, closed, soon, tcp};

/// Upper-cases messages of a framing.
struct Upper<F>(F, mpsc::UnboundedSender<String>);

trait Bytes {
    fn bytes(self) -> Vec<u8>;
}

impl Bytes for Vec<u8> {
    fn bytes(self) -> Vec<u8> {
        self
    }
}

impl Bytes for HeadedMessage {
    fn bytes(self) -> Vec<u8> {
        self.body
    }
}

impl<F> StreamService for Upper<F>
where
    F: Framing<Message: Bytes + Send> + Clone + Send + Sync + 'static,
{
    async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        let mut framing = self.0.clone();
        while let Some(message) = connection.read_message(&mut framing).await? {
            let message = message.bytes().to_ascii_uppercase();
            connection.put_message(&framing, &message).await?;
        }
        Ok(())
    }

    fn handle_error(&self, _: &bowline::net::Peer, error: &ServiceError) {
        let _ = self.1.send(error.to_string());
    }
}

async fn there_and_back<F>(framing: F)
where
    F: Framing<Message: Bytes + Send> + Clone + Send + Sync + 'static,
{
    let (told, mut errors) = mpsc::unbounded_channel();
    let server = Running::stream(tcp(), Upper(framing.clone(), told)).await;
    let mut client = server.client().await;
    let mut framing = framing;
    let messages = [
        vec![b'a'; 1],
        vec![b'b'; 70_000],
        b"c d".to_vec(),
        Vec::new(),
    ];
    for message in &messages {
        soon(client.send_message(&framing, message)).await.unwrap();
        let reply = soon(client.read_message(&mut framing)).await.unwrap();
        let reply = reply.expect("a reply").bytes();
        assert!(reply == message.to_ascii_uppercase());
    }
    soon(client.writer.finish()).await.unwrap();
    let end = soon(client.read_message(&mut framing)).await.unwrap();
    assert!(end.is_none());
    drop(server);
    assert!(errors.recv().await.is_none());
}

const MAX: usize = 100_000;

#[tokio::test]
async fn messages_come_back_in_every_framing_that_keeps_them_apart() {
    there_and_back(Int32::little_endian(MAX)).await;
    there_and_back(Int32::big_endian(MAX)).await;
    there_and_back(Headed::new(ByteOrder::LittleEndian, MAX)).await;
    there_and_back(Delimited::lines(MAX)).await;
    there_and_back(Delimited::new(b"--end--", MAX).unwrap()).await;
    there_and_back(Decimal::new(MAX)).await;
}

#[tokio::test]
async fn replies_to_what_came_together_leave_together() {
    let (told, _errors) = mpsc::unbounded_channel();
    let framing = Int32::little_endian(MAX);
    let server = Running::stream(tcp(), Upper(framing.clone(), told)).await;
    let mut client = server.client().await;
    let mut wire = Vec::new();
    for _ in 0..100 {
        framing.encode(b"sixty-four", &mut wire).unwrap();
    }
    soon(client.send(&wire)).await.unwrap();
    // One segment there, one write back: a read cannot give a part of it.
    let reply = soon(client.read()).await.unwrap().unwrap();
    assert_eq!(reply.to_vec(), wire.to_ascii_uppercase());
}

#[tokio::test]
async fn what_a_framing_refuses_ends_one_connection_and_is_told() {
    let (told, mut errors) = mpsc::unbounded_channel();
    let limits = Limits {
        message_bytes_max: 10,
        ..Limits::default()
    };
    let service = Upper(Int32::big_endian(10), told);
    let server = Running::stream(tcp().limits(limits), service).await;
    let mut other = server.client().await;
    for bytes in [&[0xff; 4][..], &[0, 0, 0, 11]] {
        let mut client = server.client().await;
        soon(client.send(bytes)).await.unwrap();
        assert!(closed(&mut client).await);
        let error = soon(errors.recv()).await.unwrap();
        assert_eq!(error, "a message is not as the framing has it");
    }
    // Ten bytes are as many as may be; and a peer that closes in the middle is no error.
    let mut cut = server.client().await;
    soon(cut.send(&[0, 0, 0, 10, b'x'])).await.unwrap();
    drop(cut);
    let mut framing = Int32::big_endian(10);
    soon(other.send_message(&framing, b"0123456789"))
        .await
        .unwrap();
    let reply = soon(other.read_message(&mut framing)).await.unwrap();
    assert_eq!(reply.as_deref(), Some(&b"0123456789"[..]));
    assert!(errors.try_recv().is_err());
}

#[tokio::test]
async fn a_message_that_cannot_be_carried_is_not_begun() {
    let (told, _errors) = mpsc::unbounded_channel();
    let server = Running::stream(tcp(), Upper(Delimited::lines(10), told)).await;
    let mut client = server.client().await;
    let refused = client.send_message(&Delimited::lines(10), b"a\nb").await;
    assert!(matches!(refused, Err(ServiceError::Failed(_))));
    let refused = client
        .put_message(&Delimited::lines(10), b"0123456789-")
        .await;
    assert!(matches!(refused, Err(ServiceError::Failed(_))));
    let mut lines = Delimited::lines(10);
    soon(client.send_message(&lines, b"abc")).await.unwrap();
    let reply = soon(client.read_message(&mut lines)).await.unwrap();
    assert_eq!(reply.as_deref(), Some(&b"ABC"[..]));
}

/// Sends one message of 12 bytes when it is asked.
struct Announce;

impl StreamService for Announce {
    async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        connection.read().await?;
        let body = b"twelve bytes";
        connection.send_message(&Decimal::new(MAX), body).await?;
        connection.send(b"+").await
    }
}

#[tokio::test]
async fn a_body_waits_for_ready_however_that_is_cut() {
    let server = Running::stream(tcp(), Announce).await;
    let mut client = server.client().await;
    soon(client.send(b"go")).await.unwrap();
    let mut digits = [0; 2];
    soon(client.reader.read_exact(&mut digits)).await.unwrap();
    assert_eq!(&digits, b"12");
    for byte in b"ready" {
        soon(client.send(&[*byte])).await.unwrap();
    }
    let mut body = [0; 13];
    soon(client.reader.read_exact(&mut body)).await.unwrap();
    assert_eq!(&body, b"twelve bytes+");
    let mut wrong = server.client().await;
    soon(wrong.send(b"go")).await.unwrap();
    soon(wrong.reader.read_exact(&mut digits)).await.unwrap();
    soon(wrong.send(b"READY")).await.unwrap();
    assert!(closed(&mut wrong).await, "no body without the right word");
}

#[tokio::test]
async fn raw_is_what_a_read_gives_and_nothing_said_is_nothing() {
    let (told, _errors) = mpsc::unbounded_channel();
    let server = Running::stream(tcp(), Upper(Raw::new(MAX), told)).await;
    let mut client = server.client().await;
    soon(client.send_message(&Raw::new(MAX), b"abc"))
        .await
        .unwrap();
    let reply = soon(client.read_message(&mut Raw::new(MAX))).await.unwrap();
    assert_eq!(reply.as_deref(), Some(&b"ABC"[..]));
    soon(client.writer.finish()).await.unwrap();
    assert!(closed(&mut client).await);
}
