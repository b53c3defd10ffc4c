//! Where a user's keys and hosts lie.
//!
//! Owns the paths below the home folder and the configuration folder (XDG Base Directory Specification), nothing
//! that lies in them.

use std::path::{Path, PathBuf};

/// The folders that everything is found from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    home: PathBuf,
    config: PathBuf,
}

impl Places {
    /// Takes `$HOME`, or the home folder of passwd(5), and `$XDG_CONFIG_HOME`; `None` if there is no home.
    pub fn from_env() -> Option<Places> {
        let home = std::env::home_dir().filter(|home| home.is_absolute())?;
        // The specification says that a relative path is to be ignored.
        let config = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .filter(|config| config.is_absolute())
            .unwrap_or_else(|| home.join(".config"));
        Some(Places { home, config })
    }

    /// Takes a home folder, and `.config` in it.
    pub fn of_home(home: &Path) -> Places {
        Places {
            home: home.to_owned(),
            config: home.join(".config"),
        }
    }

    /// The home folder.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// bowline's own key.
    pub fn identity(&self) -> PathBuf {
        self.config.join("bowline/id_ed25519")
    }

    /// The hosts that bowline pinned.
    pub fn known_hosts(&self) -> PathBuf {
        self.config.join("bowline/known_hosts")
    }

    /// bowline's own grants.
    pub fn authorized_keys(&self) -> PathBuf {
        self.config.join("bowline/authorized_keys")
    }

    /// The keys that ssh uses without being told, in the order in which bowline tries them.
    pub fn ssh_identities(&self) -> Vec<PathBuf> {
        ["id_ed25519", "id_ecdsa", "id_rsa"]
            .map(|name| self.home.join(".ssh").join(name))
            .to_vec()
    }

    /// The hosts that ssh knows: the user's, then the machine's.
    pub fn ssh_known_hosts(&self) -> Vec<PathBuf> {
        vec![
            self.home.join(".ssh/known_hosts"),
            PathBuf::from("/etc/ssh/ssh_known_hosts"),
        ]
    }

    /// The configuration of ssh: the user's, then the machine's.
    pub fn ssh_config(&self) -> Vec<PathBuf> {
        vec![
            self.home.join(".ssh/config"),
            PathBuf::from("/etc/ssh/ssh_config"),
        ]
    }
}
