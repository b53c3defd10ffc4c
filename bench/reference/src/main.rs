//! The reference of the benchmark: what TLS 1.3 and a process cost by
//! themselves. It must never grow a feature of bowline's: no users, no record,
//! no keeper, no windows, no resume. Data enters by the command line, the key
//! files that `ref keys` makes, and the peer, which is trusted once it has
//! shown its pinned key.
//!
//!     ref keys DIR
//!     ref serve DIR HOST:PORT                    prints "listening HOST:PORT"
//!     ref run DIR HOST:PORT -- argv
//!     ref warm DIR HOST:PORT COUNT PARALLEL      prints JSON
//!     ref idle DIR HOST:PORT sessions|connections N
//!     ref nothing                                ends at once, for bench/start-cost
//!     ref steps DIR                              what a client's start is made of, in ns

mod client;
mod server;
mod steps;
mod tls;
mod wire;

use anyhow::{Context, Result, bail};
use std::process::ExitCode;
use tokio::runtime::Builder;

fn main() -> Result<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let here = || Builder::new_current_thread().enable_io().build();
    match args.as_slice() {
        ["nothing"] => {}
        ["steps", dir] => steps::print(dir.as_ref())?,
        ["keys", dir] => tls::make_keys(dir.as_ref())?,
        ["serve", dir, address] => {
            let runtime = Builder::new_multi_thread().enable_io().build()?;
            runtime.block_on(server::serve(dir.as_ref(), address))?;
        }
        ["run", dir, address, "--", argv @ ..] if !argv.is_empty() => {
            let status = here()?.block_on(client::run(dir.as_ref(), address, argv))?;
            // Returning would wait for the thread that may still read our stdin.
            std::process::exit(status);
        }
        ["warm", dir, address, count, parallel] => {
            let (count, parallel) = (count.parse()?, parallel.parse()?);
            here()?.block_on(client::warm(dir.as_ref(), address, count, parallel))?;
        }
        [
            "idle",
            dir,
            address,
            what @ ("sessions" | "connections"),
            count,
        ] => {
            let count = count.parse().context("a number")?;
            here()?.block_on(client::idle(
                dir.as_ref(),
                address,
                *what == "sessions",
                count,
            ))?;
        }
        _ => bail!("see the head of bench/reference/src/main.rs for what to say"),
    }
    Ok(ExitCode::SUCCESS)
}
