//! What the start of a client is made of, timed in a process that does each
//! step for the first time, as a client does. It must never stand for a warm
//! process. Key files enter; figures leave by stdout.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use rustls::pki_types::ServerName;

/// Prints one line for each step: its name and nanoseconds.
pub fn print(dir: &Path) -> Result<()> {
    let mut steps = Vec::new();
    let mut last = Instant::now();
    let mut done = |what: &'static str| {
        let now = Instant::now();
        steps.push((what, now.duration_since(last).as_nanos()));
        last = Instant::now();
    };
    done("the clock itself");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    done("tokio runtime (current thread)");
    std::hint::black_box(std::fs::read(dir.join("client.key"))?);
    done("one small file read");
    let config = crate::tls::client(dir)?;
    done("rustls ClientConfig with three key files");
    let name = ServerName::try_from("reference")?;
    // The hello, and in it the shares of X25519MLKEM768 and X25519.
    let first = rustls::ClientConnection::new(Arc::clone(&config), name.clone())?;
    done("ClientConnection: key shares, first time");
    drop(first);
    let second = rustls::ClientConnection::new(config, name)?;
    done("ClientConnection: key shares, second time");
    drop((second, runtime));
    for (what, ns) in steps {
        println!("{what}\t{ns}");
    }
    Ok(())
}
