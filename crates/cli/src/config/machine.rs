//! What defaults depend on: who runs the server and where things lie here.

use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::ConfigError;

/// sshd's own Ed25519 key, which clients may know already.
const SSH_HOST_KEY: &str = "/etc/ssh/ssh_host_ed25519_key";

/// The machine and account that a server is started on and as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// The server is root's.
    pub(super) root: bool,
    /// Of the account; for root too, where only `~/` in paths asks for it.
    pub(super) home: PathBuf,
    /// `/etc/bowline`, or `bowline` below `$XDG_CONFIG_HOME`.
    pub(super) config_dir: PathBuf,
    /// `/var/lib/bowline`, or `bowline` below `$XDG_STATE_HOME`.
    pub(super) state_dir: PathBuf,
    /// Where short-lived sessions keep their state.
    pub(super) runtime_dir: PathBuf,
    /// Where a server for sessions may keep its state, the best first.
    pub(super) session_dirs: Vec<PathBuf>,
    /// sshd's key, if there is one that may be used.
    pub(super) ssh_host_key: Option<PathBuf>,
    /// The kernel has IPv6.
    pub(super) ipv6: bool,
}

impl Machine {
    /// Whether the state folder is there to be written to, or can be made.
    pub(super) fn keeps_state(&self) -> bool {
        let there = self.state_dir.ancestors().find(|folder| folder.exists());
        there.is_some_and(|folder| rustix::fs::access(folder, Access::WRITE_OK).is_ok())
    }

    /// Looks at this machine.
    ///
    /// # Errors
    /// [`ConfigError::NoHome`], for any other than root.
    pub(super) fn this() -> Result<Self, ConfigError> {
        let root = rustix::process::geteuid().is_root();
        let ipv6 = Path::new("/proc/net/if_inet6").exists();
        let home = std::env::home_dir().filter(|home| home.is_absolute());
        let folder = |name: &str| {
            let folder = std::env::var_os(name).map(PathBuf::from);
            folder.filter(|folder| folder.is_absolute())
        };
        let runtime_dir = folder("XDG_RUNTIME_DIR").unwrap_or_else(std::env::temp_dir);
        if root {
            let ssh_host_key = PathBuf::from(SSH_HOST_KEY);
            return Ok(Self {
                root,
                home: home.unwrap_or_else(|| PathBuf::from("/root")),
                config_dir: PathBuf::from("/etc/bowline"),
                state_dir: PathBuf::from("/var/lib/bowline"),
                runtime_dir: PathBuf::from("/run"),
                session_dirs: vec![PathBuf::from("/run/bowline-ssh")],
                ssh_host_key: std::fs::File::open(&ssh_host_key)
                    .ok()
                    .map(|_| ssh_host_key),
                ipv6,
            });
        }
        let home = home.ok_or(ConfigError::NoHome)?;
        let below = |name: &str, default: &str| {
            folder(name)
                .unwrap_or_else(|| home.join(default))
                .join("bowline")
        };
        let state_dir = below("XDG_STATE_HOME", ".local/state");
        // Several machines may share a home. The folder of the login session is the second choice:
        // it is removed with the last login, which jobs are to outlive.
        let machine_name = rustix::system::uname();
        let machine_name = machine_name.nodename().to_string_lossy().replace('/', "_");
        let mut session_dirs = vec![state_dir.join(format!("ssh-{machine_name}"))];
        session_dirs.extend(folder("XDG_RUNTIME_DIR").map(|folder| folder.join("bowline-ssh")));
        Ok(Self {
            root,
            config_dir: below("XDG_CONFIG_HOME", ".config"),
            state_dir,
            session_dirs,
            runtime_dir,
            ssh_host_key: None,
            ipv6,
            home,
        })
    }
}

/// The folders in which this user's server for sessions may be, the best first.
///
/// # Errors
/// As [`Machine::this`].
pub(crate) fn session_dirs() -> Result<Vec<PathBuf>, ConfigError> {
    Ok(Machine::this()?.session_dirs)
}
