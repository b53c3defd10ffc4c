//! A child process of the test confines itself, tries what it must not be able
//! to do, then does what a gate does. The test plays the client and the keeper.

use std::fs;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bowline::credentials::host_key::HostKey;
use bowline::net::tls::{self, HostSigner};
use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use rustix::pipe::SpliceFlags;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::*;

/// Set for the child: the folder that it may use, and what it is to do.
const CHILD: &str = "BOWLINE_TEST_CONFINED";

/// Runs `role` in a process of its own, whose folder is below `folder`.
fn child(role: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "gate::confine::tests::confined_child",
            "--nocapture",
        ])
        .args(["--test-threads", "1", "--quiet"])
        .env(CHILD, format!("{role}:{}", folder.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// Not a test by itself: the body of the child processes of the others, which
/// fail if it does not say what they expect.
#[test]
fn confined_child() {
    let Some(value) = std::env::var_os(CHILD) else {
        return;
    };
    let value = value.into_string().unwrap();
    let (role, folder) = value.split_once(':').unwrap();
    let folder = PathBuf::from(folder);
    match role {
        "forbidden" => forbidden(&folder),
        "work" => work(&folder),
        "exec" => {
            confine(&[&folder]).unwrap();
            let error = Command::new("/bin/true").exec();
            say(&format!("survived: {error}"));
        }
        other => panic!("{other}"),
    }
}

/// To whoever started this process, without the test harness between.
fn say(line: &str) {
    writeln!(std::io::stdout(), "{line}").unwrap();
}

fn report(name: &str, result: std::io::Result<()>) {
    match result {
        Ok(()) => say(&format!("{name}: ok")),
        Err(error) => say(&format!("{name}: {:?}", error.kind())),
    }
}

fn forbidden(folder: &Path) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let outside = folder.parent().unwrap().to_owned();
    let parent = rustix::process::getppid().unwrap();
    let kill = || Ok(rustix::process::test_kill_process(parent)?);
    report("kill before", kill());
    let confined = confine(&[folder]).unwrap();
    say(&format!("confined: {confined:?}"));
    let options = || {
        fs::File::options()
            .write(true)
            .open("/etc/passwd")
            .map(drop)
    };
    report("write passwd", options());
    report("read passwd", fs::read("/etc/passwd").map(drop));
    report("write outside", fs::write(outside.join("x"), "x"));
    report("list outside", fs::read_dir(&outside).map(drop));
    report("connect", TcpStream::connect(address).map(drop));
    report("bind", TcpListener::bind("127.0.0.1:0").map(drop));
    report("kill", kill());
    report("spawn", Command::new("/bin/true").status().map(drop));
    let link = std::os::unix::fs::symlink("/etc/passwd", folder.join("link"));
    report("symlink", link);
    let chroot = rustix::process::chroot(folder);
    report("chroot", chroot.map_err(Into::into));
    let uid = rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(1));
    report("setuid", uid.map_err(Into::into));
}

#[test]
fn what_a_gate_never_needs_fails() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("record");
    fs::create_dir(&folder).unwrap();
    let output = child("forbidden", &folder).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    let line = |line: &str| {
        let found = said.lines().any(|said| said == line);
        assert!(found, "{line:?} is missing in:\n{said}");
    };
    line("kill before: ok");
    for forbidden in [
        "connect", "bind", "kill", "spawn", "symlink", "chroot", "setuid",
    ] {
        line(&format!("{forbidden}: PermissionDenied"));
    }
    // Files are Landlock's business, which a kernel may lack; that is told and logged then.
    if said.contains("landlock: Not, seccomp: true") {
        eprintln!("this kernel has no Landlock: files are not tested");
        return;
    }
    assert!(said.contains("seccomp: true"), "{said}");
    for forbidden in [
        "write passwd",
        "read passwd",
        "write outside",
        "list outside",
    ] {
        line(&format!("{forbidden}: PermissionDenied"));
    }
    assert!(!parent.path().join("x").exists());
}

#[test]
fn a_gate_that_executes_something_dies() {
    let folder = tempfile::tempdir().unwrap();
    let output = child("exec", folder.path()).output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
}

#[derive(Debug)]
struct Key(HostKey);

impl HostSigner for Key {
    fn sign(&self, message: &[u8]) -> std::io::Result<Vec<u8>> {
        Ok(self.0.sign(message).to_vec())
    }
}

fn work(folder: &Path) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    say(&format!("port: {}", listener.local_addr().unwrap().port()));
    confine(&[folder]).unwrap();
    let counted = std::thread::spawn(|| (1..=100).sum::<u32>());
    assert_eq!(counted.join().unwrap(), 5050);
    sqlite(folder);
    splice_and_pass();
    serve_tls(listener);
    // Twice, as after a gate that died.
    sqlite(folder);
    say("all done");
}

fn sqlite(folder: &Path) {
    let database = rusqlite::Connection::open(folder.join("jobs.sqlite")).unwrap();
    let mode: String = database
        .query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "wal");
    database
        .execute_batch(
            "PRAGMA synchronous=FULL; CREATE TABLE IF NOT EXISTS t (a); BEGIN; \
             INSERT INTO t VALUES (randomblob(100000)); COMMIT; PRAGMA wal_checkpoint(TRUNCATE); \
             CREATE INDEX IF NOT EXISTS i ON t (a); VACUUM;",
        )
        .unwrap();
}

/// A pipe is spliced into a memfd, which travels over a socket and is read back.
fn splice_and_pass() {
    let memfd = rustix::fs::memfd_create("spool", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
    let memfd = memfd.unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&writer, b"through the pipe").unwrap();
    let moved = rustix::pipe::splice(&reader, None, &memfd, None, 4096, SpliceFlags::empty());
    assert_eq!(moved, Ok(16));
    let seals = rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::GROW;
    rustix::fs::fcntl_add_seals(&memfd, seals).unwrap();
    let kind = SocketType::SEQPACKET;
    let pair = rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
    let (here, there) = pair.unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let fds = [memfd.as_fd()];
    assert!(rights.push(SendAncillaryMessage::ScmRights(&fds)));
    let packet = [IoSlice::new(b"x")];
    rustix::net::sendmsg(&here, &packet, &mut rights, SendFlags::empty()).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut packet = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(&there, &mut packet, &mut rights, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!(rights.drain().count(), 1);
    let mut text = [0; 32];
    let length = rustix::io::pread(&memfd, &mut text, 0).unwrap();
    assert_eq!(&text[..length], b"through the pipe");
}

/// Accepts with tokio, on a thread of its own, and answers in TLS with a timer between.
fn serve_tls(listener: TcpListener) {
    let served = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            let mut stream = stream.into_std().unwrap();
            stream.set_nonblocking(false).unwrap();
            let key = HostKey::generate().unwrap();
            let public = key.public().ed25519().unwrap();
            let signer: Arc<dyn HostSigner> = Arc::new(Key(key));
            let certificate = tls::self_signed(public, signer.clone()).unwrap();
            let config = tls::server_config(certificate, signer).unwrap();
            let mut session = rustls::ServerConnection::new(config).unwrap();
            let mut tls = rustls::Stream::new(&mut session, &mut stream);
            let mut asked = [0; 4];
            tls.read_exact(&mut asked).unwrap();
            tls.write_all(&asked).unwrap();
            tls.conn.send_close_notify();
            tls.flush().unwrap();
        });
    });
    served.join().unwrap();
}

/// A client that believes any certificate; whose it is, is not this test's business.
#[derive(Debug)]
struct AnyKey(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("only TLS 1.3 is spoken")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

fn client_config() -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyKey(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"bowline/1".to_vec()];
    Arc::new(config)
}

#[test]
fn what_a_gate_does_still_works() {
    let folder = tempfile::tempdir().unwrap();
    let mut gate = child("work", folder.path()).spawn().unwrap();
    let mut said = BufReader::new(gate.stdout.take().unwrap());
    let mut line = String::new();
    let port: u16 = loop {
        line.clear();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "no port was said");
        if let Some((_, port)) = line.trim().split_once("port: ") {
            break port.parse().unwrap();
        }
    };
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let name = "bowline".try_into().unwrap();
    let mut session = rustls::ClientConnection::new(client_config(), name).unwrap();
    let mut tls = rustls::Stream::new(&mut session, &mut stream);
    tls.write_all(b"ping").unwrap();
    let mut answer = [0; 4];
    tls.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ping");
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(gate.wait().unwrap().success(), "{rest}");
    assert!(rest.contains("all done"), "{rest}");
}
