//! Keys and trust: what proves who a client is, and which host keys a client believes.
//!
//! Everything here blocks and is quick; nothing here knows tokio or the network, so the keeper may use it too.
//! Files and the ssh-agent are where data enters; proofs, signatures and verdicts leave. Private keys, secrets
//! and passphrases never leave: not into an error, not into a `Debug` output, not to a peer.
//!
//! | module | for |
//! | --- | --- |
//! | [`verify`] | the keeper: whether a proof is good |
//! | [`host_key`] | the keeper: the key that a server shows |
//! | [`private_key`], [`key_file`] | keys in OpenSSH's format, and signatures with them |
//! | [`trust`] | the client: whether a host's key is the right one |
//! | [`secret`] | both: a secret that client and server share |
//! | [`keygen`], [`authorize`] | the commands of these names |
//! | [`identity`], [`signer`], [`agent`] | the client: which keys it offers, and what signs with them |
//! | [`ssh_config`] | the client: what ssh is told about a host |
//! | [`places`] | where a user's keys and hosts lie |
//! | [`private_file`], [`line_file`] | files that others must not read or change, and files that grow by lines |

pub mod agent;
pub mod authorize;
pub mod host_key;
pub mod identity;
pub mod key_file;
pub mod keygen;
pub mod line_file;
pub mod places;
pub mod private_file;
mod private_group;
pub mod private_key;
pub mod secret;
pub mod signer;
pub mod ssh_config;
pub mod trust;
pub mod verify;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bowline_proto::key::PublicKey;

/// The fingerprint of a key as `ssh-keygen -lf` prints it: `SHA256:` and base64 without padding.
pub fn fingerprint(key: &PublicKey) -> String {
    let digest = digest::digest(&digest::SHA256, key.blob());
    format!("SHA256:{}", STANDARD_NO_PAD.encode(digest))
}
