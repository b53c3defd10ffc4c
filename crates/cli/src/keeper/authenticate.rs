//! Who is let in, as whom: the [`Policy`] of a server.
//!
//! A user's name and proofs enter, as the gate passed them on: all of it is
//! hostile. A [`Decision`] leaves only where one proof is good and the account
//! may be used. Of what is wrong the peer learns nothing; the [`DenyCode`] and
//! the log are for the operator. An unknown user costs what a known one costs.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bowline::credentials::fingerprint;
use bowline::credentials::secret::{Secret, SecretError};
use bowline::credentials::verify::{Claim, VerifyError};
use bowline_proto::auth::{PROOFS_MAX, Proof, Role, public_key_message};
use bowline_proto::grants;
use bowline_proto::id::JobId;
use bowline_proto::key::PublicKey;

use super::account::AccountError;
use super::grant_file::{self, GrantFileError};
use super::local_time::local_to_unix;
use super::machine_path::MachinePath;
use super::policy::{Account, Asked, Decision, Policy};
use crate::config::ServerConfig;
use crate::ipc::{DenyCode, Grant, JobSpec, Source};

/// Warnings about files that are remembered, so that nobody outside can fill a log with them.
const WARNINGS_MAX: usize = 256;
/// What the kernel reports as the uid of a peer whose uid has no number here,
/// as from another user namespace: it is nobody in particular.
const OVERFLOW_UID: u32 = 65_534;
/// How long a user's home may take to give a grant file.
const HOME_WAIT: Duration = Duration::from_secs(1);
/// For so long nothing is read from a home that took longer.
const SLOW_HOME_REST: Duration = Duration::from_secs(60);

/// Why there is no policy to serve with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthenticatorError {
    /// The account that the server runs as cannot be looked up.
    #[error("the account that this server runs as")]
    Own(#[source] AccountError),
    /// A file of a shared secret cannot be used.
    #[error("a shared secret of the user {user}")]
    Secret {
        user: String,
        #[source]
        source: SecretError,
    },
}

/// Whose jobs a server runs.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Accounts {
    /// Those of the account that it runs as.
    Own,
    /// Those of these accounts: it runs as root.
    Listed(Vec<String>),
}

/// Decides by grant files, shared secrets and the uid of a socket's other end.
#[derive(Debug)]
pub(crate) struct Authenticator {
    own: Account,
    accounts: Accounts,
    locked_too: bool,
    /// bowline's own grant file; may hold `%u` and `%h`.
    authorized_keys: PathBuf,
    ssh_authorized_keys: bool,
    secrets: Vec<(String, Secret)>,
    /// Warnings that were given already.
    warned: RefCell<HashSet<String>>,
    /// Until when nothing is read from the home of a uid.
    slow_homes: RefCell<HashMap<u32, Instant>>,
    machine_path: MachinePath,
}

impl Authenticator {
    /// Reads what the configuration names, and warns about lines of grant files
    /// that will not count.
    ///
    /// # Errors
    /// [`AuthenticatorError`].
    pub(crate) fn new(config: &ServerConfig) -> Result<Self, AuthenticatorError> {
        let own = Account::own().map_err(AuthenticatorError::Own)?;
        let accounts = match config.own_user_only {
            true => Accounts::Own,
            false => Accounts::Listed(config.allow_users.clone()),
        };
        let secrets = config.secrets.iter().map(|(user, path)| {
            let secret = Secret::load(path).map_err(|source| AuthenticatorError::Secret {
                user: user.clone(),
                source,
            })?;
            Ok((user.clone(), secret))
        });
        let authenticator = Self {
            own,
            accounts,
            locked_too: config.allow_locked_accounts,
            authorized_keys: config.authorized_keys.clone(),
            ssh_authorized_keys: config.ssh_authorized_keys,
            secrets: secrets.collect::<Result<_, _>>()?,
            warned: RefCell::default(),
            slow_homes: RefCell::default(),
            machine_path: MachinePath::default(),
        };
        authenticator.check_files();
        Ok(authenticator)
    }

    /// Warns about every line that counts for nothing, before somebody relies on it.
    fn check_files(&self) {
        match &self.accounts {
            Accounts::Own => self.check_files_of(&self.own),
            Accounts::Listed(names) => {
                if names.is_empty() {
                    self.warn("allow_users is empty: nobody is let in".to_owned());
                }
                for name in names {
                    let usable = Account::by_name(name).and_then(|account| {
                        account.may_log_in(now_unix(), self.locked_too)?;
                        Ok(account)
                    });
                    match usable {
                        Ok(account) => self.check_files_of(&account),
                        Err(error) => self.warn(format!("allow_users: {name}: {error}")),
                    }
                }
            }
        }
        for (user, _) in &self.secrets {
            if !self.may_be_asked_for(user) {
                self.warn(format!("the shared secret of {user} lets nobody in"));
            }
        }
    }

    fn check_files_of(&self, account: &Account) {
        for path in self.grant_files(account) {
            if let Some(text) = self.read(&path, account) {
                self.warn_about(&path, &grants::parse(&text).1);
            }
        }
    }

    fn may_be_asked_for(&self, name: &str) -> bool {
        match &self.accounts {
            Accounts::Own => name == self.own.name,
            Accounts::Listed(names) => names.iter().any(|listed| listed == name),
        }
    }

    /// The account that is asked for, if it may be.
    fn account(&self, asked: &Asked<'_>) -> Result<Account, DenyCode> {
        if self.accounts == Accounts::Own {
            let own = asked.user.is_empty() || asked.user == self.own.name;
            // Whoever started this server may run programs as this account already.
            return own.then(|| self.own.clone()).ok_or(DenyCode::User);
        }
        let account = match (asked.user, asked.peer) {
            ("", Some((uid, _))) => Account::by_uid(uid.as_raw()),
            (name, _) if self.may_be_asked_for(name) => Account::by_name(name),
            _ => return Err(DenyCode::User),
        };
        let account = account.map_err(|error| self.refused(asked, error))?;
        if !self.may_be_asked_for(&account.name) {
            return Err(DenyCode::User);
        }
        account
            .may_log_in(asked.now_unix, self.locked_too)
            .map_err(|error| self.refused(asked, error))?;
        Ok(account)
    }

    fn refused(&self, asked: &Asked<'_>, error: AccountError) -> DenyCode {
        self.warn(format!("user {:?}: {error}", asked.user));
        match error {
            AccountError::Lookup(_) | AccountError::Shadow(_) => DenyCode::Internal,
            _ => DenyCode::User,
        }
    }

    /// Looks at one proof. `None` as the account does the same work in vain.
    fn prove(
        &self,
        proof: &Proof,
        account: Option<&Account>,
        asked: &Asked<'_>,
    ) -> Result<Proven, DenyCode> {
        match proof {
            Proof::PublicKey { sshsig } => self.prove_key(sshsig, account, asked),
            Proof::Secret { mac } => self.prove_secret(mac, account, asked),
            Proof::Peer => prove_peer(account, asked),
        }
    }

    fn prove_key(
        &self,
        sshsig: &[u8],
        account: Option<&Account>,
        asked: &Asked<'_>,
    ) -> Result<Proven, DenyCode> {
        let no_proof = |error: VerifyError| {
            tracing::debug!(user = ?asked.user, %error, "a proof is not good");
            DenyCode::NoProof
        };
        let claim = Claim::decode(sshsig).map_err(no_proof)?;
        let options = self.find_grant(claim.key(), account.unwrap_or(&self.own), asked)?;
        let message = public_key_message(asked.binding, asked.user, asked.protocol);
        let key = claim.verify(&message).map_err(no_proof)?;
        account.ok_or(DenyCode::User)?;
        Ok(Proven {
            name: fingerprint(&key),
            grant: Grant {
                forced_command: options.command.is_some(),
                pty: options.pty,
            },
            forced_command: options.command,
            environment: options.environment,
            server_mac: None,
        })
    }

    /// The options of the first line for the key that holds here and now.
    fn find_grant(
        &self,
        key: &PublicKey,
        account: &Account,
        asked: &Asked<'_>,
    ) -> Result<grants::Options, DenyCode> {
        let address = match asked.source {
            Source::Tcp(address, _) => Some(*address),
            Source::Unix | Source::Stdio => None,
        };
        let now = i64::try_from(asked.now_unix).unwrap_or(i64::MAX);
        let mut code = DenyCode::NoProof;
        for path in self.grant_files(account) {
            let Some(text) = self.read(&path, account) else {
                continue;
            };
            let (grants, warnings) = grants::parse_for(&text, key);
            self.warn_about(&path, &warnings);
            for grant in grants {
                match grant.check(address, now, local_to_unix) {
                    Ok(()) => return Ok(grant.options),
                    Err(denied) => {
                        let place = format!("{}:{}", path.display(), grant.line);
                        tracing::info!(user = ?asked.user, %place, %denied, "a grant does not hold");
                        code = DenyCode::Grant;
                    }
                }
            }
        }
        Err(code)
    }

    fn prove_secret(
        &self,
        mac: &[u8; 32],
        account: Option<&Account>,
        asked: &Asked<'_>,
    ) -> Result<Proven, DenyCode> {
        let (binding, user, protocol) = (asked.binding, asked.user, asked.protocol);
        let mut found = None;
        // Every secret is tried, whoever is asked for and whichever is right.
        for (owner, secret) in &self.secrets {
            let good = secret.verify(Role::Client, binding, user, protocol, mac);
            if good && account.is_some_and(|account| account.name == *owner) {
                found = Some(secret);
            }
        }
        let secret = found.ok_or(DenyCode::NoProof)?;
        Ok(Proven {
            server_mac: Some(secret.code(Role::Server, binding, user, protocol)),
            ..Proven::unrestricted("secret")
        })
    }

    /// The files whose lines let somebody in as the account, the first wins.
    fn grant_files(&self, account: &Account) -> Vec<PathBuf> {
        let mut files = vec![expand(&self.authorized_keys, account)];
        if self.ssh_authorized_keys {
            files.push(account.home.join(".ssh/authorized_keys"));
        }
        files
    }

    /// The bytes of a grant file; of one that cannot be trusted nothing counts.
    fn read(&self, path: &Path, account: &Account) -> Option<Vec<u8>> {
        // A root keeper serves others, and must not wait for one of them.
        let foreign = account.uid != self.own.uid && path.starts_with(&account.home);
        let read = match foreign {
            true => self.read_foreign(path, account),
            false => grant_file::read(path, account),
        };
        read.unwrap_or_else(|error| {
            self.warn(format!(
                "no key in it counts: {}",
                crate::exit::chain(&error)
            ));
            None
        })
    }

    fn read_foreign(
        &self,
        path: &Path,
        account: &Account,
    ) -> Result<Option<Vec<u8>>, GrantFileError> {
        let now = Instant::now();
        let mut slow = self.slow_homes.borrow_mut();
        slow.retain(|_, until| *until > now);
        if slow.contains_key(&account.uid) {
            return Ok(None);
        }
        let read = grant_file::read_aside(path, account, HOME_WAIT);
        if read.as_ref().is_err_and(GrantFileError::is_slow) {
            slow.insert(account.uid, now + SLOW_HOME_REST);
        }
        read
    }

    fn warn_about(&self, path: &Path, warnings: &[grants::Warning]) {
        for warning in warnings {
            self.warn(format!(
                "{}:{}: {}",
                path.display(),
                warning.line,
                warning.reason
            ));
        }
    }

    /// Warns, once for each text until the configuration is read again.
    fn warn(&self, text: String) {
        let mut warned = self.warned.borrow_mut();
        if warned.len() < WARNINGS_MAX && !warned.contains(&text) {
            tracing::warn!("{text}");
            warned.insert(text);
        }
    }
}

impl Policy for Authenticator {
    fn decide(&self, asked: &Asked<'_>) -> Result<Decision, DenyCode> {
        let account = self.account(asked);
        let mut code = DenyCode::NoProof;
        for proof in asked.proofs.iter().take(PROOFS_MAX) {
            match (self.prove(proof, account.as_ref().ok(), asked), &account) {
                (Ok(proven), Ok(account)) => return Ok(proven.into_decision(account.clone())),
                (Ok(_), Err(_)) => {}
                (Err(DenyCode::NoProof), _) => {}
                (Err(telling), _) => code = telling,
            }
        }
        let code = account.err().unwrap_or(code);
        tracing::info!(user = ?asked.user, source = ?asked.source, ?code, "not authenticated");
        Err(code)
    }

    fn environment(&self, decision: &Decision, spec: &JobSpec, job: JobId) -> Vec<CString> {
        let path = match std::env::var_os("PATH") {
            Some(path) if self.accounts == Accounts::Own && !path.is_empty() => path.into_vec(),
            _ => self.machine_path.of(decision.account.uid),
        };
        super::environment::environment(decision, spec, job, &path)
    }
}

/// What a good proof permits, before it is tied to an account.
struct Proven {
    name: String,
    grant: Grant,
    forced_command: Option<Vec<u8>>,
    environment: Vec<Vec<u8>>,
    server_mac: Option<[u8; 32]>,
}

impl Proven {
    fn unrestricted(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            grant: Grant {
                forced_command: false,
                pty: true,
            },
            forced_command: None,
            environment: Vec::new(),
            server_mac: None,
        }
    }

    fn into_decision(self, account: Account) -> Decision {
        Decision {
            account,
            proof: self.name,
            grant: self.grant,
            forced_command: self.forced_command,
            environment: self.environment,
            server_mac: self.server_mac,
        }
    }
}

/// The uid of the other end decides: one's own account, or any that may be
/// asked for where it is root.
fn prove_peer(account: Option<&Account>, asked: &Asked<'_>) -> Result<Proven, DenyCode> {
    let account = account.ok_or(DenyCode::User)?;
    let (uid, _) = match (asked.source, asked.peer) {
        (Source::Unix | Source::Stdio, Some(peer)) => peer,
        _ => return Err(DenyCode::NoProof),
    };
    let uid = uid.as_raw();
    let foreign = uid == OVERFLOW_UID && *asked.source == Source::Unix;
    if !foreign && (uid == account.uid || uid == 0) {
        return Ok(Proven::unrestricted("peer"));
    }
    Err(DenyCode::NoProof)
}

fn now_unix() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| time.as_secs())
}

/// Puts the account's name for `%u`, its home for `%h` and `%` for `%%`.
fn expand(pattern: &Path, account: &Account) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = pattern.as_os_str().as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let (piece, taken): (&[u8], usize) = match (byte, after.first()) {
            (b'%', Some(b'u')) => (account.name.as_bytes(), 2),
            (b'%', Some(b'h')) => (account.home.as_os_str().as_bytes(), 2),
            (b'%', Some(b'%')) => (b"%", 2),
            _ => (&rest[..1], 1),
        };
        bytes.extend_from_slice(piece);
        rest = &rest[taken..];
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
#[path = "authenticate_tests.rs"]
mod tests;
