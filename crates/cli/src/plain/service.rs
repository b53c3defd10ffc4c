//! What each plain service does with a connection or a datagram, on the servers of
//! `bowline::net`.
//!
//! A closed set, so an enum. `exec`, `chat` and `time` have files of their own.

use std::sync::Arc;

use bowline::net::{
    Answer, Authentication, Connection, DatagramService, Peer, ServiceError, StreamService,
};
use bowline_proto::plain::ntp;
use bowline_proto::plain::text::whole_characters;

use super::challenge::{CHALLENGE_BYTES, Secret};
use super::chat::Chat;
use super::exec::Exec;
use super::screen::Screen;
use super::time::Time;
use crate::clock::unix_ms;
use crate::{exit, system_clock};

/// The lowest port that a program without privileges gets.
const ORDINARY_PORT_MIN: u16 = 1024;

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

/// A service as its servers have it: one of streams and one of datagrams can share it.
#[derive(Clone, Debug)]
pub(crate) struct Shared(pub(crate) Arc<Handler>);

impl StreamService for Shared {
    async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        match &*self.0 {
            Handler::Upper => upper(connection).await,
            Handler::Stamp => stamp(connection).await,
            Handler::Greet { text, screen } => {
                if let Some(bytes) = connection.read().await? {
                    screen.show(&connection.peer().to_string(), &bytes).await;
                    drop(bytes);
                    connection.send(text.as_bytes()).await?;
                }
                Ok(())
            }
            Handler::Chat(chat) => chat.serve(connection).await,
            Handler::Show(screen) => {
                let from = connection.peer().to_string();
                while let Some(bytes) = connection.read().await? {
                    screen.show_sized(&from, &bytes).await;
                }
                Ok(())
            }
            // It has datagrams alone; no stream is bound for it.
            Handler::Time(_) => Ok(()),
            Handler::Exec(exec) => exec.serve(connection).await,
        }
    }

    fn handle_error(&self, peer: &Peer, error: &ServiceError) {
        match error {
            ServiceError::NotAuthenticated => {
                tracing::info!(%peer, "the answer to the challenge is wrong");
            }
            error => tracing::warn!(%peer, error = exit::chain(error), "a connection was closed"),
        }
    }
}

impl DatagramService for Shared {
    async fn answer(
        &self,
        request: &[u8],
        peer: &Peer,
        reply: &mut Vec<u8>,
    ) -> Result<Answer, ServiceError> {
        Ok(match &*self.0 {
            Handler::Upper => {
                reply.extend(request.iter().map(u8::to_ascii_uppercase));
                Answer::Reply
            }
            Handler::Show(screen) => {
                screen.show_sized(&peer.to_string(), request).await;
                Answer::Nothing
            }
            Handler::Time(time) => time.answer(request, peer, reply),
            _ => Answer::Nothing,
        })
    }

    fn verify_request(&self, _request: &[u8], peer: &Peer) -> bool {
        is_ordinary(peer)
    }
}

/// A port that a client has, and no service that might answer our answer.
fn is_ordinary(peer: &Peer) -> bool {
    peer.address()
        .is_none_or(|address| address.port() == ntp::PORT || address.port() >= ORDINARY_PORT_MIN)
}

/// What a client must prove before the service sees it, if anything.
#[derive(Debug)]
pub(crate) struct Challenge(pub(crate) Option<Secret>);

impl Authentication for Challenge {
    async fn authenticate(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        let Some(secret) = &self.0 else {
            return Ok(());
        };
        let mut challenge = [0; CHALLENGE_BYTES];
        aws_lc_rs::rand::fill(&mut challenge)
            .map_err(|_| ServiceError::failed("there are no random bytes"))?;
        connection.send(&challenge).await?;
        let mut answer = vec![0; secret.answer_len()];
        connection.reader.read_exact(&mut answer).await?;
        match secret.verify(&challenge, &answer) {
            true => Ok(()),
            false => Err(ServiceError::NotAuthenticated),
        }
    }

    fn is_needed(&self) -> bool {
        self.0.is_some()
    }
}

async fn upper(connection: &mut Connection) -> Result<(), ServiceError> {
    while let Some(mut bytes) = connection.read().await? {
        bytes.make_ascii_uppercase();
        connection.send(&bytes).await?;
    }
    Ok(())
}

async fn stamp(connection: &mut Connection) -> Result<(), ServiceError> {
    let mut begun = Vec::new();
    while let Some(bytes) = connection.read().await? {
        begun.extend_from_slice(&bytes);
        drop(bytes);
        let rest = begun.split_off(whole_characters(&begun));
        // Half a character alone waits for its other half.
        if !begun.is_empty() {
            connection.send(&stamped(&begun)).await?;
        }
        begun = rest;
    }
    if !begun.is_empty() {
        connection.send(&stamped(&begun)).await?;
    }
    Ok(())
}

/// `【Sun Nov  8 07:05:03 2026】 text`.
fn stamped(text: &[u8]) -> Vec<u8> {
    let seconds = i64::try_from(unix_ms() / 1000).unwrap_or_default();
    let stamp = format!("【{}】 ", system_clock::ctime(seconds));
    [stamp.as_bytes(), text].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_other_services_are_told_from_those_of_clients() {
        let ordinary = |port: u16| is_ordinary(&Peer::Ip(([192, 0, 2, 1], port).into()));
        assert!(ordinary(123) && ordinary(1024) && ordinary(65_535));
        assert!(!ordinary(0) && !ordinary(7) && !ordinary(122) && !ordinary(1023));
    }
}
