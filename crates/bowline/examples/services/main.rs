//! What `bench/services` measures servers with: small ones on the library and on bare tokio,
//! and a load of each kind.
//!
//!     services serve upper net|tokio        prints its port; ends when stdin does
//!     services serve time|exec tokio        the same
//!     services load upper PORT CONNECTIONS IN_FLIGHT SECONDS      prints replies a second
//!     services load time PORT IN_FLIGHT SECONDS
//!     services load exec PORT CONNECTIONS SECONDS
//!     services idle PORT CONNECTIONS        prints ready; ends when stdin does
//!
//! It must never count a reply that did not come, or a wrong one.

#![allow(clippy::print_stdout)]

mod exec;
mod time;
mod upper;

use std::error::Error;
use std::io::Read;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["serve", "upper", "net"] => upper::serve_net().await,
        ["serve", "upper", "tokio"] => upper::serve_tokio().await,
        ["serve", "time", "tokio"] => time::serve_tokio().await,
        ["serve", "exec", "tokio"] => exec::serve_tokio().await,
        ["load", what, port, numbers @ ..] => {
            let (time, numbers) = numbers.split_last().ok_or("SECONDS")?;
            let time = Duration::from_secs(time.parse()?);
            let rate = load(what, port.parse()?, numbers, time).await?;
            println!("{rate}");
            Ok(())
        }
        ["idle", port, connections] => upper::idle(port.parse()?, connections.parse()?).await,
        _ => Err("serve, load or idle: see the head of this program".into()),
    }
}

async fn load(what: &str, port: u16, numbers: &[&str], time: Duration) -> Result<u64> {
    match (what, numbers) {
        ("upper", [connections, in_flight]) => {
            upper::load(port, connections.parse()?, in_flight.parse()?, time).await
        }
        ("time", [in_flight]) => time::load(port, in_flight.parse()?, time).await,
        ("exec", [connections]) => exec::load(port, connections.parse()?, time).await,
        _ => Err("upper, time or exec, and its numbers".into()),
    }
}

/// Ready when whoever started this program lets it go.
async fn let_go() {
    let read = || std::io::stdin().read_to_end(&mut Vec::new());
    let _ = tokio::task::spawn_blocking(read).await;
}

fn port_of(address: &str) -> &str {
    address.rsplit(':').next().unwrap_or_default()
}

fn per_second(replies: u64, begun: Instant) -> u64 {
    let rate = u128::from(replies) * 1_000_000 / begun.elapsed().as_micros().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}
