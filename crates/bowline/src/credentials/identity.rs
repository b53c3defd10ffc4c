//! Which keys a client offers, and in which order.
//!
//! Owns the search for keys and their division into rounds: a round is what one `auth` carries. Keys are offered
//! without asking a person for anything as long as there are such keys; a passphrase is asked for only when all
//! others were refused. Paths and settings enter; [`Signer`]s leave.
//!
//! | order | keys | offered |
//! | --- | --- | --- |
//! | 1 | files named with `--identity` | they alone, no others behind them |
//! | 2 | bowline's own key | if it is there, alone in the first round |
//! | 3 | `IdentityFile` of the host in ssh's configuration | |
//! | 4 | the ssh-agent's keys | without `IdentitiesOnly` |
//! | 5 | ssh's usual files | if no `IdentityFile` is set |
//!
//! An encrypted file whose key the agent holds is signed for by the agent.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bowline_proto::auth::PROOFS_MAX;
use bowline_proto::key::PublicKey;

use super::agent::{Agent, AgentError, AgentKey};
use super::key_file::{KEY_FILE_BYTES_MAX, KeyFile, KeyFileError};
use super::keygen::public_path;
use super::places::Places;
use super::private_file::{self, FileError, Owner};
use super::private_key::PrivateKeyError;
use super::signer::{AgentSigner, AskPassphrase, FileSigner, Signer};
use super::ssh_config::{HostConfig, IdentityAgent};

/// The most rounds: each refused one costs a connection, and the server counts it.
pub const ROUNDS_MAX: usize = 4;

/// Why a key is not offered.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Its file cannot be read, or others may read it.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its file is of an old format.
    #[error("the key {} is in PEM format; rewrite it with `ssh-keygen -p -f {}`", path.display(), path.display())]
    Pem {
        /// The file.
        path: PathBuf,
    },
    /// Its file is no key, or damaged, or of a type that cannot sign here.
    #[error("the key {} cannot be used", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyFileError,
    },
    /// Only the public half is there, and the agent does not hold the private one.
    #[error("{} is a public key, and the ssh-agent does not hold its private half", path.display())]
    OnlyPublic {
        /// The file.
        path: PathBuf,
    },
    /// The agent did not list its keys.
    #[error("the ssh-agent's keys cannot be used")]
    Agent(#[from] AgentError),
}

/// What is to be looked for.
pub struct Search<'a> {
    /// The files of `--identity`.
    pub named: &'a [PathBuf],
    /// Where the usual files lie.
    pub places: &'a Places,
    /// What ssh's configuration says about the host.
    pub host: &'a HostConfig,
    /// The agent of the environment, see [`Agent::from_env`].
    pub agent: Option<Agent>,
    /// How to ask for a passphrase.
    pub ask: AskPassphrase,
}

/// The keys of a client, handed out round by round.
pub struct Identities {
    /// Found and not yet handed out, in order.
    queue: VecDeque<Arc<dyn Signer>>,
    /// Handed out or in the queue already: no key is offered twice.
    seen: Vec<PublicKey>,
    /// What is looked at when the queue has nothing more that signs silently.
    later: Option<Later>,
    agent: AgentKeys,
    ask: AskPassphrase,
    problems: Vec<IdentityError>,
    rounds: usize,
}

/// The files that are looked at after bowline's own key.
struct Later {
    configured: Vec<PathBuf>,
    usual: Vec<PathBuf>,
    identities_only: bool,
}

impl Identities {
    /// Looks for the first keys; the agent is asked only when its keys are needed.
    ///
    /// # Errors
    /// [`IdentityError`] if a file of `--identity` cannot be used: no other key may take its place. What else
    /// cannot be used is left out and told by [`Identities::problems`].
    pub fn search(search: Search<'_>) -> Result<Identities, IdentityError> {
        let host = search.host;
        let mut identities = Identities {
            queue: VecDeque::new(),
            seen: Vec::new(),
            later: None,
            agent: AgentKeys::of(search.agent, host.identity_agent.as_ref()),
            ask: search.ask,
            problems: Vec::new(),
            rounds: 0,
        };
        if !search.named.is_empty() {
            for path in search.named {
                if !identities.add_file(path)? {
                    return Err(missing(path));
                }
            }
            return Ok(identities);
        }
        identities.add_files(&[search.places.identity()]);
        identities.later = Some(Later {
            configured: host.identity_files.clone().unwrap_or_default(),
            usual: match host.identity_files {
                Some(_) => Vec::new(),
                None => search.places.ssh_identities(),
            },
            identities_only: host.identities_only,
        });
        Ok(identities)
    }

    /// Gives the keys for the next attempt, at most [`PROOFS_MAX`]; `None` if there are no more.
    ///
    /// A round either asks nobody or has the one key that a passphrase is asked for. The signers may be kept for
    /// later connections: they do not ask again.
    pub fn next_round(&mut self) -> Option<Vec<Arc<dyn Signer>>> {
        if self.rounds == ROUNDS_MAX {
            return None;
        }
        let mut round = self.take_silent();
        if round.is_empty() {
            self.look_further();
            round = self.take_silent();
        }
        if round.is_empty() {
            round.extend(self.queue.pop_front());
        }
        self.rounds += 1;
        (!round.is_empty()).then_some(round)
    }

    /// What was found so far and cannot be used.
    pub fn problems(&self) -> &[IdentityError] {
        &self.problems
    }

    fn take_silent(&mut self) -> Vec<Arc<dyn Signer>> {
        let (mut silent, mut rest) = (Vec::new(), VecDeque::new());
        for signer in self.queue.drain(..) {
            match signer.asks() || silent.len() == PROOFS_MAX {
                true => rest.push_back(signer),
                false => silent.push(signer),
            }
        }
        self.queue = rest;
        silent
    }

    fn look_further(&mut self) {
        let Some(later) = self.later.take() else {
            return;
        };
        self.add_files(&later.configured);
        if !later.identities_only {
            for key in self.agent.keys(&mut self.problems).to_vec() {
                self.add_agent_key(key);
            }
        }
        self.add_files(&later.usual);
    }

    fn add_files(&mut self, paths: &[PathBuf]) {
        for path in paths {
            if let Err(error) = self.add_file(path) {
                self.problems.push(error);
            }
        }
    }

    /// Adds the key of a file, if there is such a file.
    fn add_file(&mut self, path: &Path) -> Result<bool, IdentityError> {
        let Some(found) = read(path)? else {
            return Ok(false);
        };
        if self.seen.contains(found.public()) {
            return Ok(true);
        }
        let file = match found {
            Found::Private(file) if !file.is_encrypted() => file,
            found => {
                if let Some(key) = self.agent.find(found.public(), &mut self.problems) {
                    self.add_agent_key(key);
                    return Ok(true);
                }
                match found {
                    Found::Private(file) => file,
                    Found::Public { why_only, .. } => return Err(why_only),
                }
            }
        };
        self.seen.push(file.public().clone());
        let signer = FileSigner::new(path.to_owned(), *file, Arc::clone(&self.ask));
        self.queue.push_back(Arc::new(signer));
        Ok(true)
    }

    fn add_agent_key(&mut self, key: AgentKey) {
        let Some(agent) = &self.agent.agent else {
            return;
        };
        if !self.seen.contains(&key.key) {
            self.seen.push(key.key.clone());
            let signer = AgentSigner::new(agent.clone(), key);
            self.queue.push_back(Arc::new(signer));
        }
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities")
            .field("queue", &self.queue)
            .field("problems", &self.problems)
            .finish_non_exhaustive()
    }
}

/// The agent and its keys, once it was asked.
struct AgentKeys {
    agent: Option<Agent>,
    keys: Option<Vec<AgentKey>>,
}

impl AgentKeys {
    fn of(from_env: Option<Agent>, configured: Option<&IdentityAgent>) -> AgentKeys {
        let agent = match configured {
            None => from_env,
            Some(IdentityAgent::None) => None,
            Some(IdentityAgent::Socket(path)) => Some(Agent::at(path)),
            Some(IdentityAgent::Variable(name)) if name == "SSH_AUTH_SOCK" => from_env,
            Some(IdentityAgent::Variable(name)) => std::env::var_os(name)
                .filter(|socket| !socket.is_empty())
                .map(|socket| Agent::at(Path::new(&socket))),
        };
        AgentKeys { agent, keys: None }
    }

    fn keys(&mut self, problems: &mut Vec<IdentityError>) -> &[AgentKey] {
        let agent = self.agent.as_ref();
        self.keys
            .get_or_insert_with(|| match agent.map(Agent::keys) {
                None => Vec::new(),
                Some(Ok(keys)) => keys,
                Some(Err(error)) => {
                    problems.push(IdentityError::Agent(error));
                    Vec::new()
                }
            })
    }

    fn find(&mut self, key: &PublicKey, problems: &mut Vec<IdentityError>) -> Option<AgentKey> {
        let mut keys = self.keys(problems).iter();
        keys.find(|held| held.key == *key).cloned()
    }
}

/// What a file turned out to be.
enum Found {
    Private(Box<KeyFile>),
    Public {
        key: PublicKey,
        /// What to say if the agent does not hold the private half.
        why_only: IdentityError,
    },
}

impl Found {
    fn public(&self) -> &PublicKey {
        match self {
            Found::Private(file) => file.public(),
            Found::Public { key, .. } => key,
        }
    }
}

/// Reads the file of a key; `None` if neither it nor its public half is there.
fn read(path: &Path) -> Result<Option<Found>, IdentityError> {
    let text = match private_file::read_private(path, KEY_FILE_BYTES_MAX, Owner::Anybody) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => {
            return Ok(read_public(&public_path(path)).map(|key| only_public(path, key)));
        }
        // A public key may be open to others, and may be named to choose among the agent's keys.
        Err(error @ FileError::OpenToOthers { .. }) => {
            let key = read_public(path).ok_or(error)?;
            return Ok(Some(only_public(path, key)));
        }
        Err(error) => return Err(error.into()),
    };
    let failed = |source| IdentityError::Key {
        path: path.to_owned(),
        source,
    };
    match KeyFile::parse(&text) {
        Ok(file) => {
            let public = file.public();
            if !public.algorithm().is_supported() {
                let unsupported = PrivateKeyError::Unsupported(public.algorithm().name());
                return Err(failed(unsupported.into()));
            }
            public.check_size().map_err(|error| failed(error.into()))?;
            Ok(Some(Found::Private(Box::new(file))))
        }
        Err(KeyFileError::PublicKey) => match read_public(path) {
            Some(key) => Ok(Some(only_public(path, key))),
            None => Err(failed(KeyFileError::PublicKey)),
        },
        Err(KeyFileError::Pem) => {
            let why_only = IdentityError::Pem {
                path: path.to_owned(),
            };
            match read_public(&public_path(path)) {
                Some(key) => Ok(Some(Found::Public { key, why_only })),
                None => Err(why_only),
            }
        }
        Err(source) => Err(failed(source)),
    }
}

fn only_public(path: &Path, key: PublicKey) -> Found {
    Found::Public {
        key,
        why_only: IdentityError::OnlyPublic {
            path: path.to_owned(),
        },
    }
}

fn read_public(path: &Path) -> Option<PublicKey> {
    let text = private_file::read_public(path, KEY_FILE_BYTES_MAX).ok()?;
    let (key, _) = PublicKey::from_line(std::str::from_utf8(&text).ok()?).ok()?;
    Some(key)
}

fn missing(path: &Path) -> IdentityError {
    FileError::Read {
        path: path.to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    }
    .into()
}
