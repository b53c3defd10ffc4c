//! `bowline trust`: shows a server's host key and pins it.

use std::process::ExitCode;

use anyhow::Context as _;
use bowline::client::{self, Access, ClientError, Endpoint, Options, Proofs, ServerProof};
use bowline::credentials::places::Places;
use bowline_proto::auth::{Binding, Proof};

use crate::exit;
use crate::hosts::Pinning;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TrustFlags {
    #[arg(help = "The machine: host[:port] or a configured name")]
    pub(crate) target: String,
    /// Pin without asking: you take the key that is shown now for the right one
    #[arg(long, short)]
    pub(crate) yes: bool,
    /// Pin only the key with this fingerprint (SHA256:…)
    #[arg(long, value_name = "SHA256:…")]
    pub(crate) fingerprint: Option<String>,
    /// Say what was done as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Proves nothing: only the key is wanted.
struct Nobody;

impl Proofs for Nobody {
    fn proofs(&mut self, _binding: &Binding, _user: &str) -> Vec<Proof> {
        Vec::new()
    }

    fn server_proof(&mut self, _binding: &Binding, _user: &str) -> Option<ServerProof> {
        None
    }
}

/// # Errors
/// Where the target makes no sense.
pub(crate) async fn trust(flags: TrustFlags) -> anyhow::Result<ExitCode> {
    let endpoint = super::dial::endpoint(&flags.target)?;
    anyhow::ensure!(
        matches!(endpoint, Endpoint::Tcp(..)),
        "{} has no host key: its socket, or ssh, says who it is",
        flags.target
    );
    let places = Places::from_env().context("there is no home folder")?;
    let mut pinning = Pinning::new(&places, flags.yes, flags.fingerprint.clone());
    let access = Access {
        user: String::new(),
        proofs: &mut Nobody,
        trust: &mut pinning,
    };
    let connected = client::connect(&endpoint, access, &Options::default()).await;
    match connected {
        Ok(_) | Err(ClientError::Refused(_)) => {}
        Err(error) => return Ok(exit::failed(&flags.target, &error)),
    }
    let pinned = pinning.result.context("no host key was shown")?;
    if flags.json {
        let json = serde_json::json!({
            "host": pinned.host, "fingerprint": pinned.fingerprint,
            "key": pinned.key, "result": pinned.verdict,
        });
        exit::print(&format!("{json}\n"))?;
    } else {
        exit::print(&format!(
            "{} {} ({})\n",
            pinned.host, pinned.fingerprint, pinned.verdict
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
