//! From a TARGET to a connection: which address, which user, which keys.

use std::path::PathBuf;

use anyhow::Context as _;
use bowline::client::{
    self, Access, ClientError, Connection, Endpoint, HostTrust, Options, Proofs,
};

use crate::local::LocalServer;

/// The flags of every command that connects.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ConnectFlags {
    /// Prove yourself with this key file (may be given again)
    #[arg(long, short = 'i', value_name = "FILE")]
    pub(crate) identity: Vec<PathBuf>,
}

/// Everything that is needed to connect, and to connect again.
pub(crate) struct Dialer {
    endpoint: Endpoint,
    user: String,
    proofs: Box<dyn Proofs>,
    trust: Box<dyn HostTrust>,
    options: Options,
    /// The server of the target `local`, for as long as it is dialled.
    local: Option<LocalServer>,
}

impl Dialer {
    /// # Errors
    /// Where the target or what it needs cannot be used.
    pub(crate) fn new(
        target: &str,
        user: Option<&str>,
        _flags: &ConnectFlags,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(target == "local", "TARGET {target:?} is not known");
        let mut local =
            LocalServer::start().context("a server of its own for the target `local`")?;
        let (endpoint, proofs, trust) = local.access()?;
        Ok(Self {
            endpoint,
            user: user.unwrap_or_default().to_owned(),
            proofs: Box::new(proofs),
            trust: Box::new(trust),
            options: Options::default(),
            local: Some(local),
        })
    }

    /// Connects.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) async fn dial(&mut self) -> Result<Connection, ClientError> {
        let access = Access {
            user: self.user.clone(),
            proofs: &mut *self.proofs,
            trust: &mut *self.trust,
        };
        client::connect(&self.endpoint, access, &self.options).await
    }

    /// Ends what was started for the sake of the connection.
    pub(crate) fn finish(self) {
        if let Some(local) = self.local {
            local.finish();
        }
    }
}
