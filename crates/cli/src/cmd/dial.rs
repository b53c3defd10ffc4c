//! From a TARGET to a connection: which address, which user, which keys.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::Context as _;
use bowline::client::{
    self, Access, ClientError, Connection, Endpoint, HostTrust, Hurry, Options, Proofs,
    ServerProof, Whereabouts,
};
use bowline::credentials::agent::Agent;
use bowline::credentials::identity::{Identities, Search};
use bowline::credentials::places::Places;
use bowline::credentials::secret::Secret;
use bowline::credentials::signer::{self, Signer};
use bowline::credentials::ssh_config::{self, Asker, HostConfig};
use bowline_proto::auth::{Binding, Proof, Role};
use bowline_proto::limits::PROTOCOL;
use zeroize::Zeroizing;

use crate::config::{ClientConfig, HostSettings, Milliseconds, Trust};
use crate::duration;
use crate::hosts::Hosts;
use crate::local::LocalServer;
use crate::stderr::tell;
use crate::target::{Place, Target};
use crate::terminal::Terminal;

/// As long as sshd waits for a person's password by default (sshd_config(5), LoginGraceTime).
const SSH_TIMEOUT: Duration = Duration::from_secs(120);

/// How often a person may take longer over an answer than the server waits: each is asked for only once.
const TOO_SLOW_MAX: u32 = 4;

/// How often a line may break before anything was done over it.
const BROKEN_MAX: u32 = 5;
/// The pause after the first time; it doubles with each.
const BROKEN_PAUSE: Duration = Duration::from_millis(20);

// The flags of every command that connects. No doc comment: clap would have a command say that of itself.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ConnectFlags {
    /// Prove yourself with this key file alone (may be given again)
    #[arg(long, short, value_name = "FILE")]
    pub(crate) identity: Vec<PathBuf>,
    /// What to do about a host whose key is not known (default: ask)
    #[arg(long, value_name = "MODE")]
    pub(crate) trust: Option<Trust>,
    /// Prove yourself with a shared secret instead of a key
    #[arg(long, value_name = "FILE", conflicts_with = "identity")]
    pub(crate) secret_file: Option<PathBuf>,
    /// Give up when there is no connection after this time (default: 15s; over ssh, which may ask, 2m)
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub(crate) connect_timeout: Option<Duration>,
}

/// Everything that is needed to connect, and to connect again.
pub(crate) struct Dialer {
    endpoint: Endpoint,
    user: String,
    proofs: Proving,
    trust: Box<dyn HostTrust>,
    options: Options,
    settings: HostSettings,
    /// Where the server was found.
    whereabouts: Whereabouts,
    /// How often the server would not wait any longer for a person's answer.
    too_slow: u32,
    /// How often the line broke.
    broken: u32,
    /// The server of the target `local`, for as long as it is dialled.
    local: Option<LocalServer>,
}

impl Dialer {
    /// # Errors
    /// Where the target or what it needs cannot be used.
    pub(crate) fn new(
        target: &str,
        user: Option<&str>,
        flags: &ConnectFlags,
    ) -> anyhow::Result<Self> {
        let mut options = Options::default();
        let mut target = Target::parse(target, &ClientConfig::load()?)?;
        let set = target.settings.connect_timeout.map(Milliseconds::time);
        options.timeout = match (flags.connect_timeout.or(set), &target.place) {
            (Some(timeout), _) => timeout,
            (None, Place::Ssh { .. }) => SSH_TIMEOUT,
            (None, _) => options.timeout,
        };
        if target.place == Place::Local {
            return Self::local(user, options, target.settings);
        }
        if let (Place::Ssh { user: named, .. }, Some(user)) = (&mut target.place, user) {
            *named = Some(user.to_owned());
        }
        let places = Places::from_env().context("there is no home folder")?;
        let host = host_config(&target, user, &places)?;
        let secret = flags
            .secret_file
            .as_ref()
            .or(target.settings.secret.as_ref());
        let secret = secret.map(|file| Secret::load(file)).transpose()?;
        let trust = flags.trust.or(target.settings.trust).unwrap_or(Trust::Ask);
        let trust = Hosts::new(&places, trust, secret.is_some());
        let named = match flags.identity.is_empty() {
            true => &target.settings.identity,
            false => &flags.identity,
        };
        let endpoint = endpoint_of(&target, &host)?;
        let proofs = match (&endpoint, secret) {
            (_, Some(secret)) => Proving::Secret(secret),
            // Whoever may open the socket, or start ssh, is known to the other end already.
            (Endpoint::Unix(_) | Endpoint::Command(_), None) if named.is_empty() => Proving::Peer,
            _ => Proving::keys(named, &places, &host)?,
        };
        Ok(Self {
            user: user_of(&target, user, &host),
            endpoint,
            proofs,
            trust: Box::new(trust),
            options,
            settings: target.settings,
            whereabouts: Whereabouts::default(),
            too_slow: 0,
            broken: 0,
            local: None,
        })
    }

    fn local(user: Option<&str>, options: Options, settings: HostSettings) -> anyhow::Result<Self> {
        let mut local =
            LocalServer::start().context("a server of its own for the target `local`")?;
        let (endpoint, key, trust) = local.access()?;
        Ok(Self {
            endpoint,
            user: user.unwrap_or_default().to_owned(),
            proofs: Proving::Fresh(key),
            trust: Box::new(trust),
            options,
            settings,
            whereabouts: Whereabouts::default(),
            too_slow: 0,
            broken: 0,
            local: Some(local),
        })
    }

    /// Has a connection given up whose path is silent for so long, as far as the kernel can tell.
    pub(crate) fn bound_silence(&mut self, silence: Duration) {
        self.options.silence = Some(silence);
    }

    /// Has the next connections made in a hurry: the path is down, and is to be noticed when it
    /// is back. `None` takes that back.
    pub(crate) fn hurry(&mut self, every: Option<Duration>) {
        self.options.hurry = every.map(|every| Hurry {
            every,
            whereabouts: self.whereabouts.clone(),
        });
    }

    /// What the configuration says of the host.
    pub(crate) fn settings(&self) -> &HostSettings {
        &self.settings
    }

    /// How long a server may take to answer.
    pub(crate) fn timeout(&self) -> Duration {
        self.options.timeout
    }

    /// Connects. What the server makes of the proofs is not known yet.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn dial(&mut self) -> Result<Connection, ClientError> {
        let access = Access {
            user: self.user.clone(),
            proofs: &mut self.proofs,
            trust: &mut *self.trust,
        };
        let connection = client::connect(&self.endpoint, access, &self.options).await?;
        if let Some(peer) = connection.peer() {
            self.whereabouts.stands(peer);
        }
        Ok(connection)
    }

    /// Connects and waits to be let in; again where that may end better.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn enter(&mut self) -> Result<Connection, ClientError> {
        loop {
            match self.try_enter().await {
                Ok(connection) => return Ok(connection),
                Err(error) => match self.pause_before_another(&error) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(error),
                },
            }
        }
    }

    async fn try_enter(&mut self) -> Result<Connection, ClientError> {
        let mut connection = self.dial().await?;
        while !connection.is_granted() {
            connection.next().await?;
        }
        Ok(connection)
    }

    /// The pause before another [`Self::dial`], where one may end better and nothing was done
    /// over this one: none for keys that the server has not seen and for answers that a person
    /// took too long to give, a growing one where the line broke.
    pub(crate) fn pause_before_another(&mut self, error: &ClientError) -> Option<Duration> {
        if error.is_broken_line() {
            self.broken += 1;
            let doubled = BROKEN_PAUSE.saturating_mul(1 << (self.broken - 1).min(BROKEN_MAX));
            tracing::info!(%error, times = self.broken, "the line broke; trying again");
            return (self.broken <= BROKEN_MAX).then_some(doubled);
        }
        let again = match error.code() {
            "not_authenticated" => self.proofs.advance(),
            "auth_timeout" => {
                self.too_slow += 1;
                self.too_slow <= TOO_SLOW_MAX
            }
            _ => false,
        };
        again.then_some(Duration::ZERO)
    }

    /// Whether a line broke, so that what was asked for over it may have been heard.
    pub(crate) fn was_broken(&self) -> bool {
        self.broken > 0
    }

    /// Ends what was started for the sake of the connection.
    pub(crate) fn finish(self) {
        if let Some(local) = self.local {
            local.finish();
        }
    }
}

/// The address of a TARGET alone, with what ssh's configuration says of it.
///
/// # Errors
/// Where it is no target, or `local`, which has none before it is started.
pub(crate) fn endpoint(target: &str) -> anyhow::Result<Endpoint> {
    let target = Target::parse(target, &ClientConfig::load()?)?;
    let places = Places::from_env().context("there is no home folder")?;
    let host = host_config(&target, None, &places)?;
    endpoint_of(&target, &host)
}

/// What ~/.ssh/config says about the host. With `ssh:` that is ssh's business.
fn host_config(target: &Target, user: Option<&str>, places: &Places) -> anyhow::Result<HostConfig> {
    let Place::Tcp { host, .. } = &target.place else {
        return Ok(HostConfig::default());
    };
    let files = [
        places.home().join(".ssh/config"),
        PathBuf::from("/etc/ssh/ssh_config"),
    ];
    let asker = Asker {
        home: places.home(),
        user: own_name(),
        remote_user: user.or(target.user.as_deref()),
    };
    Ok(ssh_config::lookup(&files, host, &asker)?)
}

fn endpoint_of(target: &Target, config: &HostConfig) -> anyhow::Result<Endpoint> {
    let endpoint = target.endpoint();
    let endpoint = endpoint.context("the target `local` has fresh keys for each call")?;
    Ok(match (endpoint, &config.host_name) {
        (Endpoint::Tcp(_, port), Some(host)) => Endpoint::Tcp(host.clone(), port),
        (endpoint, _) => endpoint,
    })
}

fn user_of(target: &Target, flag: Option<&str>, config: &HostConfig) -> String {
    let named = match &target.place {
        Place::Tcp { .. } => target.user.as_deref().or(config.user.as_deref()),
        Place::Unix(_) => target.user.as_deref(),
        // ssh decides whom it is; there its server serves nobody else.
        Place::Ssh { .. } => return String::new(),
        Place::Local => None,
    };
    match (flag.or(named), &target.place) {
        (Some(user), _) => user.to_owned(),
        (None, Place::Tcp { .. }) => own_name().to_owned(),
        (None, _) => String::new(),
    }
}

/// What this user is called here; looked up once.
fn own_name() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(|| {
        let own = nix::unistd::User::from_uid(nix::unistd::geteuid());
        own.ok().flatten().map(|user| user.name).unwrap_or_default()
    });
    &NAME
}

/// What proves this client.
enum Proving {
    /// The uid of this process, as the kernel tells.
    Peer,
    Secret(Secret),
    Keys {
        rest: Box<Identities>,
        now: Vec<Arc<dyn Signer>>,
    },
    Fresh(crate::local::FreshKey),
}

impl Proving {
    fn keys(named: &[PathBuf], places: &Places, host: &HostConfig) -> anyhow::Result<Self> {
        let mut rest = Identities::search(Search {
            named,
            places,
            host,
            agent: Agent::from_env(),
            ask: Arc::new(ask_passphrase),
        })?;
        let now = rest.next_round().unwrap_or_default();
        for problem in rest.problems() {
            tracing::warn!("{}", crate::exit::chain(problem));
        }
        if now.is_empty() {
            let problems = rest
                .problems()
                .iter()
                .map(|problem| crate::exit::chain(problem));
            let problems: Vec<String> = problems.collect();
            anyhow::bail!(
                "there is no key to prove yourself with; `bowline keygen` makes one{}{}",
                if problems.is_empty() { "" } else { "; " },
                problems.join("; ")
            );
        }
        Ok(Self::Keys {
            rest: Box::new(rest),
            now,
        })
    }

    fn advance(&mut self) -> bool {
        let Self::Keys { rest, now } = self else {
            return false;
        };
        match rest.next_round() {
            Some(round) => {
                *now = round;
                true
            }
            None => false,
        }
    }
}

impl Proofs for Proving {
    fn proofs(&mut self, binding: &Binding, user: &str) -> Vec<Proof> {
        match self {
            Self::Peer => vec![Proof::Peer],
            Self::Secret(secret) => vec![secret.proof(binding, user, PROTOCOL)],
            Self::Keys { now, .. } => {
                for signer in now.iter() {
                    tracing::info!(key = %signer.public_key(), "offering");
                }
                let (proofs, failed) = signer::proofs(binding, user, PROTOCOL, now);
                for error in failed {
                    tell!("bowline: {} [key_unusable]", crate::exit::chain(&error));
                }
                proofs
            }
            Self::Fresh(key) => key.proofs(binding, user),
        }
    }

    fn server_proof(&mut self, binding: &Binding, user: &str) -> Option<ServerProof> {
        match self {
            Self::Secret(secret) => {
                let code = secret.code(Role::Server, binding, user, PROTOCOL);
                Some(ServerProof(code))
            }
            Self::Peer | Self::Keys { .. } | Self::Fresh(_) => None,
        }
    }
}

/// Asks on the terminal, and only there.
fn ask_passphrase(path: &Path, attempt: u32) -> Option<Zeroizing<String>> {
    let terminal = Terminal::open()?;
    let again = if attempt > 1 {
        " (that was not it)"
    } else {
        ""
    };
    let prompt = format!("Passphrase of {}{again}: ", path.display());
    terminal.ask_secret(&prompt)
}
