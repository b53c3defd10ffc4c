//! The `exec` service: each message is a line for the shell, the reply is its output.
//!
//! Messages enter by the framing, commands run through the keeper, replies leave whole.
//! A client that goes away ends its command's process tree.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bowline_proto::plain::text::whole_characters;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::conn::Conn;
use super::reply::{Framing, Style};
use super::runner::{Allowance, Finished, RunError, Runner};
use super::server::Client;

/// The longest command.
pub(crate) const COMMAND_BYTES_MAX: usize = 1024 * 1024;
/// A read of so much may have filled a segment, so that more of the same send follows: the
/// smallest that TCP has by default (RFC 9293, section 3.7.1).
const SEGMENT_BYTES_MIN: usize = 536;
/// How long the rest of a send is waited for.
const REST_TIME: Duration = Duration::from_millis(5);
/// The longest JSON header.
const HEADER_BYTES_MAX: usize = 64 * 1024;
/// How long a command waits for its client's other commands to end.
const PLACE_TIME: Duration = Duration::from_secs(10);
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

/// How many commands each client may run at once.
#[derive(Debug)]
pub(crate) struct Places {
    per_client: usize,
    of: Mutex<HashMap<Client, Arc<Semaphore>>>,
}

impl Places {
    pub(crate) fn new(per_client: usize) -> Self {
        Self {
            per_client,
            of: Mutex::default(),
        }
    }

    async fn take(&self, client: Client) -> Option<OwnedSemaphorePermit> {
        let places = {
            let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever has nobody waiting and nothing running is not worth remembering.
            of.retain(|_, places| {
                Arc::strong_count(places) > 1 || places.available_permits() < self.per_client
            });
            Arc::clone(
                of.entry(client)
                    .or_insert_with(|| Arc::new(Semaphore::new(self.per_client))),
            )
        };
        let place = tokio::time::timeout(PLACE_TIME, places.acquire_owned()).await;
        place.ok()?.ok()
    }
}

/// The header of a framed command.
#[derive(Debug, Deserialize)]
struct CommandHeader {
    total_size: u64,
}

impl Exec {
    /// Serves one connection.
    ///
    /// # Errors
    /// What ends it.
    pub(crate) async fn serve(&self, conn: &mut Conn) -> anyhow::Result<()> {
        while let Some(command) = self.command(conn).await? {
            if command.contains(&0) {
                bail!("there is a zero byte in the command");
            }
            let Some(ran) = self.run_watched(conn, &command).await else {
                tracing::info!(peer = %conn.peer, "the client has gone; its command was ended");
                return Ok(());
            };
            let reply = self.style.reply(ran);
            if self.style.framing == Framing::Ready {
                conn.send(&[&reply.header]).await?;
                match conn.exactly(b"ready".len()).await? {
                    Some(answer) if answer == b"ready" => {}
                    Some(_) => bail!("the client did not answer `ready`"),
                    None => return Ok(()),
                }
                conn.send(&[&reply.body]).await?;
            } else {
                conn.send(&[&reply.header, &reply.body]).await?;
            }
        }
        Ok(())
    }

    async fn command(&self, conn: &mut Conn) -> anyhow::Result<Option<Vec<u8>>> {
        match self.style.framing {
            Framing::Framed => framed(conn).await,
            _ => unmarked(conn).await,
        }
    }

    /// Runs a command for as long as somebody is there; `None` where nobody is any more,
    /// and its tree ends.
    async fn run_watched(
        &self,
        conn: &mut Conn,
        command: &[u8],
    ) -> Option<Result<Finished, RunError>> {
        let client = Client::of(&conn.peer);
        let run = async {
            let Some(_place) = self.places.take(client).await else {
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
            gone = conn.gone() => gone,
        };
        if gone {
            return None;
        }
        tokio::time::timeout(HALF_CLOSED_TIME, run).await.ok()
    }
}

/// A command is what one send put on the wire: what a read gives, and what follows at once
/// where that cannot have been all of it.
async fn unmarked(conn: &mut Conn) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(mut command) = conn.read().await? else {
        return Ok(None);
    };
    let mut last = command.len();
    while last >= SEGMENT_BYTES_MIN || whole_characters(&command) < command.len() {
        let more = conn.more(REST_TIME).await?;
        if more.is_empty() {
            break;
        }
        last = more.len();
        command.extend_from_slice(&more);
        if command.len() > COMMAND_BYTES_MAX {
            bail!("the command is longer than {COMMAND_BYTES_MAX} bytes");
        }
    }
    if command.ends_with(b"\r\n") {
        // A terminal's line end; the shell would take the first for part of a word.
        command.truncate(command.len() - 2);
    }
    Ok(Some(command))
}

async fn framed(conn: &mut Conn) -> anyhow::Result<Option<Vec<u8>>> {
    let Some(length) = conn.exactly(4).await? else {
        return Ok(None);
    };
    let length = <[u8; 4]>::try_from(length).unwrap_or_default();
    let length = usize::try_from(i32::from_le_bytes(length))
        .ok()
        .filter(|length| *length <= HEADER_BYTES_MAX)
        .with_context(|| {
            format!("the length of a header is negative or over {HEADER_BYTES_MAX} bytes")
        })?;
    let Some(header) = conn.exactly(length).await? else {
        return Ok(None);
    };
    let header: CommandHeader =
        serde_json::from_slice(&header).context("the header of the command")?;
    let length = usize::try_from(header.total_size)
        .ok()
        .filter(|length| *length <= COMMAND_BYTES_MAX)
        .with_context(|| format!("the command is longer than {COMMAND_BYTES_MAX} bytes"))?;
    Ok(conn.exactly(length).await?)
}
