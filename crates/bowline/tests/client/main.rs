//! The client against a scripted server on a Unix socket: lines that are cut in
//! mid-transfer, and a job that is attached to at its offsets.

mod script;

use bowline::client::{
    Access, Connection, Endpoint, Happening, HostKeyError, HostTrust, Options, Proofs, ServerProof,
    StartRequest, Unacked, connect,
};
use bowline_proto::auth::{Binding, Proof};
use bowline_proto::frame::Stream;
use bowline_proto::id::{Channel, JobId};
use bowline_proto::message::Attach;

use script::{Job, position_coded, serve};

const JOB: JobId = JobId::from_bytes([7; 16]);
/// Far more than a loaded machine needs.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Offers the uid, and with `secret` wants a proof of the server too.
struct Proving {
    secret: Option<[u8; 32]>,
}

impl Proofs for Proving {
    fn proofs(&mut self, _: &Binding, _: &str) -> Vec<Proof> {
        vec![Proof::Peer]
    }

    fn server_proof(&mut self, _: &Binding, _: &str) -> Option<ServerProof> {
        self.secret.map(ServerProof)
    }
}

impl HostTrust for Proving {
    fn check(&mut self, _: &str, _: u16, _: &[u8; 32]) -> Result<(), HostKeyError> {
        Ok(())
    }
}

async fn dial(path: &std::path::Path, secret: Option<[u8; 32]>) -> Connection {
    let (mut proofs, mut trust) = (Proving { secret }, Proving { secret });
    let access = Access {
        user: String::new(),
        proofs: &mut proofs,
        trust: &mut trust,
    };
    let to = Endpoint::Unix(path.to_owned());
    connect(&to, access, &Options::default()).await.unwrap()
}

/// What a client has of a job, whatever its connections do.
#[derive(Default)]
struct Client {
    stdin: Unacked,
    fresh: Vec<u8>,
    ended: bool,
    output: Vec<u8>,
}

impl Client {
    fn send(&mut self, connection: &mut Connection, channel: Channel) {
        while connection.room(channel) > 0 && !self.ended {
            let (stdin, fresh) = (&mut self.stdin, &mut self.fresh);
            let put = connection.put_with(channel, |space| {
                if stdin.has_again() {
                    let len = stdin.again(space);
                    return Ok::<_, ()>((len, fresh.is_empty() && !stdin.has_again()));
                }
                let len = fresh.len().min(space.len());
                let rest = fresh.split_off(len);
                space[..len].copy_from_slice(fresh);
                stdin.sent(fresh);
                *fresh = rest;
                Ok((len, fresh.is_empty()))
            });
            self.ended = put.unwrap().1;
        }
    }

    /// [`Self::follow`], which waits for ever for a byte that was lost.
    async fn follow_within(&mut self, connection: &mut Connection, channel: Channel) -> bool {
        let followed = tokio::time::timeout(PATIENCE, self.follow(connection, channel)).await;
        followed.expect("the job goes on")
    }

    /// Follows the job until its outcome, `true`, or until the line breaks.
    async fn follow(&mut self, connection: &mut Connection, channel: Channel) -> bool {
        loop {
            self.send(connection, channel);
            let happening = match connection.next().await {
                Ok(happening) => happening,
                Err(error) => {
                    assert!(error.is_broken_line(), "{error}");
                    return false;
                }
            };
            match happening {
                Happening::Started(_, started) => self.stdin.go_on_at(started.stdin).unwrap(),
                Happening::Output {
                    channel,
                    stream: Stream::Stdout,
                    bytes,
                    ..
                } => {
                    self.output.extend_from_slice(&bytes);
                    connection.consumed(channel, Stream::Stdout, bytes.len() as u64);
                }
                Happening::Room(at) if at == channel => {
                    let (acked, _) = connection.stdin_offsets(channel).unwrap();
                    self.stdin.acked(acked);
                }
                Happening::Exit(_, exit) => {
                    assert_eq!(exit.stdout, self.output.len() as u64);
                    return true;
                }
                _ => {}
            }
        }
    }
}

/// The line is cut at many places of a transfer in both directions; what arrives is
/// neither short nor repeated, and the job was started once.
#[tokio::test]
async fn a_job_goes_on_at_its_offsets_over_new_lines() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let whole = position_coded(3_000_000);
    let cuts: Vec<u64> = (1..20).map(|n| n * 149_999).collect();
    let server = serve(&path, Job::new(JOB, whole.len() as u64, cuts.clone()), None);
    let mut client = Client {
        fresh: whole.clone(),
        ..Client::default()
    };
    let mut connection = dial(&path, None).await;
    let request = StartRequest {
        argv: vec![b"cat".to_vec()],
        ..StartRequest::default()
    };
    let mut channel = connection.start(JOB, &request).unwrap();
    let mut lines = 1;
    while !client.follow_within(&mut connection, channel).await {
        connection = dial(&path, None).await;
        lines += 1;
        client.ended = false;
        let attach = Attach {
            job: Some(JOB),
            stdout: Some(client.output.len() as u64),
            ..Attach::default()
        };
        channel = connection.attach(&attach).unwrap();
        assert!(connection.heard() > 0, "the server's hello");
    }
    assert_eq!(lines, cuts.len() + 1, "every cut was in mid-transfer");
    assert!(client.output == whole, "every byte once, in its place");
    connection.forget(JOB);
    connection.bye();
    connection.finish().await.unwrap();
    let job = server.await.unwrap();
    assert_eq!((job.starts, job.forgotten), (1, true));
    assert!(job.stdin == whole);
}

/// With a shared secret, not even an `attach` goes out before the server has proven itself,
/// and the channel that was promised for it is the one that it gets.
#[tokio::test]
async fn an_attach_waits_for_the_servers_proof() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let secret = [9; 32];
    let mut job = Job::new(JOB, 5, Vec::new());
    job.stdin = b"words".to_vec();
    let server = serve(&path, job, Some(secret));
    let mut connection = dial(&path, Some(secret)).await;
    let attach = Attach {
        job: Some(JOB),
        stdout: Some(2),
        ..Attach::default()
    };
    let channel = connection.attach(&attach).unwrap();
    let mut client = Client {
        output: b"wo".to_vec(),
        ended: true,
        ..Client::default()
    };
    client.stdin.sent(b"words");
    assert!(client.follow_within(&mut connection, channel).await);
    assert_eq!(client.output, b"words");
    connection.bye();
    connection.finish().await.unwrap();
    let job = server.await.unwrap();
    assert!(
        job.granted_first,
        "nothing but hello and auth came before `granted`"
    );
}
