//! Holds many connections to a server in one process, each with a job that has
//! said something or with none: what bench/run measures the server's memory with.
//!
//! It must never hide a connection that failed: the figure would lie. The key
//! file and known_hosts of the command line enter; the word `ready` leaves by
//! stdout once all are held, and they are let go when stdin ends.
//!
//!     idle KEY KNOWN_HOSTS USER HOST:PORT sessions|connections N

use std::error::Error;
use std::io::{Read, Write};
use std::path::Path;

use bowline::client::{
    Access, Connection, Endpoint, Happening, HostKeyError, HostTrust, Options, Proofs, ServerProof,
    StartRequest, connect,
};
use bowline::credentials::key_file::KeyFile;
use bowline::credentials::private_key::PrivateKey;
use bowline::credentials::trust::{HostDatabase, Verdict};
use bowline::proto::auth::{Binding, NAMESPACE, Proof, public_key_message};
use bowline::proto::id::JobId;
use bowline::proto::key::PublicKey;
use bowline::proto::limits::PROTOCOL;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [key, known_hosts, user, target, what, count] = args.as_slice() else {
        return Err("KEY KNOWN_HOSTS USER HOST:PORT sessions|connections N".into());
    };
    let (host, port) = target.rsplit_once(':').ok_or("HOST:PORT")?;
    let endpoint = Endpoint::Tcp(host.to_owned(), port.parse()?);
    let mut key = OneKey(KeyFile::parse(&std::fs::read(key)?)?.open()?);
    let mut known = Known(HostDatabase::load(Path::new(known_hosts), &[])?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let held = runtime.block_on(async {
        let mut held = Vec::new();
        for _ in 0..count.parse()? {
            let access = Access {
                user: user.clone(),
                proofs: &mut key,
                trust: &mut known,
            };
            let connection = connect(&endpoint, access, &Options::default()).await?;
            held.push(hold(connection, what == "sessions").await?);
        }
        Ok::<_, Box<dyn Error>>(held)
    })?;
    writeln!(std::io::stdout(), "ready")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(held);
    Ok(())
}

/// Brings a connection to where it is left alone: let in, or with a job that has said something.
async fn hold(mut connection: Connection, with_job: bool) -> Result<Connection> {
    if with_job {
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| "no random bytes")?;
        let argv = [&b"sh"[..], b"-c", b"echo here; exec sleep 100000"];
        let request = StartRequest {
            argv: argv.map(<[u8]>::to_vec).into(),
            ..StartRequest::default()
        };
        connection.start(JobId::from_bytes(id), &request)?;
    }
    loop {
        match connection.next().await? {
            Happening::Output {
                channel,
                stream,
                bytes,
                ..
            } => {
                connection.consumed(channel, stream, bytes.len().try_into()?);
                connection.flush().await?;
                return Ok(connection);
            }
            Happening::Granted(_) if !with_job => return Ok(connection),
            Happening::Exit(..) => return Err("the job ended".into()),
            Happening::Refused(_, refused) => return Err(refused.message.into()),
            _ => {}
        }
    }
}

struct OneKey(PrivateKey);

impl Proofs for OneKey {
    fn proofs(&mut self, binding: &Binding, user: &str) -> Vec<Proof> {
        let message = public_key_message(binding, user, PROTOCOL);
        let signed = self.0.sign_sshsig(NAMESPACE, &message);
        let proof = signed.map(|sshsig| Proof::PublicKey { sshsig });
        proof.into_iter().collect()
    }

    fn server_proof(&mut self, _: &Binding, _: &str) -> Option<ServerProof> {
        None
    }
}

struct Known(HostDatabase);

impl HostTrust for Known {
    fn check(
        &mut self,
        host: &str,
        port: u16,
        key: &[u8; 32],
    ) -> std::result::Result<(), HostKeyError> {
        let key = PublicKey::from_ed25519(key);
        match self.0.check(host, port, &key) {
            Verdict::Known(_) => Ok(()),
            _ => Err(HostKeyError::Unknown {
                host: host.to_owned(),
                fingerprint: bowline::credentials::fingerprint(&key),
            }),
        }
    }
}
