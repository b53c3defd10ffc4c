//! Whole messages over a connection: where a framing of [`bowline_proto::framing`]
//! meets a socket.
//!
//! What a framing has not taken waits in the reader, what was put goes out before
//! anybody waits: so replies to requests that came together leave together.

use bowline_proto::framing::{Framing, FramingError};
use tokio::time::timeout;

use super::connection::Connection;
use super::limits::LENGTH_PAUSE;
use super::service::ServiceError;

impl Connection {
    /// Takes the next message of a framing; `None` is the end. The framing keeps
    /// what came of a message, so use the same for all of a connection.
    ///
    /// What was [put](super::Writer::put) before is sent once there is nothing
    /// more to read, so a service that answers with [`Connection::put_message`]
    /// writes once for all requests that came together.
    ///
    /// ```
    /// use bowline::net::{Connection, ServiceError, StreamService};
    /// use bowline::proto::framing::Int32;
    ///
    /// struct Reverse;
    ///
    /// impl StreamService for Reverse {
    ///     async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
    ///         let mut framing = Int32::big_endian(connection.reader.message_bytes_max());
    ///         while let Some(mut message) = connection.read_message(&mut framing).await? {
    ///             message.reverse();
    ///             connection.put_message(&framing, &message).await?;
    ///         }
    ///         Ok(())
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// [`ServiceError::Framing`]; [`ServiceError::Gone`] where the peer closes
    /// within a message; [`ServiceError::TimedOut`], [`ServiceError::Io`].
    ///
    /// # Cancel safety
    /// Safe: what came is in the framing and the reader.
    pub async fn read_message<F: Framing>(
        &mut self,
        framing: &mut F,
    ) -> Result<Option<F::Message>, ServiceError> {
        loop {
            if let Some(message) = self.reader.decode(framing)? {
                return Ok(Some(message));
            }
            if self.reader.has_ended() {
                return match framing.finish() {
                    Ok(last) => Ok(last),
                    Err(FramingError::Truncated) => Err(ServiceError::Gone),
                    Err(error) => Err(error.into()),
                };
            }
            self.writer.flush().await?;
            if framing.acknowledgement().is_empty() || !framing.has_begun() {
                self.reader.fill().await?;
            } else {
                self.read_or_acknowledge(framing).await?;
            }
        }
    }

    /// Reads more of a length, or says that it is whole; reads more of a message.
    async fn read_or_acknowledge(
        &mut self,
        framing: &mut impl Framing,
    ) -> Result<(), ServiceError> {
        match timeout(LENGTH_PAUSE, self.reader.fill()).await {
            Ok(filled) => filled.map(|_| ()),
            Err(_) if framing.pause()? => self.writer.send(framing.acknowledgement()).await,
            Err(_) => self.reader.fill().await.map(|_| ()),
        }
    }

    /// Sends a message in one write, with what was put before it; where the framing
    /// has an acknowledgement, in two, with a wait for that between them.
    ///
    /// # Errors
    /// [`ServiceError::Failed`] with a [`FramingError`] where the framing cannot
    /// carry the message; [`ServiceError::Framing`] where something else than the
    /// acknowledgement comes; as [`Writer::send`](super::Writer::send).
    ///
    /// # Cancel safety
    /// None, as [`Writer::send`](super::Writer::send).
    pub async fn send_message<F: Framing>(
        &mut self,
        framing: &F,
        message: &[u8],
    ) -> Result<(), ServiceError> {
        let mut head = Vec::new();
        framing
            .head(message, &mut head)
            .map_err(ServiceError::failed)?;
        let expected = framing.acknowledgement();
        if expected.is_empty() {
            let parts = [&head, message, framing.tail()];
            return self.writer.send_parts(&parts).await;
        }
        self.writer.send(&head).await?;
        let mut came = vec![0; expected.len()];
        self.reader.read_exact(&mut came).await?;
        if came != expected {
            return Err(FramingError::NotAcknowledged.into());
        }
        self.writer.send(message).await
    }

    /// Keeps a message to be sent together with others: by the next
    /// [`Connection::read_message`], [`Connection::read`] or [`Connection::read_line`]
    /// that has to wait, by [`Writer::flush`](super::Writer::flush), or when the
    /// service returns.
    ///
    /// # Errors
    /// As [`Connection::send_message`].
    ///
    /// # Cancel safety
    /// None, as [`Writer::send`](super::Writer::send).
    pub async fn put_message<F: Framing>(
        &mut self,
        framing: &F,
        message: &[u8],
    ) -> Result<(), ServiceError> {
        if !framing.acknowledgement().is_empty() {
            return self.send_message(framing, message).await;
        }
        let mut head = Vec::new();
        framing
            .head(message, &mut head)
            .map_err(ServiceError::failed)?;
        for part in [&head, message, framing.tail()] {
            self.writer.put(part).await?;
        }
        Ok(())
    }
}
