//! `bowline ping`: how long a round trip takes, of the session or of a job.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bowline::client::{ClientError, Connection, Happening, StartRequest};
use bowline_proto::id::Channel;
use serde::Serialize;

use super::dial::{ConnectFlags, Dialer};
use crate::exit;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PingFlags {
    /// The machine, as in `bowline run`
    pub(crate) target: String,
    /// How many round trips
    #[arg(long, short, default_value_t = 5)]
    pub(crate) count: u32,
    /// How many at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) parallel: u32,
    /// Start the program `true` instead, and wait for its outcome
    #[arg(long)]
    pub(crate) job: bool,
    /// The remote user (the same as user@ in TARGET)
    #[arg(long, short = 'l', value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Print the figures as JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) connect: ConnectFlags,
}

/// Times in microseconds.
#[derive(Debug, Serialize)]
struct Figures {
    host: String,
    what: &'static str,
    count: usize,
    parallel: u32,
    min_us: u64,
    median_us: u64,
    p99_us: u64,
    max_us: u64,
    per_second: f64,
}

/// # Errors
/// Where the flags make no sense.
pub(crate) async fn ping(flags: PingFlags) -> anyhow::Result<ExitCode> {
    let mut dialer = Dialer::new(&flags.target, flags.user.as_deref(), &flags.connect)?;
    let measured = measure(&mut dialer, &flags).await;
    dialer.finish();
    let (mut times, took) = match measured {
        Ok(measured) => measured,
        Err(error) => return Ok(exit::failed(&flags.target, &error)),
    };
    times.sort_unstable();
    let figures = figures(&flags, &times, took);
    if flags.json {
        exit::print(&format!("{}\n", serde_json::to_string(&figures)?))?;
    } else {
        let ms = |us: u64| us as f64 / 1000.0;
        exit::print(&format!(
            "{} {} round trips to {}, {} at a time\n\
             min {:.3} ms, median {:.3} ms, p99 {:.3} ms, max {:.3} ms, {:.0} per second\n",
            figures.count,
            figures.what,
            figures.host,
            figures.parallel,
            ms(figures.min_us),
            ms(figures.median_us),
            ms(figures.p99_us),
            ms(figures.max_us),
            figures.per_second
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn figures(flags: &PingFlags, sorted: &[Duration], took: Duration) -> Figures {
    let at = |part: f64| {
        let index = (part * sorted.len() as f64).ceil() as usize;
        let time = sorted.get(index.saturating_sub(1)).copied();
        u64::try_from(time.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
    };
    Figures {
        host: flags.target.clone(),
        what: if flags.job { "job" } else { "session" },
        count: sorted.len(),
        parallel: flags.parallel,
        min_us: at(0.0),
        median_us: at(0.5),
        p99_us: at(0.99),
        max_us: at(1.0),
        per_second: sorted.len() as f64 / took.as_secs_f64().max(1e-9),
    }
}

async fn measure(
    dialer: &mut Dialer,
    flags: &PingFlags,
) -> Result<(Vec<Duration>, Duration), ClientError> {
    let mut connection = dialer.enter().await?;
    let mut under_way = HashMap::new();
    let mut times = Vec::new();
    let mut asked = 0;
    let begun = Instant::now();
    while times.len() < flags.count as usize {
        while asked < flags.count && under_way.len() < flags.parallel as usize {
            let key = ask(&mut connection, flags.job, asked)?;
            under_way.insert(key, Instant::now());
            asked += 1;
        }
        let key = match connection.next().await? {
            Happening::Pong(pong) => pong.id,
            Happening::Exit(channel, exit) => {
                connection.close(channel);
                if exit.outcome.code != Some(0) {
                    return Err(ClientError::Refused(bowline_proto::message::Refused {
                        code: "ping_failed".to_owned(),
                        message: format!("`true` came to {}", exit.outcome.outcome.as_str()),
                    }));
                }
                u64::from(channel.0)
            }
            Happening::Refused(_, refused) => return Err(ClientError::Refused(refused)),
            _ => continue,
        };
        if let Some(begun) = under_way.remove(&key) {
            times.push(begun.elapsed());
        }
    }
    let took = begun.elapsed();
    connection.bye();
    let _ = connection.finish().await;
    Ok((times, took))
}

/// Asks for one round trip; its answer carries the number that is given.
fn ask(connection: &mut Connection, job: bool, number: u32) -> Result<u64, ClientError> {
    if !job {
        connection.ping(u64::from(number));
        return Ok(u64::from(number));
    }
    let request = StartRequest {
        argv: vec![b"true".to_vec()],
        null_stdin: true,
        ..StartRequest::default()
    };
    let id = exit::fresh_job_id().map_err(|_| ClientError::Closed)?;
    let Channel(channel) = connection.start(id, &request)?;
    Ok(u64::from(channel))
}
