//! The `exec` service: each message is a line for the shell, the reply is its output.
//!
//! Messages enter by the framing, commands run through the keeper, replies leave whole.
//! A client that goes away ends its command's process tree.

use std::sync::Arc;
use std::time::Duration;

use bowline::net::{Connection, ServiceError};
use bowline_proto::framing::{ACKNOWLEDGEMENT, Headed};
use bowline_proto::plain::text::whole_characters;
use tokio::time::timeout;

use super::places::Places;
use super::reply::{Framing, Reply, Style};
use super::runner::{Allowance, Finished, RunError, Runner};

/// The longest command.
pub(crate) const COMMAND_BYTES_MAX: usize = 1024 * 1024;
/// A read of so much may have filled a segment, so that more of the same send follows: the
/// smallest that TCP has by default (RFC 9293, section 3.7.1).
const SEGMENT_BYTES_MIN: usize = 536;
/// How long the rest of a send is waited for.
const REST_TIME: Duration = Duration::from_millis(5);
/// A client that only shuts down its sending side looks as one that has gone. Commands
/// that are done within this time are answered all the same.
const HALF_CLOSED_TIME: Duration = Duration::from_secs(2);

/// The service.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) runner: Runner,
    pub(crate) style: Style,
    pub(crate) allowance: Arc<Allowance>,
    pub(crate) places: Places,
}

impl Exec {
    /// Serves one connection.
    ///
    /// # Errors
    /// What ends it.
    pub(crate) async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        let mut framing = Headed::little_endian(COMMAND_BYTES_MAX);
        loop {
            let command = match self.style.framing {
                Framing::Framed => connection
                    .read_message(&mut framing)
                    .await?
                    .map(|it| it.body),
                _ => unmarked(connection).await?,
            };
            let Some(command) = command else {
                return Ok(());
            };
            if command.contains(&0) {
                return Err(ServiceError::failed("there is a zero byte in the command"));
            }
            let Some(ran) = self.run_watched(connection, &command).await else {
                let peer = connection.peer();
                tracing::info!(%peer, "the client has gone; its command was ended");
                return Ok(());
            };
            self.send(connection, &self.style.reply(ran)).await?;
        }
    }

    /// Sends a reply: a part that fits a segment in one piece.
    async fn send(&self, connection: &mut Connection, reply: &Reply) -> Result<(), ServiceError> {
        let Reply { header, body } = reply;
        if self.style.framing != Framing::Ready {
            return connection.writer.send_parts(&[header, body]).await;
        }
        connection.send(header).await?;
        let mut answer = [0; ACKNOWLEDGEMENT.len()];
        connection.reader.read_exact(&mut answer).await?;
        if answer != ACKNOWLEDGEMENT {
            return Err(ServiceError::failed("the client did not answer `ready`"));
        }
        connection.send(body).await
    }

    /// Runs a command for as long as somebody is there; `None` where nobody is any more,
    /// and its tree ends.
    async fn run_watched(
        &self,
        connection: &mut Connection,
        command: &[u8],
    ) -> Option<Result<Finished, RunError>> {
        let peer = connection.peer().clone();
        let run = async {
            let Some(_place) = self.places.take(&peer).await else {
                let why = "this client has too many commands running".to_owned();
                return Err(RunError::NotRun(why));
            };
            self.runner.run(command, &self.allowance).await
        };
        // On the heap: a connection that only waits need not have room for it.
        let mut run = Box::pin(run);
        let gone = tokio::select! {
            biased;
            ran = &mut run => return Some(ran),
            gone = connection.gone() => gone,
        };
        if gone {
            return None;
        }
        timeout(HALF_CLOSED_TIME, run).await.ok()
    }
}

/// A command is what one send put on the wire: what a read gives, and what follows at once
/// where that cannot have been all of it.
async fn unmarked(connection: &mut Connection) -> Result<Option<Vec<u8>>, ServiceError> {
    let Some(first) = connection.read().await? else {
        return Ok(None);
    };
    let mut command = first.to_vec();
    drop(first);
    let mut last = command.len();
    while last >= SEGMENT_BYTES_MIN || whole_characters(&command) < command.len() {
        let Ok(more) = timeout(REST_TIME, connection.read()).await else {
            break;
        };
        let Some(more) = more? else {
            break;
        };
        last = more.len();
        command.extend_from_slice(&more);
        if command.len() > COMMAND_BYTES_MAX {
            return Err(ServiceError::TooLong {
                bytes_max: COMMAND_BYTES_MAX,
            });
        }
    }
    if command.ends_with(b"\r\n") {
        // A terminal's line end; the shell would take the first for part of a word.
        command.truncate(command.len() - 2);
    }
    Ok(Some(command))
}
