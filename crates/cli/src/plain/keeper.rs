//! The keeper and gate behind a plain `exec` service: started with the service,
//! ended with it, and asked over a private Unix socket like any server.
//!
//! Whoever connects to the service never speaks to them; the service does, as the
//! account that its commands run as. That account's connection is the standing grant.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context as _, bail};
use bowline::client::{
    self, Access, ClientError, Connection, Endpoint, HostKeyError, HostTrust, Options, Proofs,
    ServerProof,
};
use bowline_proto::auth::{Binding, Proof};

use crate::local;

/// The running server; it ends when this value, or this process, does.
#[derive(Debug)]
pub(crate) struct Keeper {
    child: Child,
    socket: PathBuf,
    /// The account that commands run as; empty is the one of this process.
    user: String,
    /// A folder to remove at the end, where the state is not to be kept.
    folder: Option<PathBuf>,
}

impl Keeper {
    /// Starts it. `user` names another account, as root; with `state_dir` the record
    /// of what ran is left there.
    ///
    /// # Errors
    /// Where its files cannot be made or it does not come up.
    pub(crate) fn start(user: Option<&str>, state_dir: Option<&Path>) -> anyhow::Result<Self> {
        let (dir, folder) = match state_dir {
            Some(dir) => {
                std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
                (std::path::absolute(dir)?, None)
            }
            None => {
                let dir = local::make_dir().context("a temporary folder")?;
                (dir.clone(), Some(dir))
            }
        };
        let started = Self::start_in(&dir, user, folder.clone());
        if let (Err(_), Some(folder)) = (&started, &folder) {
            let _ = std::fs::remove_dir_all(folder);
        }
        started.context("the keeper of the commands")
    }

    fn start_in(dir: &Path, user: Option<&str>, folder: Option<PathBuf>) -> anyhow::Result<Self> {
        local::fresh_host_key(dir)?;
        // No key lets anybody in: only the uid of the socket's other end does.
        std::fs::write(dir.join("authorized_keys"), "").context("the grant file")?;
        let socket = dir.join("keeper.sock");
        let listen = format!("unix:{}", socket.display());
        if listen.len() > "unix:".len() + bowline::net::UNIX_NAME_BYTES_MAX {
            bail!("{} is too long for a socket's path", socket.display());
        }
        let (child, address) = local::start_server(dir, &listen, |command| {
            if let Some(user) = user {
                command.args(["--allow-user", user]);
            }
            if folder.is_none() {
                command.arg("--keep-state");
            }
        })?;
        debug_assert_eq!(address, listen);
        // The account of the commands has to reach the socket; what else lies there is private.
        let others = std::fs::Permissions::from_mode(0o711);
        if user.is_some() {
            std::fs::set_permissions(dir, others).context("the state directory")?;
        }
        Ok(Self {
            child,
            socket,
            user: user.unwrap_or_default().to_owned(),
            folder,
        })
    }

    /// What a connection needs to know.
    pub(crate) fn address(&self) -> Address {
        Address {
            socket: self.socket.clone(),
            user: self.user.clone(),
        }
    }

    /// Ends it with every command that still runs, and waits until it has.
    pub(crate) fn finish(mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
        if let Some(folder) = self.folder.take() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// Where a keeper is, and as whom to come.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    socket: PathBuf,
    user: String,
}

impl Address {
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn connect(&self) -> Result<Connection, ClientError> {
        let access = Access {
            user: self.user.clone(),
            proofs: &mut OwnUid,
            trust: &mut NoHostKey,
        };
        let to = Endpoint::Unix(self.socket.clone());
        client::connect(&to, access, &Options::default()).await
    }
}

/// The kernel says who we are.
struct OwnUid;

impl Proofs for OwnUid {
    fn proofs(&mut self, _binding: &Binding, _user: &str) -> Vec<Proof> {
        vec![Proof::Peer]
    }

    fn server_proof(&mut self, _binding: &Binding, _user: &str) -> Option<ServerProof> {
        None
    }
}

/// A Unix socket shows no host key, so none is ever taken.
struct NoHostKey;

impl HostTrust for NoHostKey {
    fn check(&mut self, host: &str, _port: u16, key: &[u8; 32]) -> Result<(), HostKeyError> {
        Err(HostKeyError::Unknown {
            host: host.to_owned(),
            fingerprint: bowline::credentials::fingerprint(
                &bowline_proto::key::PublicKey::from_ed25519(key),
            ),
        })
    }
}
