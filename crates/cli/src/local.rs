//! The target `local`: a keeper and a gate of its own on loopback, with fresh
//! keys, for one call. The whole real path, gone without a trace afterwards.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};
use bowline::client::{Endpoint, HostKeyError, HostTrust, Proofs, ServerProof};
use bowline::credentials::host_key::HostKey;
use bowline::credentials::private_key::PrivateKey;
use bowline_proto::auth::{Binding, NAMESPACE, Proof, public_key_message};
use bowline_proto::limits::PROTOCOL;

/// A server that ends when this value, or this process, does: its stdin is a
/// pipe that only we hold.
#[derive(Debug)]
pub(crate) struct LocalServer {
    child: Child,
    dir: PathBuf,
    port: u16,
    host_key: [u8; 32],
    identity: Option<PrivateKey>,
}

impl LocalServer {
    /// Starts the server and waits until it listens.
    ///
    /// # Errors
    /// Where its files cannot be made or it does not come up.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let dir = make_dir().context("a temporary folder")?;
        match Self::start_in(&dir) {
            Ok(server) => Ok(server),
            Err(error) => {
                let _ = std::fs::remove_dir_all(&dir);
                Err(error)
            }
        }
    }

    fn start_in(dir: &Path) -> anyhow::Result<Self> {
        let identity = PrivateKey::generate().context("a fresh key")?;
        let host_key = fresh_host_key(dir)?;
        let grants = grants_of(dir);
        std::fs::write(&grants, format!("{}\n", identity.public())).context("the grant file")?;
        let (child, address) = start_server(dir, "tcp://127.0.0.1:0", |_| {})?;
        let mut server = Self {
            child,
            dir: dir.to_owned(),
            port: 0,
            host_key,
            identity: Some(identity),
        };
        let port = address.strip_prefix("tcp://127.0.0.1:");
        match port.and_then(|port| port.parse().ok()) {
            Some(port) => server.port = port,
            None => {
                server.finish();
                bail!("it listens on {address:?}");
            }
        }
        Ok(server)
    }

    /// How to connect to it. The key is handed out once.
    pub(crate) fn access(&mut self) -> anyhow::Result<(Endpoint, FreshKey, KnownKey)> {
        let identity = self.identity.take().context("handed out already")?;
        Ok((
            Endpoint::Tcp("127.0.0.1".to_owned(), self.port),
            FreshKey(identity),
            KnownKey(self.host_key),
        ))
    }

    /// Ends the server and removes what it left.
    pub(crate) fn finish(mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The host key of a server whose files all lie in one folder; its public half.
///
/// # Errors
/// Where it cannot be made.
pub(crate) fn fresh_host_key(dir: &Path) -> anyhow::Result<[u8; 32]> {
    let host_key = HostKey::load_or_create(&host_key_of(dir)).context("a fresh host key")?;
    host_key.public().ed25519().context("an Ed25519 key")
}

fn host_key_of(dir: &Path) -> PathBuf {
    dir.join("host_key")
}

fn grants_of(dir: &Path) -> PathBuf {
    dir.join("authorized_keys")
}

/// Starts a server that keeps everything in `dir`, ends with its stdin, and serves
/// nobody but whom `dir` and `more` name; gives the address that it listens on.
///
/// # Errors
/// Where it does not come up; it is gone then.
pub(crate) fn start_server(
    dir: &Path,
    listen: &str,
    more: impl FnOnce(&mut Command),
) -> anyhow::Result<(Child, String)> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0_of_this_process()
        .args(["serve", "--lifeline", "--listen", listen])
        .arg("--state-dir")
        .arg(dir)
        .arg("--host-key")
        .arg(host_key_of(dir))
        .arg("--authorized-keys")
        .arg(grants_of(dir));
    more(&mut command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // A Ctrl-C on the terminal is for the job, not for its server.
        .process_group(0)
        .spawn()
        .context("bowline itself")?;
    let stdout = child.stdout.take().context("its stdout")?;
    match listening(BufReader::new(stdout)) {
        Ok(address) => Ok((child, address)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// A folder of its own name. As root the gate, which runs as somebody else,
/// has to be able to reach its part; the secrets in it have modes of their own.
pub(crate) fn make_dir() -> anyhow::Result<PathBuf> {
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow::anyhow!("no random bytes"))?;
    let dir = std::env::temp_dir().join(format!("bowline-local-{}", hex::encode(random)));
    std::fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
    let mode = if rustix::process::geteuid().is_root() {
        0o711
    } else {
        0o700
    };
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode))?;
    Ok(dir)
}

/// Reads `listening ADDRESS`.
fn listening(mut stdout: impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    stdout.read_line(&mut line).context("its first line")?;
    let address = line.trim_end().strip_prefix("listening ");
    address
        .map(str::to_owned)
        .with_context(|| format!("it did not say where it listens, but {line:?}"))
}

trait OwnName {
    /// Shows in ps(1) under the name that a person typed.
    fn arg0_of_this_process(&mut self) -> &mut Self;
}

impl OwnName for Command {
    fn arg0_of_this_process(&mut self) -> &mut Self {
        match std::env::args_os().next() {
            Some(name) => self.arg0(name),
            None => self,
        }
    }
}

/// The key that was made for the one call.
#[derive(Debug)]
pub(crate) struct FreshKey(PrivateKey);

impl Proofs for FreshKey {
    fn proofs(&mut self, binding: &Binding, user: &str) -> Vec<Proof> {
        let message = public_key_message(binding, user, PROTOCOL);
        let signed = self.0.sign_sshsig(NAMESPACE, &message);
        signed
            .map(|sshsig| Proof::PublicKey { sshsig })
            .into_iter()
            .collect()
    }

    fn server_proof(&mut self, _binding: &Binding, _user: &str) -> Option<ServerProof> {
        None
    }
}

/// The host key that was made for the one call.
#[derive(Debug)]
pub(crate) struct KnownKey([u8; 32]);

impl HostTrust for KnownKey {
    fn check(&mut self, host: &str, _port: u16, key: &[u8; 32]) -> Result<(), HostKeyError> {
        if *key == self.0 {
            return Ok(());
        }
        Err(HostKeyError::Changed {
            host: host.to_owned(),
            place: "the key made for this call".to_owned(),
            fingerprint: bowline::credentials::fingerprint(
                &bowline_proto::key::PublicKey::from_ed25519(key),
            ),
        })
    }
}
