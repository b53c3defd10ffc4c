//! The configuration of `bowline serve`: what the file, the flags and the
//! defaults say together.

use std::path::{Path, PathBuf};

use super::file::{self, Milliseconds};
use super::gate::SpoolConfig;
use super::machine::Machine;
use super::server_file::{Limits, Record, ServerFile, Spool};
use super::{ConfigError, GateConfig, ServeFlags};

/// bowline's port.
pub(crate) const DEFAULT_PORT: u16 = 7322;
/// The most threads that serve connections.
const WORKERS_MAX: u16 = 64;
/// The most threads that are taken without being asked for.
const WORKERS_DEFAULT_MAX: usize = 8;

/// Everything that a keeper is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerConfig {
    /// Where to listen: `tcp://HOST:PORT` or `unix:PATH`.
    pub(crate) listen: Vec<String>,
    /// The Ed25519 host key in OpenSSH's format; made where it is missing.
    pub(crate) host_key: PathBuf,
    /// The keeper's own folder: journal, takeover socket. Mode 0700. Over stdio
    /// and with a lifeline it is this process's alone, to be removed at the end.
    pub(crate) state_dir: PathBuf,
    /// bowline's own grant file; `%u` stands for the user, `%h` for the home.
    pub(crate) authorized_keys: PathBuf,
    /// Whether `~/.ssh/authorized_keys` of the user counts too.
    pub(crate) ssh_authorized_keys: bool,
    /// Jobs run as the account that the server runs as, and as no other. Always
    /// so for a server that is not root's, over stdio, and with a lifeline unless a
    /// flag names others.
    pub(crate) own_user_only: bool,
    /// As root: the users that may be asked for; empty is none.
    pub(crate) allow_users: Vec<String>,
    /// As root: whether accounts count whose password is locked with `!`, as
    /// cloud images make them.
    pub(crate) allow_locked_accounts: bool,
    /// Files of shared secrets: the user it lets in, and the file.
    pub(crate) secrets: Vec<(String, PathBuf)>,
    /// As root: the account that the gate runs as.
    pub(crate) gate_user: Option<String>,
    /// Live jobs in all.
    pub(crate) jobs_max: u32,
    /// Between the first signal and SIGKILL when a tree is ended.
    pub(crate) kill_grace_ms: u64,
    /// How long SIGTERM lets running jobs go on.
    pub(crate) drain_ms: u64,
    /// The server ends when it was not needed for this time.
    pub(crate) until_idle_ms: Option<u64>,
    /// The gate's part.
    pub(crate) gate: GateConfig,
}

impl ServerConfig {
    /// Reads the file and lets the flags have the last word.
    ///
    /// # Errors
    /// [`ConfigError`]; a file that `--config` names must be there.
    pub(crate) fn load(flags: &ServeFlags) -> Result<Self, ConfigError> {
        Self::load_on(flags, &Machine::this()?)
    }

    /// As [`ServerConfig::load`], after a signal: what cannot change while the
    /// server runs stays, and the keys that wait for a restart are named.
    ///
    /// # Errors
    /// As [`ServerConfig::load`]; then everything stays as it is.
    pub(crate) fn reload(
        &self,
        flags: &ServeFlags,
    ) -> Result<(Self, Vec<&'static str>), ConfigError> {
        Ok(self.keep_fixed(Self::load(flags)?))
    }

    fn keep_fixed(&self, mut new: Self) -> (Self, Vec<&'static str>) {
        let mut waiting = Vec::new();
        fn keep<T: Clone + PartialEq>(
            waiting: &mut Vec<&'static str>,
            name: &'static str,
            old: &T,
            new: &mut T,
        ) {
            if old != new {
                waiting.push(name);
                new.clone_from(old);
            }
        }
        keep(&mut waiting, "listen", &self.listen, &mut new.listen);
        keep(&mut waiting, "host_key", &self.host_key, &mut new.host_key);
        keep(
            &mut waiting,
            "state_dir",
            &self.state_dir,
            &mut new.state_dir,
        );
        keep(
            &mut waiting,
            "own_user_only",
            &self.own_user_only,
            &mut new.own_user_only,
        );
        keep(
            &mut waiting,
            "gate_user",
            &self.gate_user,
            &mut new.gate_user,
        );
        keep(
            &mut waiting,
            "limits.workers",
            &self.gate.workers,
            &mut new.gate.workers,
        );
        keep(
            &mut waiting,
            "record.dir",
            &self.gate.record_dir,
            &mut new.gate.record_dir,
        );
        keep(
            &mut waiting,
            "spool.dir",
            &self.gate.spool.dir,
            &mut new.gate.spool.dir,
        );
        (new, waiting)
    }

    pub(super) fn load_on(flags: &ServeFlags, machine: &Machine) -> Result<Self, ConfigError> {
        let file = match (&flags.config, flags.lifeline) {
            (_, true) => ServerFile::default(),
            (Some(path), _) => file::read(path)?.ok_or_else(|| ConfigError::Read {
                path: path.clone(),
                source: std::io::ErrorKind::NotFound.into(),
            })?,
            (None, _) => file::read(&machine.config_dir.join("server.toml"))?.unwrap_or_default(),
        };
        Self::merge(file, flags, machine)
    }

    pub(super) fn merge(
        file: ServerFile,
        flags: &ServeFlags,
        machine: &Machine,
    ) -> Result<Self, ConfigError> {
        let path = |key: &str, flag: &Option<PathBuf>, file: Option<PathBuf>| match flag {
            Some(path) => std::path::absolute(path)
                .map(Some)
                .map_err(|error| ConfigError::value(key, error.to_string())),
            None => file.map(|path| absolute(key, path, machine)).transpose(),
        };
        let grants = path(
            "authorized_keys",
            &flags.authorized_keys,
            file.authorized_keys,
        )?;
        // With a lifeline other accounts come from the flag alone, as no file is read.
        let for_one = flags.stdio
            || flags.until_idle.is_some()
            || (flags.lifeline && flags.allow_user.is_empty());
        let state_dir = match path("state_dir", &flags.state_dir, file.state_dir)? {
            Some(dir) if !flags.stdio || flags.state_dir.is_some() => dir,
            // Another server may hold the usual folder, and other sessions theirs.
            _ if flags.stdio => session_dir(machine),
            _ => machine.state_dir.clone(),
        };
        let record_dir = absolute_or(file.record.dir.clone(), "record.dir", machine, || {
            // What ran over stdio stays on the record when the session's folder is gone. Root's gate
            // is somebody else, who cannot reach the usual folder unless a server has made it.
            let stays = flags.stdio && flags.state_dir.is_none() && !machine.root;
            match stays && machine.keeps_state() {
                true => machine.state_dir.join("record"),
                false => state_dir.join("record"),
            }
        })?;
        let spool = spool(&file.spool, machine, &state_dir)?;
        let secrets = file.secret.into_iter().map(|secret| {
            let path = absolute("secret.file", secret.file, machine)?;
            Ok((secret.user, path))
        });
        Ok(Self {
            listen: listen(&flags.listen, file.listen, machine, flags.stdio)?,
            host_key: path("host_key", &flags.host_key, file.host_key)?
                .or_else(|| machine.ssh_host_key.clone())
                .unwrap_or_else(|| machine.config_dir.join("host_key")),
            // Whoever names the one file means that file.
            ssh_authorized_keys: file
                .ssh_authorized_keys
                .unwrap_or(!machine.root && grants.is_none())
                && flags.authorized_keys.is_none(),
            authorized_keys: grants.unwrap_or_else(|| default_grants(machine)),
            own_user_only: !machine.root || for_one || file.own_user_only.unwrap_or(false),
            allow_users: match flags.allow_user.is_empty() {
                true => file.allow_users.unwrap_or_default(),
                false => flags.allow_user.clone(),
            },
            allow_locked_accounts: file.allow_locked_accounts.unwrap_or(false),
            secrets: secrets.collect::<Result<_, ConfigError>>()?,
            gate_user: file.gate_user,
            jobs_max: number("limits.jobs_max", file.limits.jobs_max, 10_000)?,
            kill_grace_ms: file.kill_grace.map_or(5_000, |time| time.0),
            drain_ms: file.drain.map_or(30_000, |time| time.0),
            until_idle_ms: flags
                .until_idle
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            gate: GateConfig {
                spool,
                ..gate(&file.limits, &file.record, record_dir, flags.workers)?
            },
            state_dir,
        })
    }
}

fn gate(
    limits: &Limits,
    record: &Record,
    record_dir: PathBuf,
    workers: Option<u16>,
) -> Result<GateConfig, ConfigError> {
    let default = GateConfig::default();
    let time = |time: Option<Milliseconds>, default: u64| time.map_or(default, |time| time.0);
    let auth_timeout_ms = time(limits.auth_timeout, default.auth_timeout_ms);
    if auth_timeout_ms == 0 {
        return Err(ConfigError::value(
            "limits.auth_timeout",
            "must be more than 0",
        ));
    }
    Ok(GateConfig {
        workers: match workers.or(limits.workers).unwrap_or(0) {
            0 => default_workers(),
            more if more > WORKERS_MAX => {
                let message = format!("at most {WORKERS_MAX}");
                return Err(ConfigError::value("limits.workers", message));
            }
            some => some,
        },
        record_dir,
        connections_max: number(
            "limits.connections_max",
            limits.connections_max,
            default.connections_max,
        )?,
        connections_per_address_max: number(
            "limits.connections_per_address_max",
            limits.connections_per_address_max,
            default.connections_per_address_max,
        )?,
        handshakes_max: number(
            "limits.handshakes_max",
            limits.handshakes_max,
            default.handshakes_max,
        )?,
        jobs_per_connection_max: number(
            "limits.jobs_per_connection_max",
            limits.jobs_per_connection_max,
            default.jobs_per_connection_max,
        )?,
        jobs_per_user_max: number(
            "limits.jobs_per_user_max",
            limits.jobs_per_user_max,
            default.jobs_per_user_max,
        )?,
        auth_timeout_ms,
        idle_timeout_ms: time(limits.idle_timeout, default.idle_timeout_ms),
        output_wait_ms: time(limits.output_wait, default.output_wait_ms),
        grace_ms: time(limits.grace, default.grace_ms),
        grace_max_ms: time(limits.grace_max, default.grace_max_ms),
        record_jobs_max: record.jobs_max.unwrap_or(default.record_jobs_max),
        record_age_ms: time(record.age, default.record_age_ms),
        spool: default.spool,
    })
}

fn spool(spool: &Spool, machine: &Machine, state_dir: &Path) -> Result<SpoolConfig, ConfigError> {
    let default = SpoolConfig::default();
    let bytes = |key: &str, given: Option<u64>, default: u64| match given {
        Some(0) => Err(ConfigError::value(key, "must be at least 1")),
        given => Ok(given.unwrap_or(default)),
    };
    let config = SpoolConfig {
        dir: absolute_or(spool.dir.clone(), "spool.dir", machine, || {
            state_dir.join("spool")
        })?,
        stream_bytes_max: bytes(
            "spool.stream_bytes_max",
            spool.stream_bytes_max,
            default.stream_bytes_max,
        )?,
        bytes_max: bytes("spool.bytes_max", spool.bytes_max, default.bytes_max)?,
        keep_ms: spool.keep_for.map_or(default.keep_ms, |time| time.0),
        keep_bytes_max: spool.keep_bytes_max.unwrap_or(default.keep_bytes_max),
    };
    if config.bytes_max < config.stream_bytes_max && spool.stream_bytes_max.is_some() {
        let message = "is less than spool.stream_bytes_max, which no stream could reach";
        return Err(ConfigError::value("spool.bytes_max", message));
    }
    Ok(config)
}

fn default_workers() -> u16 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(processors.min(WORKERS_DEFAULT_MAX)).unwrap_or(1)
}

fn number(key: &str, given: Option<u32>, default: u32) -> Result<u32, ConfigError> {
    match given {
        Some(0) => Err(ConfigError::value(key, "must be at least 1")),
        given => Ok(given.unwrap_or(default)),
    }
}

fn default_grants(machine: &Machine) -> PathBuf {
    match machine.root {
        true => machine.config_dir.join("authorized_keys.d/%u"),
        false => machine.config_dir.join("authorized_keys"),
    }
}

/// A folder for one session's server; two of them never meet.
fn session_dir(machine: &Machine) -> PathBuf {
    let name = format!("bowline-stdio-{}", std::process::id());
    machine.runtime_dir.join(name)
}

fn absolute_or(
    path: Option<PathBuf>,
    key: &str,
    machine: &Machine,
    default: impl FnOnce() -> PathBuf,
) -> Result<PathBuf, ConfigError> {
    path.map_or_else(|| Ok(default()), |path| absolute(key, path, machine))
}

/// A path of a file: absolute, or below the home with `~/`. What it would be
/// relative to otherwise, nobody could say.
fn absolute(key: &str, path: PathBuf, machine: &Machine) -> Result<PathBuf, ConfigError> {
    if let Ok(below) = path.strip_prefix("~") {
        return Ok(machine.home.join(below));
    }
    // %h is a home and thus absolute.
    if path.is_absolute() || path.starts_with("%h") {
        return Ok(path);
    }
    let message = format!("{} must begin with / or ~/", path.display());
    Err(ConfigError::value(key, message))
}

fn listen(
    flags: &[String],
    file: Option<Vec<String>>,
    machine: &Machine,
    stdio: bool,
) -> Result<Vec<String>, ConfigError> {
    if stdio {
        return Ok(Vec::new());
    }
    let given = match flags.is_empty() {
        true => file,
        false => Some(flags.to_vec()),
    };
    let Some(given) = given else {
        let everywhere = if machine.ipv6 { "[::]" } else { "0.0.0.0" };
        return Ok(vec![format!("tcp://{everywhere}:{DEFAULT_PORT}")]);
    };
    if given.is_empty() {
        return Err(ConfigError::value("listen", "there is no address"));
    }
    given
        .iter()
        .map(|address| listen_address(address))
        .collect()
}

/// Brings an address to one of its two forms.
fn listen_address(address: &str) -> Result<String, ConfigError> {
    let wrong = |why: &str| ConfigError::value("listen", format!("{address:?}: {why}"));
    if let Some(path) = address.strip_prefix("unix:") {
        return match Path::new(path).is_absolute() {
            true => Ok(address.to_owned()),
            false => Err(wrong("the path of a Unix socket must begin with /")),
        };
    }
    let place = address.strip_prefix("tcp://").unwrap_or(address);
    let form = "an address is HOST:PORT, [V6]:PORT or unix:PATH";
    let (host, port) = if let Some(rest) = place.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(|| wrong(form))?;
        if host.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(wrong("what stands in brackets must be an IPv6 address"));
        }
        let port = match rest {
            "" => None,
            rest => Some(rest.strip_prefix(':').ok_or_else(|| wrong(form))?),
        };
        (format!("[{host}]"), port)
    } else if place.parse::<std::net::Ipv6Addr>().is_ok() {
        (format!("[{place}]"), None)
    } else {
        match place.rsplit_once(':') {
            Some((host, _)) if host.contains(':') => return Err(wrong(form)),
            Some((host, port)) => (host.to_owned(), Some(port)),
            None => (place.to_owned(), None),
        }
    };
    if host.is_empty() || host.contains(['/', '@', ' ']) {
        return Err(wrong(form));
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => port
            .parse()
            .map_err(|_| wrong("the port is a number up to 65535"))?,
    };
    Ok(format!("tcp://{host}:{port}"))
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
