//! A client that keeps no rule: it sends the bytes it is given, over TCP alone,
//! TLS or a Unix socket, and reads whole frames.
//!
//! It shares with bowline the layout of a prelude and what a proof signs, and
//! nothing else: no session stands between a test and the wire.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bowline::credentials::key_file::KeyFile;
use bowline_proto::auth::{Binding, EXPORTER_LABEL, NAMESPACE, public_key_message};
use bowline_proto::frame::Kind;
use bowline_proto::limits::{PRELUDE_BYTES, PROTOCOL};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};
use serde_json::{Value, json};

use crate::server::Server;

/// A server that says nothing for so long has hung; no test waits so long otherwise.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// The user of the test, as an `auth` names it.
pub(crate) fn user() -> String {
    let uid = nix::unistd::geteuid();
    nix::unistd::User::from_uid(uid).unwrap().unwrap().name
}

/// The 12 bytes in front of a frame, whatever they may say.
pub(crate) fn prelude(kind: u8, flags: u8, header: u16, channel: u32, payload: u32) -> Vec<u8> {
    let mut bytes = vec![kind, flags];
    bytes.extend(header.to_le_bytes());
    bytes.extend(channel.to_le_bytes());
    bytes.extend(payload.to_le_bytes());
    bytes
}

/// A frame whose lengths are true.
pub(crate) fn frame(kind: Kind, flags: u8, channel: u32, header: &[u8], payload: &[u8]) -> Vec<u8> {
    let lengths = (header.len() as u16, payload.len() as u32);
    let prelude = prelude(kind as u8, flags, lengths.0, channel, lengths.1);
    [&prelude, header, payload].concat()
}

/// A frame without payload and flags.
pub(crate) fn message(kind: Kind, channel: u32, header: &Value) -> Vec<u8> {
    frame(kind, 0, channel, header.to_string().as_bytes(), b"")
}

pub(crate) fn hello() -> Vec<u8> {
    message(Kind::Hello, 0, &json!({"protocol": PROTOCOL}))
}

/// A `start` of one frame, under a job id that ends in `number`.
pub(crate) fn start(channel: u32, number: u64, argv: &[&str]) -> Vec<u8> {
    let mut payload = Vec::new();
    for argument in argv {
        payload.extend(argument.bytes());
        payload.push(0);
    }
    let header = json!({
        "job": job(number), "args": argv.len(), "bytes": payload.len(),
    });
    frame(
        Kind::Start,
        1,
        channel,
        header.to_string().as_bytes(),
        &payload,
    )
}

/// A job id.
pub(crate) fn job(number: u64) -> String {
    format!("{number:032x}")
}

/// What the server said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) kind: Kind,
    pub(crate) channel: u32,
    pub(crate) header: Value,
    pub(crate) payload: Vec<u8>,
}

impl Said {
    /// The text of a key of the header.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.header[key].as_str().unwrap_or_default()
    }
}

enum Line {
    Tls(Box<ClientConnection>, TcpStream),
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The client.
pub(crate) struct Raw {
    /// What is being tried, for the message of a failure.
    pub(crate) about: String,
    line: Line,
    input: Vec<u8>,
    /// Whether a hello of the server has told the nonce of a Unix socket.
    nonce: Option<[u8; 32]>,
}

impl Raw {
    /// A TCP connection on which nothing was said, from an address of its own:
    /// what the server holds against one attacker is not held against the next.
    pub(crate) fn tcp(server: &Server) -> Raw {
        Raw::new(Line::Tcp(connect_from(
            fresh_address(),
            server.port().unwrap(),
        )))
    }

    /// A TLS connection whose handshake is over; the server's hello waits.
    pub(crate) fn tls(server: &Server) -> Raw {
        Raw::try_tls(server).unwrap()
    }

    /// The same where the server may not want it.
    pub(crate) fn try_tls(server: &Server) -> io::Result<Raw> {
        Raw::tls_from(fresh_address(), server)
    }

    /// The same from this address.
    pub(crate) fn tls_from(address: Ipv4Addr, server: &Server) -> io::Result<Raw> {
        let mut stream = connect_from(address, server.port().unwrap());
        let mut tls = client_hello();
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        Ok(Raw::new(Line::Tls(Box::new(tls), stream)))
    }

    /// A connection to the server's Unix socket.
    pub(crate) fn unix(server: &Server) -> Raw {
        let stream = UnixStream::connect(server.dir().join("socket")).unwrap();
        stream.set_read_timeout(Some(SILENCE_MAX)).unwrap();
        stream.set_write_timeout(Some(SILENCE_MAX)).unwrap();
        Raw::new(Line::Unix(stream))
    }

    fn new(line: Line) -> Raw {
        Raw {
            about: String::new(),
            line,
            input: Vec::new(),
            nonce: None,
        }
    }

    /// Sends `hello` too.
    pub(crate) fn introduced(mut self) -> Raw {
        self.send(&hello());
        self
    }

    /// Sends `hello` and `auth`, and waits for the grant.
    pub(crate) fn granted(mut self, server: &Server) -> Raw {
        self.expect(Kind::Hello);
        self.send(&hello());
        let auth = self.auth(server);
        self.send(&auth);
        self.expect(Kind::Granted);
        self
    }

    /// An `auth` that the server will grant on this connection.
    pub(crate) fn auth(&self, server: &Server) -> Vec<u8> {
        self.auth_in(server, NAMESPACE)
    }

    /// The same with the signature made for the namespace.
    pub(crate) fn auth_in(&self, server: &Server, namespace: &str) -> Vec<u8> {
        let proof = match &self.line {
            Line::Unix(_) => json!({"type": "peer"}),
            _ => json!({"type": "publickey", "sshsig": self.signature(server, namespace)}),
        };
        message(Kind::Auth, 0, &json!({"user": user(), "proofs": [proof]}))
    }

    fn signature(&self, server: &Server, namespace: &str) -> String {
        use base64::Engine as _;
        let file = std::fs::read(server.home().join(".ssh/id_ed25519")).unwrap();
        let key = KeyFile::parse(&file).unwrap().open().unwrap();
        let message = public_key_message(&self.binding(), &user(), PROTOCOL);
        let signature = key.sign_sshsig(namespace, &message).unwrap();
        base64::engine::general_purpose::STANDARD.encode(signature)
    }

    /// What proofs of this connection are bound to.
    pub(crate) fn binding(&self) -> Binding {
        match &self.line {
            Line::Tls(tls, _) => {
                let exporter = tls.export_keying_material([0; 32], EXPORTER_LABEL, None);
                Binding::Exporter(exporter.unwrap())
            }
            _ => Binding::Nonce(self.nonce.expect("the server's hello was read")),
        }
    }

    /// Sends bytes. A server that has closed meanwhile is no failure here: what
    /// it said about it is what the test looks at.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.try_send(bytes);
    }

    /// Sends bytes.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.line {
            Line::Tls(tls, stream) => {
                // rustls keeps no more than 64 KiB.
                for part in bytes.chunks(32 * 1024) {
                    tls.writer().write_all(part)?;
                    while tls.wants_write() {
                        tls.write_tls(stream)?;
                    }
                }
                Ok(())
            }
            Line::Tcp(stream) => stream.write_all(bytes),
            Line::Unix(stream) => stream.write_all(bytes),
        }
    }

    /// Says that nothing more comes, and goes on reading.
    pub(crate) fn shut(&self) {
        let _ = match &self.line {
            Line::Tls(_, stream) | Line::Tcp(stream) => stream.shutdown(std::net::Shutdown::Write),
            Line::Unix(stream) => stream.shutdown(std::net::Shutdown::Write),
        };
    }

    /// The socket.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        match &self.line {
            Line::Tls(_, stream) | Line::Tcp(stream) => stream.as_fd(),
            Line::Unix(stream) => stream.as_fd(),
        }
    }

    /// The next frame; `None` where the server has closed.
    pub(crate) fn next(&mut self) -> Option<Said> {
        loop {
            if let Some(said) = self.whole() {
                if said.kind == Kind::Hello && self.nonce.is_none() {
                    let mut nonce = [0; 32];
                    let told = hex::decode_to_slice(said.text("nonce"), &mut nonce);
                    self.nonce = told.ok().map(|()| nonce);
                }
                return Some(said);
            }
            if self.fill() == 0 {
                return None;
            }
        }
    }

    /// Reads what there is. 0 is the end, in order or not.
    fn fill(&mut self) -> usize {
        let mut buffer = [0; 64 * 1024];
        let read = loop {
            let read = match &mut self.line {
                Line::Tls(tls, stream) => read_tls(tls, stream, &mut buffer),
                Line::Tcp(stream) => stream.read(&mut buffer),
                Line::Unix(stream) => stream.read(&mut buffer),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let len = match read {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!(
                    "the server said nothing for {SILENCE_MAX:?}: {}",
                    self.about
                )
            }
            Err(error) => {
                // For a test that did not expect it.
                eprintln!("{}: {error}", self.about);
                0
            }
        };
        self.input.extend_from_slice(&buffer[..len]);
        len
    }

    fn whole(&mut self) -> Option<Said> {
        let prelude: [u8; PRELUDE_BYTES] = self.input.get(..PRELUDE_BYTES)?.try_into().unwrap();
        let header = u16::from_le_bytes([prelude[2], prelude[3]]) as usize;
        let channel = u32::from_le_bytes(prelude[4..8].try_into().unwrap());
        let payload = u32::from_le_bytes(prelude[8..].try_into().unwrap()) as usize;
        let end = PRELUDE_BYTES + header + payload;
        if self.input.len() < end {
            return None;
        }
        let rest = self.input.split_off(end);
        let frame = std::mem::replace(&mut self.input, rest);
        let header = &frame[PRELUDE_BYTES..PRELUDE_BYTES + header];
        let kind = Kind::ALL.iter().find(|kind| **kind as u8 == prelude[0]);
        Some(Said {
            kind: *kind.unwrap_or_else(|| panic!("the server sent kind {}", prelude[0])),
            channel,
            header: match header {
                [] => Value::Null,
                header => serde_json::from_slice(header).unwrap(),
            },
            payload: frame[end - payload..].to_vec(),
        })
    }

    /// The next frame, which must be of this kind.
    pub(crate) fn expect(&mut self, kind: Kind) -> Said {
        let said = self
            .next()
            .unwrap_or_else(|| panic!("closed instead of {kind:?}"));
        assert_eq!(said.kind, kind, "{said:?}");
        said
    }

    /// Waits for a frame of this kind on this channel; what comes before is passed over.
    pub(crate) fn until(&mut self, kind: Kind, channel: u32) -> Said {
        loop {
            let said = self
                .next()
                .unwrap_or_else(|| panic!("closed before {kind:?}"));
            if said.kind == kind && said.channel == channel {
                return said;
            }
            assert_ne!((said.kind, said.channel), (Kind::Refused, 0), "{said:?}");
        }
    }

    /// The code with which the server ends this connection.
    pub(crate) fn refusal(&mut self) -> String {
        self.last_word().expect("closed without a word")
    }

    /// The same, or `None` where it says nothing.
    pub(crate) fn last_word(&mut self) -> Option<String> {
        while let Some(said) = self.next() {
            if said.kind == Kind::Bye || (said.kind == Kind::Refused && said.channel == 0) {
                return Some(said.text("code").to_owned());
            }
        }
        None
    }

    /// Reads to the end of the connection.
    pub(crate) fn until_closed(&mut self) {
        while self.fill() > 0 {}
    }
}

/// As `rustls::Stream`, but what the server has said is read even where it takes nothing more.
fn read_tls(
    tls: &mut ClientConnection,
    stream: &mut TcpStream,
    buffer: &mut [u8],
) -> io::Result<usize> {
    loop {
        while tls.wants_write() && tls.write_tls(stream).is_ok() {}
        match tls.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
        if tls.read_tls(stream)? == 0 {
            return Ok(0);
        }
        tls.process_new_packets().map_err(io::Error::other)?;
    }
}

/// An address of this machine that no other connection of this process uses.
fn fresh_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let first = u32::from(Ipv4Addr::new(127, 1, 0, 0));
    Ipv4Addr::from(first + NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Connects to a server of this machine from this address of the machine.
pub(crate) fn connect_from(address: Ipv4Addr, port: u16) -> TcpStream {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
    let (family, kind) = (AddressFamily::INET, SocketType::STREAM);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap();
    bind(&socket, &SocketAddrV4::new(address, 0)).unwrap();
    let to = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SILENCE_MAX)).unwrap();
    stream.set_write_timeout(Some(SILENCE_MAX)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A TLS client that takes any certificate.
pub(crate) fn client_hello() -> ClientConnection {
    let crypto = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(crypto.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(crypto)))
        .with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.as_bytes().to_vec()];
    let name = ServerName::try_from("bowline").unwrap();
    ClientConnection::new(Arc::new(config), name).unwrap()
}

#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
