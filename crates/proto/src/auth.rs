//! Authentication: what a client proves, over which exact bytes, and how proofs are written.
//!
//! Owns the bytes that are signed or authenticated with a key. It signs and verifies nothing, so both sides
//! and the keeper share it without sharing any cryptography. Proofs enter from the `auth` message and leave
//! for the verifier.
//!
//! # What is signed
//! A message is five fields, each a length (u32 little-endian) and its bytes, so that no two different
//! inputs give the same bytes:
//!
//! | field | bytes | public-key proof | shared secret, client | shared secret, server |
//! | --- | --- | --- | --- | --- |
//! | purpose | 9 to 13 | `publickey` | `secret-client` | `secret-server` |
//! | binding's kind | 12 | `tls-exporter` or `server-nonce` | same | same |
//! | binding | 32 | TLS exporter or nonce | same | same |
//! | user | any | the user asked for, UTF-8 | same | same |
//! | protocol | any | the ALPN name, `bowline/1` | same | same |
//!
//! The public-key message is signed as SSHSIG in the namespace [`NAMESPACE`]; the secret messages go through
//! HMAC-SHA256 keyed with the secret. The exporter is taken from TLS 1.3 (RFC 8446, section 7.5) with the
//! label [`EXPORTER_LABEL`], without a context, 32 bytes.
//!
//! # What is sent
//!
//! | proof | JSON |
//! | --- | --- |
//! | public key | `{"type":"publickey","sshsig":"<base64 of the SSHSIG blob>"}` |
//! | shared secret | `{"type":"secret","mac":"<64 hex digits>"}` |
//! | peer | `{"type":"peer"}`: on a Unix socket the peer's uid decides |

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

pub use crate::limits::{PROOFS_MAX, USER_BYTES_MAX};
use crate::sshsig::SSHSIG_BYTES_MAX;

/// The SSHSIG namespace of bowline's proofs: a signature made for anything else never counts.
pub const NAMESPACE: &str = "auth@bowline";
/// The label of the TLS exporter that binds a proof to its connection.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-bowline-auth";

/// Ties a proof to one connection, so that it is worth nothing on another.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Binding {
    /// The TLS exporter: both ends compute it, nobody between them can.
    Exporter([u8; 32]),
    /// A nonce from the server's hello, on a Unix socket or stdio where there is no TLS.
    Nonce([u8; 32]),
}

impl Binding {
    fn parts(&self) -> (&'static [u8], &[u8; 32]) {
        match self {
            Binding::Exporter(bytes) => (b"tls-exporter", bytes),
            Binding::Nonce(bytes) => (b"server-nonce", bytes),
        }
    }
}

impl fmt::Debug for Binding {
    /// Names the kind alone: with an exporter in a log, a proof could be checked against guesses of a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, _) = self.parts();
        f.write_str(&String::from_utf8_lossy(kind))
    }
}

/// Who computes a shared-secret proof. It is part of the input: an echo proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The side that connected.
    Client,
    /// The side that was connected to.
    Server,
}

/// The bytes that a public-key proof signs as SSHSIG in [`NAMESPACE`].
pub fn public_key_message(binding: &Binding, user: &str, protocol: &str) -> Vec<u8> {
    message(b"publickey", binding, user, protocol)
}

/// The bytes that a shared-secret proof authenticates with HMAC-SHA256.
pub fn secret_message(role: Role, binding: &Binding, user: &str, protocol: &str) -> Vec<u8> {
    let purpose: &[u8] = match role {
        Role::Client => b"secret-client",
        Role::Server => b"secret-server",
    };
    message(purpose, binding, user, protocol)
}

fn message(purpose: &[u8], binding: &Binding, user: &str, protocol: &str) -> Vec<u8> {
    let (kind, binding) = binding.parts();
    let mut bytes = Vec::new();
    for field in [purpose, kind, binding, user.as_bytes(), protocol.as_bytes()] {
        // Every field is a constant or bounded by the frame that carried it, so the length always fits.
        let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(field);
    }
    bytes
}

/// One proof of who the client is. Nothing in it has been verified.
///
/// Its derived serde form is for compact encodings between bowline's own processes; on the wire it is written
/// as [`ProofJson`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// A binary SSHSIG blob over [`public_key_message`].
    PublicKey {
        /// At most [`SSHSIG_BYTES_MAX`] bytes.
        sshsig: Vec<u8>,
    },
    /// HMAC-SHA256 over [`secret_message`] of [`Role::Client`].
    Secret {
        /// The authentication code.
        mac: [u8; 32],
    },
    /// The uid that the kernel tells about the other end of a Unix socket.
    Peer,
}

/// What can be wrong with the proofs of an `auth`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// More than [`PROOFS_MAX`].
    #[error("more than {PROOFS_MAX} proofs")]
    TooMany,
    /// A signature of more than [`SSHSIG_BYTES_MAX`] bytes.
    #[error("a proof is longer than {SSHSIG_BYTES_MAX} bytes")]
    TooLong,
    /// A signature that is not base64.
    #[error("a signature is not base64")]
    NotBase64,
    /// A code that is not 64 hex digits.
    #[error("an authentication code is not 64 hex digits")]
    NotHex,
}

/// A proof as it stands in the JSON header of `auth`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum ProofJson {
    /// See [`Proof::PublicKey`].
    PublicKey {
        /// Base64 (RFC 4648, section 4, padded).
        sshsig: String,
    },
    /// See [`Proof::Secret`].
    Secret {
        /// 64 hex digits.
        mac: String,
    },
    /// See [`Proof::Peer`].
    Peer,
}

impl From<&Proof> for ProofJson {
    fn from(proof: &Proof) -> ProofJson {
        match proof {
            Proof::PublicKey { sshsig } => ProofJson::PublicKey {
                sshsig: STANDARD.encode(sshsig),
            },
            Proof::Secret { mac } => ProofJson::Secret {
                mac: hex::encode(mac),
            },
            Proof::Peer => ProofJson::Peer,
        }
    }
}

impl TryFrom<&ProofJson> for Proof {
    type Error = ProofError;

    fn try_from(proof: &ProofJson) -> Result<Proof, ProofError> {
        match proof {
            ProofJson::PublicKey { sshsig } => {
                if sshsig.len() > SSHSIG_BYTES_MAX.div_ceil(3) * 4 {
                    return Err(ProofError::TooLong);
                }
                let sshsig = STANDARD.decode(sshsig).map_err(|_| ProofError::NotBase64)?;
                if sshsig.len() > SSHSIG_BYTES_MAX {
                    return Err(ProofError::TooLong);
                }
                Ok(Proof::PublicKey { sshsig })
            }
            ProofJson::Secret { mac } => {
                let mut bytes = [0; 32];
                hex::decode_to_slice(mac, &mut bytes).map_err(|_| ProofError::NotHex)?;
                Ok(Proof::Secret { mac: bytes })
            }
            ProofJson::Peer => Ok(Proof::Peer),
        }
    }
}

/// Writes proofs for the header of `auth`.
pub fn proofs_to_json(proofs: &[Proof]) -> Vec<ProofJson> {
    proofs.iter().map(ProofJson::from).collect()
}

/// Reads the proofs of an `auth` header.
///
/// # Errors
/// If there are too many, or one is too long or malformed: then none counts.
pub fn proofs_from_json(proofs: &[ProofJson]) -> Result<Vec<Proof>, ProofError> {
    if proofs.len() > PROOFS_MAX {
        return Err(ProofError::TooMany);
    }
    proofs.iter().map(Proof::try_from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Deserialize)]
    struct Vectors {
        messages: Vec<MessageVector>,
        proofs: Vec<ProofVector>,
    }

    #[derive(Deserialize)]
    struct MessageVector {
        kind: String,
        binding: String,
        binding_hex: String,
        user: String,
        protocol: String,
        message_hex: String,
    }

    #[derive(Deserialize)]
    struct ProofVector {
        json: serde_json::Value,
        sshsig_hex: Option<String>,
        mac_hex: Option<String>,
    }

    fn vectors() -> Vectors {
        serde_json::from_str(include_str!("../vectors/auth.json")).unwrap()
    }

    #[test]
    fn messages_are_those_of_the_vectors() {
        let vectors = vectors();
        assert_eq!(vectors.messages.len(), 4);
        for vector in vectors.messages {
            let bytes = hex::decode(&vector.binding_hex)
                .unwrap()
                .try_into()
                .unwrap();
            let binding = match vector.binding.as_str() {
                "tls-exporter" => Binding::Exporter(bytes),
                "server-nonce" => Binding::Nonce(bytes),
                other => panic!("binding {other}"),
            };
            let (user, protocol) = (&vector.user, &vector.protocol);
            let message = match vector.kind.as_str() {
                "publickey" => public_key_message(&binding, user, protocol),
                "secret-client" => secret_message(Role::Client, &binding, user, protocol),
                "secret-server" => secret_message(Role::Server, &binding, user, protocol),
                other => panic!("kind {other}"),
            };
            assert_eq!(hex::encode(message), vector.message_hex, "{}", vector.kind);
        }
    }

    #[test]
    fn proofs_are_those_of_the_vectors() {
        for vector in vectors().proofs {
            let expected = match (vector.sshsig_hex, vector.mac_hex) {
                (Some(sshsig), None) => Proof::PublicKey {
                    sshsig: hex::decode(sshsig).unwrap(),
                },
                (None, Some(mac)) => Proof::Secret {
                    mac: hex::decode(mac).unwrap().try_into().unwrap(),
                },
                (None, None) => Proof::Peer,
                both => panic!("{both:?}"),
            };
            let json: ProofJson = serde_json::from_value(vector.json.clone()).unwrap();
            assert_eq!(Proof::try_from(&json).unwrap(), expected);
            assert_eq!(serde_json::to_value(&json).unwrap(), vector.json);
        }
    }

    #[test]
    fn caps_hold() {
        let proofs = vec![ProofJson::Peer; PROOFS_MAX + 1];
        assert_eq!(proofs_from_json(&proofs), Err(ProofError::TooMany));
        assert!(proofs_from_json(&proofs[1..]).is_ok());
        let signature = |length| ProofJson::PublicKey {
            sshsig: STANDARD.encode(vec![0; length]),
        };
        assert!(Proof::try_from(&signature(SSHSIG_BYTES_MAX)).is_ok());
        assert_eq!(
            Proof::try_from(&signature(SSHSIG_BYTES_MAX + 1)),
            Err(ProofError::TooLong)
        );
        // The largest permitted set fits a frame before authentication, with room for user and JSON.
        let largest = vec![signature(SSHSIG_BYTES_MAX); PROOFS_MAX];
        assert!(serde_json::to_vec(&largest).unwrap().len() < 16 * 1024 - 1024);
    }

    #[test]
    fn malformed_json_proofs_are_refused() {
        for json in [
            r#"{"type":"peer","type":"peer"}"#,
            r#"{"type":"secret","mac":"00","mac":"00"}"#,
            r#"{"type":"publickey"}"#,
            r#"{"type":"other"}"#,
            r#"{"mac":"00"}"#,
        ] {
            assert!(serde_json::from_str::<ProofJson>(json).is_err(), "{json}");
        }
        let short = ProofJson::Secret {
            mac: "00".to_owned(),
        };
        assert_eq!(Proof::try_from(&short), Err(ProofError::NotHex));
        let unknown_key = r#"{"type":"peer","later":1}"#;
        assert_eq!(
            serde_json::from_str::<ProofJson>(unknown_key).unwrap(),
            ProofJson::Peer
        );
    }

    proptest! {
        #[test]
        fn different_inputs_give_different_messages(
            a in (any::<[u8; 32]>(), any::<bool>(), ".{0,8}", ".{0,8}", 0..3),
            b in (any::<[u8; 32]>(), any::<bool>(), ".{0,8}", ".{0,8}", 0..3),
            same_binding in any::<bool>(),
        ) {
            let bytes = |(bytes, exporter, user, protocol, kind): &([u8; 32], bool, String, String, i32)| {
                let binding = if *exporter { Binding::Exporter(*bytes) } else { Binding::Nonce(*bytes) };
                match kind {
                    0 => public_key_message(&binding, user, protocol),
                    1 => secret_message(Role::Client, &binding, user, protocol),
                    _ => secret_message(Role::Server, &binding, user, protocol),
                }
            };
            let mut b = b;
            if same_binding {
                b.0 = a.0;
                b.1 = a.1;
            }
            prop_assert_eq!(a == b, bytes(&a) == bytes(&b));
        }
    }
}
