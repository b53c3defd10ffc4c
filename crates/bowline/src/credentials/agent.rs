//! ssh-agent: keys that another process holds and signs with (draft-ietf-sshm-ssh-agent).
//!
//! Owns the few messages that bowline needs: what keys there are, and a signature. The agent may be forwarded
//! from a machine that nobody trusts, so its replies are bounded in bytes, keys and time. Messages to be signed
//! enter; signatures leave, and only those that are good and not made with SHA-1.
//!
//! | message | number | content |
//! | --- | --- | --- |
//! | failure | 5 | |
//! | request identities | 11 | |
//! | identities answer | 12 | uint32 count, then string key blob, string comment each |
//! | sign request | 13 | string key blob, string data, uint32 flags |
//! | sign response | 14 | string (string algorithm, string signature) |

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bowline_proto::auth::NAMESPACE;
use bowline_proto::key::{Material, PublicKey};
use bowline_proto::ssh_wire::{self, Reader, WireError};
use bowline_proto::sshsig::{Hash, SshSig};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::private_key::sshsig_data;
use super::verify::{self, VerifyError};

/// The most bytes of a reply, as in ssh-agent itself.
const REPLY_BYTES_MAX: u32 = 256 * 1024;
/// The most keys that are looked at.
const KEYS_MAX: usize = 256;
/// The most characters of a comment.
const COMMENT_CHARS_MAX: usize = 200;
/// How long the agent may take to list its keys.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take to sign: a person may have to confirm, or to touch a device.
const SIGN_TIMEOUT: Duration = Duration::from_secs(60);

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// Why the agent is of no use.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It cannot be reached.
    #[error("cannot reach the ssh-agent at {}", path.display())]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the ssh-agent broke")]
    Io(#[from] io::Error),
    /// It did not answer in time.
    #[error("the ssh-agent did not answer in time")]
    Timeout,
    /// Its reply is longer than any good one.
    #[error("the ssh-agent's reply is longer than {REPLY_BYTES_MAX} bytes")]
    TooLong,
    /// Its reply is malformed.
    #[error("the ssh-agent's reply is malformed: {0}")]
    Malformed(#[from] WireError),
    /// Its reply does not answer the request.
    #[error("the ssh-agent answered with an unexpected message")]
    Unexpected,
    /// It would not sign: the key is gone or locked, or a person declined.
    #[error("the ssh-agent refused to sign")]
    Refused,
    /// What it gave is no good signature of the key.
    #[error("the ssh-agent gave a signature that is not good")]
    Signature(#[from] VerifyError),
}

/// An agent's socket. Each request has a connection of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    socket: PathBuf,
}

/// A key that an agent offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentKey {
    /// The public half.
    pub key: PublicKey,
    /// What the agent calls it, usually the path of its file; printable.
    pub comment: String,
}

impl Agent {
    /// The agent that `$SSH_AUTH_SOCK` names.
    pub fn from_env() -> Option<Agent> {
        std::env::var_os("SSH_AUTH_SOCK")
            .filter(|socket| !socket.is_empty())
            .map(|socket| Agent::at(Path::new(&socket)))
    }

    /// The agent behind a socket.
    pub fn at(socket: &Path) -> Agent {
        Agent {
            socket: socket.to_owned(),
        }
    }

    /// Lists the keys that bowline can use, in the agent's order; certificates and unknown types are left out.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn keys(&self) -> Result<Vec<AgentKey>, AgentError> {
        parse_keys(&self.ask(&[REQUEST_IDENTITIES], LIST_TIMEOUT)?)
    }

    /// Has a message signed as a proof, in [`NAMESPACE`], and gives the SSHSIG blob, which was checked.
    ///
    /// RSA keys are asked for SHA-512, then for SHA-256, never for SHA-1.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn sign_proof(&self, key: &PublicKey, message: &[u8]) -> Result<Vec<u8>, AgentError> {
        let data = sshsig_data(NAMESPACE, message);
        let (algorithm, signature) = match key.material() {
            Material::Rsa { .. } => match self.sign(key, &data, RSA_SHA2_512) {
                Err(AgentError::Refused) => self.sign(key, &data, RSA_SHA2_256)?,
                signed => signed?,
            },
            _ => self.sign(key, &data, 0)?,
        };
        let sshsig = SshSig {
            key: key.clone(),
            namespace: NAMESPACE.as_bytes().to_vec(),
            hash: Hash::Sha512,
            algorithm,
            signature,
        };
        let blob = sshsig.encode();
        // A wrong signature would be a refusal by the server that nobody could explain.
        verify::verify_proof(&blob, message)?;
        Ok(blob)
    }

    fn sign(
        &self,
        key: &PublicKey,
        data: &[u8],
        flags: u32,
    ) -> Result<(String, Vec<u8>), AgentError> {
        let mut request = vec![SIGN_REQUEST];
        ssh_wire::put_string(&mut request, key.blob());
        ssh_wire::put_string(&mut request, data);
        ssh_wire::put_number(&mut request, flags);
        let reply = self.ask(&request, SIGN_TIMEOUT)?;
        let mut reader = Reader::new(&reply);
        match reader.byte()? {
            SIGN_RESPONSE => {}
            FAILURE => return Err(AgentError::Refused),
            _ => return Err(AgentError::Unexpected),
        }
        let mut signature = Reader::new(reader.string()?);
        Ok((signature.text()?.to_owned(), signature.string()?.to_vec()))
    }

    /// Sends one request and reads its reply: both are a uint32 length and so many bytes.
    fn ask(&self, request: &[u8], timeout: Duration) -> Result<Vec<u8>, AgentError> {
        let deadline = Instant::now() + timeout;
        let mut stream = Timed {
            stream: self.connect()?,
            deadline,
        };
        let mut message = Vec::new();
        ssh_wire::put_string(&mut message, request);
        stream.write_all(&message).map_err(broken)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).map_err(broken)?;
        let length = u32::from_be_bytes(length);
        if length > REPLY_BYTES_MAX {
            return Err(AgentError::TooLong);
        }
        let mut reply = vec![0; length as usize];
        stream.read_exact(&mut reply).map_err(broken)?;
        Ok(reply)
    }

    /// Connects without waiting: an agent that accepts nobody must not hold the caller.
    fn connect(&self) -> Result<UnixStream, AgentError> {
        let connected = SocketAddrUnix::new(&self.socket).and_then(|address| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::net::connect(&socket, &address)?;
            Ok(socket)
        });
        let stream = connected.map_err(io::Error::from).and_then(|socket| {
            let stream = UnixStream::from(socket);
            stream.set_nonblocking(false)?;
            Ok(stream)
        });
        stream.map_err(|source| AgentError::Connect {
            path: self.socket.clone(),
            source,
        })
    }
}

/// A stream on which everything together ends at a deadline.
struct Timed {
    stream: UnixStream,
    deadline: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(left),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(bytes)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn parse_keys(reply: &[u8]) -> Result<Vec<AgentKey>, AgentError> {
    let mut reader = Reader::new(reply);
    if reader.byte()? != IDENTITIES_ANSWER {
        return Err(AgentError::Unexpected);
    }
    let count = usize::try_from(reader.number()?).unwrap_or(usize::MAX);
    let mut keys = Vec::new();
    for _ in 0..count.min(KEYS_MAX) {
        let (blob, comment) = (reader.string()?, reader.string()?);
        let usable = PublicKey::from_blob(blob)
            .ok()
            .filter(|key| key.algorithm().is_supported() && key.check_size().is_ok());
        if let Some(key) = usable {
            keys.push(AgentKey {
                key,
                comment: printable(comment),
            });
        }
    }
    Ok(keys)
}

fn broken(error: io::Error) -> AgentError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AgentError::Timeout,
        _ => AgentError::Io(error),
    }
}

/// A comment for messages, without what would disturb a terminal.
fn printable(comment: &[u8]) -> String {
    String::from_utf8_lossy(comment)
        .chars()
        .filter(|char| !char.is_control())
        .take(COMMENT_CHARS_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// Lets a scripted agent give `replies`, one a connection, and gives the requests that it got.
    fn scripted<T>(replies: Vec<Vec<u8>>, client: impl FnOnce(&Agent) -> T) -> (T, Vec<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::scope(|scope| {
            let served = scope.spawn(|| {
                let mut requests = Vec::new();
                for reply in replies {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut length = [0; 4];
                    stream.read_exact(&mut length).unwrap();
                    let mut request = vec![0; u32::from_be_bytes(length) as usize];
                    stream.read_exact(&mut request).unwrap();
                    requests.push(request);
                    stream.write_all(&reply).unwrap();
                }
                requests
            });
            let result = client(&Agent::at(&path));
            (result, served.join().unwrap())
        })
    }

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut reply = Vec::new();
        ssh_wire::put_string(&mut reply, body);
        reply
    }

    fn keys(reply: Vec<u8>) -> Result<Vec<AgentKey>, AgentError> {
        scripted(vec![reply], Agent::keys).0
    }

    #[test]
    fn hostile_replies_are_refused() {
        assert!(matches!(
            keys(u32::MAX.to_be_bytes().to_vec()),
            Err(AgentError::TooLong)
        ));
        assert!(matches!(keys(framed(b"")), Err(AgentError::Malformed(_))));
        assert!(matches!(
            keys(framed(&[FAILURE])),
            Err(AgentError::Unexpected)
        ));
        // The agent says that there are four thousand million keys and shows none.
        let mut many = vec![IDENTITIES_ANSWER];
        ssh_wire::put_number(&mut many, u32::MAX);
        assert!(matches!(keys(framed(&many)), Err(AgentError::Malformed(_))));
        // It hangs up inside the reply.
        assert!(matches!(keys(vec![0, 0, 0, 9, 1]), Err(AgentError::Io(_))));
        let nowhere = Agent::at(Path::new("/nowhere/agent"));
        assert!(matches!(nowhere.keys(), Err(AgentError::Connect { .. })));
    }

    #[test]
    fn keys_of_other_types_are_left_out() {
        let mut reply = vec![IDENTITIES_ANSWER];
        ssh_wire::put_number(&mut reply, 3);
        let key = PublicKey::from_ed25519(&[5; 32]);
        let blobs: [&[u8]; 3] = [b"\0\0\0\x07ssh-dss", key.blob(), b""];
        for blob in blobs {
            ssh_wire::put_string(&mut reply, blob);
            ssh_wire::put_string(&mut reply, b"a\x1b[2J\nb");
        }
        let comment = "a[2Jb".to_owned();
        assert_eq!(keys(framed(&reply)).unwrap(), [AgentKey { key, comment }]);
    }

    fn rsa() -> PublicKey {
        let mut blob = Vec::new();
        ssh_wire::put_string(&mut blob, b"ssh-rsa");
        ssh_wire::put_positive(&mut blob, &[1, 0, 1]);
        ssh_wire::put_positive(&mut blob, &[0xff; 256]);
        PublicKey::from_blob(&blob).unwrap()
    }

    #[test]
    fn rsa_is_never_asked_for_sha_1_and_never_taken_with_it() {
        let refused = framed(&[FAILURE]);
        let (result, requests) = scripted(vec![refused.clone(), refused], |agent| {
            agent.sign_proof(&rsa(), b"message")
        });
        assert!(matches!(result, Err(AgentError::Refused)));
        let flags: Vec<_> = requests
            .iter()
            .map(|request| request[request.len() - 4..].to_vec())
            .collect();
        assert_eq!(flags, [[0, 0, 0, 4], [0, 0, 0, 2]]);

        let mut signature = Vec::new();
        ssh_wire::put_string(&mut signature, b"ssh-rsa");
        ssh_wire::put_string(&mut signature, &[1; 256]);
        let mut reply = vec![SIGN_RESPONSE];
        ssh_wire::put_string(&mut reply, &signature);
        let (result, _) = scripted(vec![framed(&reply)], |agent| {
            agent.sign_proof(&rsa(), b"message")
        });
        assert!(matches!(
            result,
            Err(AgentError::Signature(VerifyError::Sha1))
        ));
    }

    proptest::proptest! {
        #[test]
        fn any_list_of_keys_is_survived(mut reply: Vec<u8>, count in 0u32..4, real: bool) {
            if real {
                let key = PublicKey::from_ed25519(&[5; 32]);
                let mut listed = vec![IDENTITIES_ANSWER];
                ssh_wire::put_number(&mut listed, count);
                ssh_wire::put_string(&mut listed, key.blob());
                ssh_wire::put_string(&mut listed, b"comment");
                listed.append(&mut reply);
                reply = listed;
            }
            if let Ok(keys) = parse_keys(&reply) {
                proptest::prop_assert!(keys.len() <= count as usize || !real);
            }
        }
    }

    #[test]
    fn an_agent_that_accepts_nobody_holds_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let agent = Agent::at(&path);
        let mut waiting = Vec::new();
        // The queue of an agent that never accepts is full after a few.
        let error = loop {
            match agent.connect() {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
            assert!(waiting.len() < 100);
        };
        assert!(matches!(error, AgentError::Connect { .. }));
    }

    #[test]
    fn the_deadline_holds_for_everything_together() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut timed = Timed {
            stream: ours,
            deadline: Instant::now() + Duration::from_millis(20),
        };
        let error = timed.read_exact(&mut [0; 4]).map_err(broken).unwrap_err();
        assert!(matches!(error, AgentError::Timeout));
        // Even with bytes there, nothing is read behind the deadline.
        (&theirs).write_all(&[0; 8]).unwrap();
        assert!(timed.read_exact(&mut [0; 4]).is_err());
    }
}
