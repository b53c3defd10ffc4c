//! From a host and a port to a TLS connection, with the key that the host showed.
//!
//! A path that was just down may let a connection through and then nothing more, and the
//! kernel's repetitions are as rare there as anywhere. So while one hurries, a handshake that
//! takes long gets company: another connection is made beside it, and the first whose handshake
//! ends is taken. Neither is given up for the other, because a server on which many come back
//! at once is slow too, and would only get more to do.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::task::JoinSet;

use super::connect::Options;
use super::error::ClientError;
use super::reach::reach;
use crate::driver::Wire;
use crate::net::{Socket, tls};

/// How long a handshake is alone; the next one is so for twice as long.
const ALONE_TIME: Duration = Duration::from_secs(2);

/// What a handshake gives.
type Shaken = Result<(Wire, [u8; 32]), ClientError>;

/// Connects and does the TLS handshake. Whether the key is the right one is its caller's question.
///
/// # Errors
/// [`ClientError`], of the last attempt.
pub(super) async fn meet(host: &str, port: u16, options: &Options) -> Shaken {
    if options.hurry.is_none() {
        return handshake(socket(host, port, options).await?).await;
    }
    let mut handshakes = JoinSet::new();
    let mut alone = ALONE_TIME;
    loop {
        let socket = tokio::select! {
            shaken = handshakes.join_next(), if !handshakes.is_empty() => return first(shaken),
            socket = socket(host, port, options) => socket?,
        };
        handshakes.spawn(handshake(socket));
        tokio::select! {
            shaken = handshakes.join_next() => return first(shaken),
            () = tokio::time::sleep(alone) => alone *= 2,
        }
    }
}

fn first(shaken: Option<Result<Shaken, tokio::task::JoinError>>) -> Shaken {
    match shaken {
        Some(Ok(shaken)) => shaken,
        Some(Err(_)) | None => Err(ClientError::Closed),
    }
}

async fn socket(host: &str, port: u16, options: &Options) -> Result<Socket, ClientError> {
    let failed = |source| ClientError::Connect {
        to: super::Endpoint::Tcp(host.to_owned(), port).to_string(),
        source,
    };
    let stream = reach(host, port, options.hurry.as_ref()).await;
    let socket = Socket::tcp(stream.map_err(failed)?).map_err(failed)?;
    if let Some(bound) = options.silence {
        socket.bound_silence(bound).map_err(failed)?;
    }
    Ok(socket)
}

/// Does the TLS handshake and tells the host key that it showed.
async fn handshake(socket: Socket) -> Shaken {
    let (config, seen) = tls::client_config()?;
    // The name is not sent and decides nothing; see `tls`.
    let name = ServerName::try_from("bowline").map_err(|_| ClientError::Closed)?;
    let tls = rustls::ClientConnection::new(Arc::clone(&config), name)?;
    let mut wire = Wire::tls(socket, tls);
    std::future::poll_fn(|cx| wire.poll_handshake(cx)).await?;
    if wire.is_handshaking() {
        return Err(ClientError::Closed);
    }
    let key = seen.take().ok_or(ClientError::Closed)?;
    Ok((wire, key))
}
