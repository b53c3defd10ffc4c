//! What each plain service does with a connection or a datagram.
//!
//! A closed set, so an enum: what comes in and what goes out of each is in PLAIN's
//! table in docs/plain.md. `exec`, `chat` and `time` have files of their own.

use bowline::net::Peer;
use bowline_proto::plain::text::whole_characters;

use super::chat::Chat;
use super::conn::Conn;
use super::exec::Exec;
use super::screen::Screen;
use super::time::Time;
use crate::clock::unix_ms;
use crate::system_clock;

/// A service.
#[derive(Debug)]
pub(crate) enum Handler {
    Upper,
    Stamp,
    Greet { text: String, screen: Screen },
    Chat(Chat),
    Show(Screen),
    Time(Time),
    Exec(Exec),
}

/// Whether a datagram has an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Reply,
    Nothing,
}

impl Handler {
    /// Serves one connection to its end.
    ///
    /// # Errors
    /// What ends this connection alone.
    pub(crate) async fn serve(&self, conn: &mut Conn) -> anyhow::Result<()> {
        match self {
            Self::Upper => upper(conn).await,
            Self::Stamp => stamp(conn).await,
            Self::Greet { text, screen } => {
                if let Some(bytes) = conn.read().await? {
                    screen.show(&conn.peer.to_string(), &bytes).await;
                    conn.send(&[text.as_bytes()]).await?;
                }
                Ok(())
            }
            Self::Chat(chat) => chat.serve(conn).await,
            Self::Show(screen) => {
                while let Some(bytes) = conn.read().await? {
                    screen.show_sized(&conn.peer.to_string(), &bytes).await;
                }
                Ok(())
            }
            // It has datagrams alone; no stream is bound for it.
            Self::Time(_) => Ok(()),
            Self::Exec(exec) => exec.serve(conn).await,
        }
    }

    /// Answers one datagram into `reply`, which is empty.
    pub(crate) async fn answer(&self, request: &[u8], peer: &Peer, reply: &mut Vec<u8>) -> Answer {
        match self {
            Self::Upper => {
                reply.extend(request.iter().map(u8::to_ascii_uppercase));
                Answer::Reply
            }
            Self::Show(screen) => {
                screen.show_sized(&peer.to_string(), request).await;
                Answer::Nothing
            }
            Self::Time(time) => time.answer(request, peer, reply),
            _ => Answer::Nothing,
        }
    }
}

async fn upper(conn: &mut Conn) -> anyhow::Result<()> {
    while let Some(mut bytes) = conn.read().await? {
        bytes.make_ascii_uppercase();
        conn.send(&[&bytes]).await?;
    }
    Ok(())
}

async fn stamp(conn: &mut Conn) -> anyhow::Result<()> {
    let mut begun = Vec::new();
    while let Some(bytes) = conn.read().await? {
        begun.extend_from_slice(&bytes);
        let rest = begun.split_off(whole_characters(&begun));
        // Half a character alone waits for its other half.
        if !begun.is_empty() {
            conn.send(&[stamped(&begun).as_slice()]).await?;
        }
        begun = rest;
    }
    if !begun.is_empty() {
        conn.send(&[stamped(&begun).as_slice()]).await?;
    }
    Ok(())
}

/// `【Sun Nov  8 07:05:03 2026】 text`.
fn stamped(text: &[u8]) -> Vec<u8> {
    let seconds = i64::try_from(unix_ms() / 1000).unwrap_or_default();
    let stamp = format!("【{}】 ", system_clock::ctime(seconds));
    [stamp.as_bytes(), text].concat()
}
