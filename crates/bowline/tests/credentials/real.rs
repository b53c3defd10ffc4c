//! The real programs of OpenSSH, run in a temporary folder with a cleared environment.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bowline_proto::key::PublicKey;
use tempfile::TempDir;

/// A temporary home.
pub(crate) struct Home {
    dir: TempDir,
}

impl Home {
    pub(crate) fn new() -> Home {
        Home {
            dir: TempDir::with_prefix("bowline-credentials-").unwrap(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a file with these permissions, and the folders above it.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A command with this home and nothing else in its environment.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.path())
            .env("LC_ALL", "C")
            .current_dir(self.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs ssh-keygen and requires success.
    pub(crate) fn keygen<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        let output = self.command("ssh-keygen").args(args).output().unwrap();
        succeeded(&output)
    }

    /// Makes a key pair with ssh-keygen, e.g. `("rsa", "3072")`; an empty passphrase is none.
    pub(crate) fn key(&self, name: &str, kind: (&str, &str), passphrase: &str) -> PathBuf {
        let path = self.join(name);
        let mut args: Vec<&OsStr> = ["-q", "-t", kind.0, "-N", passphrase, "-C", "test@bowline"]
            .map(OsStr::new)
            .to_vec();
        if !kind.1.is_empty() {
            args.extend([OsStr::new("-b"), OsStr::new(kind.1)]);
        }
        args.extend([OsStr::new("-f"), path.as_os_str()]);
        self.keygen(args);
        path
    }

    /// Signs with `ssh-keygen -Y sign` and gives the blob inside the armour.
    pub(crate) fn sign(&self, key: &Path, namespace: &str, hash: &str, message: &[u8]) -> Vec<u8> {
        let mut child = self
            .command("ssh-keygen")
            .args(["-Y", "sign", "-n", namespace, "-O"])
            .arg(format!("hashalg={hash}"))
            .arg("-f")
            .arg(key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(message).unwrap();
        let armoured = succeeded(&child.wait_with_output().unwrap());
        let base64: String = armoured
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .collect();
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, base64).unwrap()
    }

    /// Whether `ssh-keygen -Y verify` finds a signature good.
    pub(crate) fn verifies(
        &self,
        key: &PublicKey,
        namespace: &str,
        sshsig: &[u8],
        message: &[u8],
    ) -> bool {
        let signers = self.write("allowed_signers", format!("me {key}\n"), 0o644);
        let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, sshsig);
        let mut armoured = String::from("-----BEGIN SSH SIGNATURE-----\n");
        for line in base64.as_bytes().chunks(70) {
            armoured.push_str(std::str::from_utf8(line).unwrap());
            armoured.push('\n');
        }
        armoured.push_str("-----END SSH SIGNATURE-----\n");
        let signature = self.write("signature", armoured, 0o644);
        let mut child = self
            .command("ssh-keygen")
            .args(["-Y", "verify", "-I", "me", "-n", namespace, "-f"])
            .arg(signers)
            .arg("-s")
            .arg(signature)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(message).unwrap();
        child.wait().unwrap().success()
    }
}

/// The key in a `.pub` file.
pub(crate) fn public(private: &Path) -> PublicKey {
    let path = format!("{}.pub", private.display());
    let line = std::fs::read_to_string(path).unwrap();
    PublicKey::from_line(&line).unwrap().0
}

/// The kinds of key that bowline supports, as ssh-keygen is told.
pub(crate) const KINDS: [(&str, &str); 5] = [
    ("ed25519", ""),
    ("ecdsa", "256"),
    ("ecdsa", "384"),
    ("ecdsa", "521"),
    ("rsa", "3072"),
];

pub(crate) fn succeeded(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An ssh-agent of the test's own, ended with it.
pub(crate) struct RunningAgent {
    child: std::process::Child,
    socket: PathBuf,
}

impl RunningAgent {
    /// Starts an agent and waits until it listens.
    pub(crate) fn start(home: &Home) -> RunningAgent {
        use std::io::BufRead as _;
        let socket = home.join("agent.socket");
        let mut child = home
            .command("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It says where it listens once it does.
        let stdout = child.stdout.as_mut().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(stdout)
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("SSH_AUTH_SOCK"), "{line}");
        RunningAgent { child, socket }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs ssh-add with these arguments.
    pub(crate) fn add<S: AsRef<OsStr>>(&self, home: &Home, args: impl IntoIterator<Item = S>) {
        let output = home
            .command("ssh-add")
            .arg("-q")
            .args(args)
            .env("SSH_AUTH_SOCK", &self.socket)
            .output()
            .unwrap();
        succeeded(&output);
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
