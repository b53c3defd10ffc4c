//! What a client proves and what is signed for it. (A placeholder of the types
//! that the IPC names; the credentials work fills it in.)

use serde::{Deserialize, Serialize};

/// What a proof is bound to, so that it cannot be used on another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Binding {
    /// The TLS exporter of this connection.
    Exporter([u8; 32]),
    /// The nonce of the server's hello, where there is no TLS.
    Nonce([u8; 32]),
}

/// One proof of who the client is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// A binary SSHSIG blob; it names its key.
    PublicKey { sshsig: Vec<u8> },
    /// HMAC-SHA256 under the shared secret.
    Secret { mac: [u8; 32] },
    /// The uid of the Unix socket's peer.
    Peer,
}
