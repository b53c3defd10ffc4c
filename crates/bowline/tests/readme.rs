//! The service that the README shows, run as a program of its own.
//!
//! This test has no harness: called with an address it is that program, else it
//! calls itself with one, asks it something, and compares it with the README.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

// Its `main` is called as one, so it is public; in the README it need not be.
#[allow(unreachable_pub)]
#[path = "../examples/upper.rs"]
mod upper;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let first = std::env::args().nth(1).unwrap_or_default();
    if first.starts_with("tcp://") {
        return upper::main();
    }
    // `cargo test WORD` hands the word to every test, and this one is not chosen by any.
    let words = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'));
    if std::env::args().any(|word| word == "--list") || words.count() > 0 {
        return Ok(());
    }
    the_readme_shows_what_runs()?;
    it_answers_everyone()
}

/// The lines of the README's Rust program are those of the example.
fn the_readme_shows_what_runs() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("../../README.md"))?;
    let example = std::fs::read_to_string(root.join("examples/upper.rs"))?;
    let begin = example.find("use bowline").ok_or("the example's begin")?;
    let program = example[begin..].replace("pub async fn main", "async fn main");
    let shown = format!("```rust\n{program}```\n");
    assert!(readme.contains(&shown), "the README shows another program");
    Ok(())
}

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn it_answers_everyone() -> Result<(), Box<dyn std::error::Error>> {
    let mut program = Program(
        Command::new(std::env::current_exe()?)
            .arg("tcp://127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let mut line = String::new();
    let stdout = program.0.stdout.take().ok_or("its stdout")?;
    BufReader::new(stdout).read_line(&mut line)?;
    let address = line.trim().strip_prefix("listening on tcp://");
    let address = address.ok_or_else(|| format!("it said {line:?}"))?;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let client = TcpStream::connect(address)?;
        client.set_read_timeout(Some(PATIENCE))?;
        clients.push(client);
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let text = format!("client {number} says hello");
        client.write_all(text.as_bytes())?;
        let mut reply = vec![0; text.len()];
        client.read_exact(&mut reply)?;
        assert_eq!(reply, text.to_ascii_uppercase().into_bytes());
    }
    Ok(())
}
