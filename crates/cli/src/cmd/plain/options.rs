//! What a plain service can be told, by flags or by a file; docs/plain.toml explains
//! each key.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::bail;
use bowline::net::{Endpoint, Limits, Rate};
use serde::{Deserialize, Deserializer};

use crate::config;
use crate::duration;
use crate::plain::Service;
use crate::plain::challenge::Digest;
use crate::plain::reply::{Framing, Streams, Style};
use crate::plain::runner::COMMANDS_MAX;
use crate::plain::time::Network;

/// What `greet` says where nothing else is given.
const GREETING: &str = "hello";
/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 128;
const CONNECTIONS_MAX: usize = 16 * 1024;
const CONNECTIONS_PER_CLIENT_MAX: usize = 12 * 1024;
const COMMANDS_PER_CLIENT_MAX: usize = COMMANDS_MAX / 2;
const OUTPUT_BYTES_MAX: u64 = 256 * 1024 * 1024;
const DATAGRAMS_PER_SECOND: u32 = 100;
const DRAIN: Duration = Duration::from_secs(10);

/// Serve one of the plain services, or those of a file
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServeFlags {
    /// Which service
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    service: Option<Service>,
    /// Serve what this file says instead: docs/plain.toml
    #[arg(long, value_name = "FILE", conflicts_with_all = ["user", "state_dir"])]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    common: Common,
}

/// What all services of a process share.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Common {
    /// As root: the account that commands run as; root must be named
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Keep the record of the commands here
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// A service's own options.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    /// Listen on tcp://HOST:PORT, udp://HOST:PORT, unix:PATH or unixgram:PATH (may be given again); the
    /// addresses are the first lines on stdout, those of datagrams after the others
    #[arg(long, value_name = "ADDR")]
    #[serde(deserialize_with = "parsed_list")]
    pub(crate) listen: Vec<Endpoint>,
    /// Connections that the kernel holds until they are accepted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16))]
    pub(crate) backlog: Option<u16>,
    /// Connections in all
    #[arg(long, value_name = "N")]
    pub(crate) connections_max: Option<usize>,
    /// Connections of one address
    #[arg(long, value_name = "N")]
    pub(crate) connections_per_client_max: Option<usize>,
    /// Close a connection on which nothing was said for so long (never, unless given)
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    #[serde(deserialize_with = "time")]
    pub(crate) idle_timeout: Option<Duration>,
    /// What is in flight when a signal comes has so long
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    #[serde(deserialize_with = "time")]
    pub(crate) drain: Option<Duration>,
    /// Let in only whoever has the secret in this file
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// The hash function of that proof
    #[arg(long, value_enum)]
    pub(crate) digest: Option<Digest>,
    /// greet: the text that is sent
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Option<String>,
    /// time: answer the text form to this network too, as 192.0.2.0/24 (may be given again)
    #[arg(long, value_name = "CIDR")]
    #[serde(deserialize_with = "parsed_list")]
    pub(crate) text_from: Vec<Network>,
    /// time: be the reference, of this stratum, also where the kernel's clock is not synchronised
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=15))]
    pub(crate) local_stratum: Option<u8>,
    /// time, upper and show: look at so many datagrams a second of one address, where not only this machine can send them
    #[arg(long, value_name = "N")]
    pub(crate) datagrams_per_second: Option<u32>,
    /// exec: how the end of a message is marked
    #[arg(long, value_enum)]
    pub(crate) framing: Option<Framing>,
    /// exec: which of a command's two streams the reply holds
    #[arg(long, value_enum)]
    pub(crate) reply: Option<Streams>,
    /// exec: the reply where a command wrote nothing
    #[arg(long, value_name = "TEXT")]
    pub(crate) when_empty: Option<String>,
    /// exec: put a file name and the MD5 into the JSON header
    #[arg(long)]
    pub(crate) describe: bool,
    /// exec: refuse a reply longer than so many bytes
    #[arg(long, value_name = "BYTES")]
    pub(crate) reply_limit: Option<u64>,
    /// exec: end a command that has written more than so many bytes
    #[arg(long, value_name = "BYTES")]
    pub(crate) output_limit: Option<u64>,
    /// exec: end a command after so long
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    #[serde(deserialize_with = "time")]
    pub(crate) command_time: Option<Duration>,
    /// exec: commands of one client that run at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) commands_per_client: Option<u16>,
    /// exec: the working directory of commands (the account's home, unless given)
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// exec: also where anyone who gets to the address may run commands
    #[arg(long)]
    pub(crate) anyone_may_run_commands: bool,
}

/// A service with its options.
#[derive(Clone, Debug)]
pub(crate) struct ServiceOptions {
    pub(crate) service: Service,
    options: Options,
}

impl std::ops::Deref for ServiceOptions {
    type Target = Options;

    fn deref(&self) -> &Options {
        &self.options
    }
}

/// The file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    user: Option<String>,
    state_dir: Option<PathBuf>,
    #[serde(default)]
    upper: Vec<Options>,
    #[serde(default)]
    stamp: Vec<Options>,
    #[serde(default)]
    greet: Vec<Options>,
    #[serde(default)]
    chat: Vec<Options>,
    #[serde(default)]
    show: Vec<Options>,
    #[serde(default)]
    time: Vec<Options>,
    #[serde(default)]
    exec: Vec<Options>,
}

impl ServeFlags {
    /// The services to serve, checked.
    ///
    /// # Errors
    /// Where the file cannot be read, or something makes no sense or is not safe.
    pub(crate) fn services(&self) -> anyhow::Result<(Vec<ServiceOptions>, Common)> {
        let (services, common) = match (&self.config, self.service) {
            (Some(path), _) => {
                if !self.options.listen.is_empty() {
                    bail!("--config says where to listen: leave --listen out");
                }
                from_file(config::read_required(path)?)
            }
            (None, Some(service)) => {
                let options = self.options.clone();
                let service = ServiceOptions { service, options };
                (vec![service], self.common.clone())
            }
            (None, None) => bail!("name a service, or a file with --config"),
        };
        if services.is_empty() {
            bail!("there is no service to serve");
        }
        for service in &services {
            service.check()?;
        }
        let chats = services.iter().filter(|it| it.service == Service::Chat);
        if chats.count() > 1 {
            bail!("there is one stdin, so there can be one chat");
        }
        Ok((services, common))
    }
}

fn from_file(file: File) -> (Vec<ServiceOptions>, Common) {
    let tables = [
        (Service::Upper, file.upper),
        (Service::Stamp, file.stamp),
        (Service::Greet, file.greet),
        (Service::Chat, file.chat),
        (Service::Show, file.show),
        (Service::Time, file.time),
        (Service::Exec, file.exec),
    ];
    let services = tables.into_iter().flat_map(|(service, tables)| {
        let options = tables.into_iter();
        options.map(move |options| ServiceOptions { service, options })
    });
    let common = Common {
        user: file.user,
        state_dir: file.state_dir,
    };
    (services.collect(), common)
}

impl ServiceOptions {
    fn check(&self) -> anyhow::Result<()> {
        let name = clap::ValueEnum::to_possible_value(&self.service);
        let name = name.as_ref().map_or("", |name| name.get_name());
        if self.listen.is_empty() {
            bail!("{name}: say where to listen with --listen, as tcp://127.0.0.1:7000");
        }
        for address in &self.listen {
            let fits = match self.service {
                Service::Upper | Service::Show => true,
                Service::Time => address.is_datagram(),
                _ => !address.is_datagram(),
            };
            if !fits {
                bail!("{name} is not served on {address}");
            }
            if address.is_datagram() && self.secret_file.is_some() {
                bail!("{address}: a secret is proven on a connection, and datagrams have none");
            }
            let open = self.service == Service::Exec
                && self.secret_file.is_none()
                && !self.anyone_may_run_commands
                && !address.is_local();
            if open {
                bail!(
                    "{address}: whoever connects there could run commands. Ask for a secret with \
                     --secret-file, listen on loopback or a Unix socket, or, if that is meant, \
                     say --anyone-may-run-commands"
                );
            }
        }
        if self.service == Service::Exec && self.framing.is_none() {
            bail!("exec: say how messages end with --framing raw|ready|len4|json|framed");
        }
        Ok(())
    }

    pub(crate) fn backlog(&self) -> u32 {
        self.backlog.map_or(BACKLOG, u32::from)
    }

    /// What is in flight when a signal comes has so long.
    pub(crate) fn drain(&self) -> Duration {
        self.drain.unwrap_or(DRAIN)
    }

    pub(crate) fn limits(&self) -> Limits {
        // A program of this machine needs no forged source to trouble it.
        let outside = self.listen.iter().any(|address| !address.is_local());
        let per_second = self.datagrams_per_second.unwrap_or(DATAGRAMS_PER_SECOND);
        Limits {
            connections_max: self.connections_max.unwrap_or(CONNECTIONS_MAX),
            connections_per_address_max: self
                .connections_per_client_max
                .unwrap_or(CONNECTIONS_PER_CLIENT_MAX),
            idle_time: self.idle_timeout.filter(|time| !time.is_zero()),
            datagram_rate: outside.then_some(Rate {
                per_second,
                burst: per_second,
            }),
            ..Limits::default()
        }
    }

    pub(crate) fn text(&self) -> String {
        self.text.clone().unwrap_or_else(|| GREETING.to_owned())
    }

    pub(crate) fn style(&self) -> Style {
        Style {
            framing: self.framing.unwrap_or(Framing::Raw),
            streams: self.reply.unwrap_or_default(),
            when_empty: self.when_empty.clone(),
            describe: self.describe,
            bytes_max: self.reply_limit,
        }
    }

    pub(crate) fn output_bytes_max(&self) -> u64 {
        self.output_limit.unwrap_or(OUTPUT_BYTES_MAX)
    }

    pub(crate) fn commands_per_client(&self) -> usize {
        self.commands_per_client
            .map_or(COMMANDS_PER_CLIENT_MAX, usize::from)
    }
}

/// A list of texts, each parsed as on the command line.
fn parsed_list<'de, D, T>(from: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    let texts = Vec::<String>::deserialize(from)?;
    let parsed = texts.iter().map(|text| text.parse());
    parsed
        .collect::<Result<_, _>>()
        .map_err(serde::de::Error::custom)
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(from)?;
    duration::parse(&text)
        .map(Some)
        .map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use clap::Args as _;

    use super::*;

    const DOC: &str = include_str!("../../../../../docs/plain.toml");

    #[test]
    fn the_documented_file_reads_with_every_key_that_it_shows() {
        let (services, _) = from_file(toml::from_str(DOC).unwrap());
        assert_eq!(services.len(), 4);
        services.iter().for_each(|it| it.check().unwrap());
        let shown = DOC
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if rest.starts_with(|it: char| it.is_ascii_lowercase()) => rest,
                _ => line,
            })
            .collect::<Vec<_>>()
            .join("\n");
        let (services, common) = from_file(toml::from_str(&shown).unwrap());
        assert_eq!(services[1].text(), "hello");
        assert_eq!(common.user.as_deref(), Some("nobody"));
    }

    #[test]
    fn every_flag_is_a_documented_key() {
        let command = ServeFlags::augment_args(clap::Command::new("serve"));
        let flags = command.get_arguments().map(|it| it.get_id().as_str());
        for flag in flags.filter(|flag| !["service", "config"].contains(flag)) {
            assert!(DOC.contains(&format!("{flag} = ")), "{flag}");
        }
    }
}
