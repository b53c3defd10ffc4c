//! `bowline time`: asks an NTP server how far this machine's clock is off.
//!
//! A few exchanges of RFC 5905 enter; offset and delay leave, with how far the truth may
//! lie from them. The clock is never set.

use std::net::{SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use bowline_proto::plain::ntp::{self, AnswerError, Packet, Sample};
use serde::Serialize;

use crate::stderr::tell;
use crate::{duration, exit};

/// Between two requests, so that no server takes them for a flood.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest datagram that is looked at.
const DATAGRAM_BYTES: usize = 1024;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TimeFlags {
    /// HOST, HOST:PORT or `[V6]:PORT`; the port is 123 unless given
    host: String,
    /// How often to ask; the answer that came fastest counts
    #[arg(long, short, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    count: u32,
    /// How long to wait for each answer
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration::parse)]
    wait: Duration,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
}

/// Why there is no time from a server.
#[derive(Debug, thiserror::Error)]
enum TimeError {
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    #[error(transparent)]
    Answer(#[from] AnswerError),
    #[error("the socket failed")]
    Io(#[from] std::io::Error),
}

impl TimeError {
    fn code(&self) -> &'static str {
        match self {
            Self::NoAnswer(_) => "no_answer",
            Self::Answer(AnswerError::NotSynchronised) => "not_synchronised",
            Self::Answer(AnswerError::Refused(_)) => "refused",
            Self::Answer(_) => "malformed",
            Self::Io(_) => "connect_failed",
        }
    }
}

/// Seconds, to the nanosecond.
#[derive(Debug, Serialize)]
struct Figures {
    host: String,
    address: String,
    offset_s: f64,
    delay_s: f64,
    uncertainty_s: f64,
    stratum: u8,
    reference_id: String,
    leap: &'static str,
    root_delay_s: f64,
    root_dispersion_s: f64,
    answers: usize,
    asked: u32,
}

/// # Errors
/// Where HOST makes no sense or stdout cannot be written.
pub(crate) fn time(flags: &TimeFlags) -> anyhow::Result<ExitCode> {
    let (host, port) = host_and_port(&flags.host)?;
    let (address, samples) = match measure(&host, port, flags) {
        Ok(measured) => measured,
        Err(error) => {
            tell!(
                "bowline: {}: {} [{}]",
                flags.host,
                exit::chain(&error),
                error.code()
            );
            return Ok(ExitCode::from(u8::MAX));
        }
    };
    // What was least held up on its way says most.
    let best = samples.iter().min_by_key(|sample| sample.delay);
    let best = best.context("no sample")?;
    let figures = figures(flags, address, best, samples.len());
    exit::print(&if flags.json {
        format!("{}\n", serde_json::to_string(&figures)?)
    } else {
        for_people(&figures)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn host_and_port(text: &str) -> anyhow::Result<(String, u16)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest
            .split_once(']')
            .context("an address begins with [ and has no ]")?;
        let port = match port.strip_prefix(':') {
            Some(port) => port
                .parse()
                .with_context(|| format!("{port:?} is no port"))?,
            None if port.is_empty() => ntp::PORT,
            None => anyhow::bail!("{text:?}: only a port may follow the address"),
        };
        return Ok((host.to_owned(), port));
    }
    match text.rsplit_once(':') {
        // More than one colon: an IPv6 address alone.
        Some((host, port)) if !host.contains(':') => {
            let port = port
                .parse()
                .with_context(|| format!("{port:?} is no port"))?;
            Ok((host.to_owned(), port))
        }
        _ => Ok((text.to_owned(), ntp::PORT)),
    }
}

/// Asks the first address that answers; an error is the last one's.
fn measure(
    host: &str,
    port: u16,
    flags: &TimeFlags,
) -> Result<(SocketAddr, Vec<Sample>), TimeError> {
    use std::net::ToSocketAddrs as _;
    let mut failed = TimeError::Io(std::io::Error::new(
        std::io::ErrorKind::NotFound,
        "the host has no address",
    ));
    for address in (host, port).to_socket_addrs()? {
        match ask_all(address, flags) {
            Ok(samples) => return Ok((address, samples)),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn ask_all(address: SocketAddr, flags: &TimeFlags) -> Result<Vec<Sample>, TimeError> {
    let any = if address.is_ipv6() {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let socket = UdpSocket::bind(any)?;
    // Answers of anybody else do not arrive.
    socket.connect(address)?;
    let mut samples = Vec::new();
    let mut failed = None;
    for round in 0..flags.count {
        if round > 0 {
            pause(&socket)?;
        }
        match ask(&socket, flags.wait) {
            Ok(sample) => samples.push(sample),
            // Whoever is told not to ask asks no more (RFC 5905, section 7.4).
            Err(error @ TimeError::Answer(AnswerError::Refused(_))) => return Err(error),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if samples.is_empty() => Err(error),
        _ => Ok(samples),
    }
}

/// Lets a while pass before the next request; what comes meanwhile is late, or a copy.
fn pause(socket: &UdpSocket) -> Result<(), TimeError> {
    let begun = Instant::now();
    loop {
        let left = PAUSE.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        socket.set_read_timeout(Some(left))?;
        // An error that belongs to an earlier request says nothing of the next.
        let _ = socket.recv(&mut [0; DATAGRAM_BYTES]);
    }
}

fn ask(socket: &UdpSocket, wait: Duration) -> Result<Sample, TimeError> {
    let mut nonce = [0; 8];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| std::io::Error::other("no random bytes"))?;
    let nonce = u64::from_be_bytes(nonce);
    let begun = Instant::now();
    let sent = now_nanos();
    socket.send(&Packet::request(nonce).encode())?;
    let mut datagram = [0; DATAGRAM_BYTES];
    loop {
        let left = wait.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err(TimeError::NoAnswer(wait));
        }
        socket.set_read_timeout(Some(left))?;
        let len = match socket.recv(&mut datagram) {
            Ok(len) => len,
            Err(error) => match error.kind() {
                std::io::ErrorKind::WouldBlock
                | std::io::ErrorKind::TimedOut
                | std::io::ErrorKind::Interrupted => continue,
                _ => return Err(error.into()),
            },
        };
        // The time on the way is taken by a clock that nobody sets meanwhile.
        let passed = i128::try_from(begun.elapsed().as_nanos()).unwrap_or(i128::MAX);
        let answer = datagram.get(..len).unwrap_or_default();
        match ntp::sample(answer, nonce, sent, sent.saturating_add(passed)) {
            // Late, or not from whom we asked: the answer may still come.
            Err(AnswerError::NotAsked | AnswerError::Malformed) => {}
            other => return Ok(other?),
        }
    }
}

fn now_nanos() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i128::try_from(since.as_nanos()).unwrap_or_default()
    })
}

fn figures(flags: &TimeFlags, address: SocketAddr, best: &Sample, answers: usize) -> Figures {
    let seconds = |nanos: i128| nanos as f64 / 1e9;
    let packet = &best.packet;
    Figures {
        host: flags.host.clone(),
        address: address.to_string(),
        offset_s: seconds(best.offset),
        delay_s: seconds(best.delay),
        uncertainty_s: seconds(best.uncertainty),
        stratum: packet.stratum,
        reference_id: reference(packet),
        leap: match packet.leap {
            ntp::Leap::Insert => "insert",
            ntp::Leap::Delete => "delete",
            ntp::Leap::None | ntp::Leap::Unknown => "none",
        },
        root_delay_s: seconds(packet.root_delay.nanos()),
        root_dispersion_s: seconds(packet.root_dispersion.nanos()),
        answers,
        asked: flags.count,
    }
}

/// Letters for a clock of the server's own, else the address or hash of its source.
fn reference(packet: &Packet) -> String {
    let id = packet.reference_id;
    if packet.stratum == 1 {
        let letters = id.iter().take_while(|byte| byte.is_ascii_graphic());
        return letters.map(|byte| char::from(*byte)).collect();
    }
    std::net::Ipv4Addr::from(id).to_string()
}

fn for_people(figures: &Figures) -> String {
    let ms = |seconds: f64| seconds * 1e3;
    let where_to = if figures.offset_s < 0.0 {
        "ahead of"
    } else {
        "behind"
    };
    format!(
        "{} ({}), stratum {}, of {}\n\
         offset {:+.6} ms ± {:.6} ms: this clock is {} it\n\
         delay {:.6} ms, best of {} answers to {} requests\n",
        figures.host,
        figures.address,
        figures.stratum,
        figures.reference_id,
        ms(figures.offset_s),
        ms(figures.uncertainty_s),
        where_to,
        ms(figures.delay_s),
        figures.answers,
        figures.asked,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_the_port_of_ntp_unless_another_is_given() {
        let parsed = |text: &str| host_and_port(text).unwrap();
        assert_eq!(parsed("clock"), ("clock".to_owned(), 123));
        assert_eq!(parsed("clock:5000"), ("clock".to_owned(), 5000));
        assert_eq!(parsed("::1"), ("::1".to_owned(), 123));
        assert_eq!(parsed("[::1]"), ("::1".to_owned(), 123));
        assert_eq!(parsed("[::1]:5000"), ("::1".to_owned(), 5000));
        for wrong in ["[::1", "[::1]x", "clock:", "clock:x", "clock:70000"] {
            assert!(host_and_port(wrong).is_err(), "{wrong}");
        }
    }
}
