//! What this test program does when it is started again: a keeper, or its gate.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bowline_proto::id::JobId;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::config::{GateConfig, ServerConfig};
use crate::inherited;
use crate::ipc::{DenyCode, Grant, JobSpec, packet};
use crate::keeper::policy::{Account, Asked, Decision, Policy};
use crate::keeper::{Claim, GateCommand, HostKeySigner, Setup};

pub(super) const ROLE: &str = "BOWLINE_TEST_ROLE";
pub(super) const FOLDER: &str = "BOWLINE_TEST_FOLDER";
pub(super) const OPTIONS: &str = "BOWLINE_TEST_OPTIONS";
/// What a signature of the test's host key looks like.
pub(super) const SIGNATURE: [u8; 64] = [42; 64];

/// How a test wants its keeper.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Options {
    pub(super) workers: u16,
    pub(super) kill_grace_ms: u64,
    pub(super) drain_ms: u64,
    pub(super) jobs_max: u32,
    pub(super) jobs_per_user_max: u32,
    /// The limit of descriptors that the keeper is left with.
    pub(super) nofile: Option<u64>,
    /// The gate ends at once instead of speaking.
    pub(super) broken_gate: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 1,
            kill_grace_ms: 300,
            drain_ms: 60_000,
            jobs_max: 5_000,
            jobs_per_user_max: 5_000,
            nofile: None,
            broken_gate: false,
        }
    }
}

/// The roles. As one of many tests this does nothing: the others start it with a role.
#[test]
fn process() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let options = serde_json::from_str(&std::env::var(OPTIONS).unwrap()).unwrap();
    let status = match role.as_str() {
        "keeper" => keeper(&folder, &options),
        "gate" => gate(&folder, &options),
        other => panic!("role {other}"),
    };
    std::process::exit(status);
}

/// The arguments that make this program take a role.
pub(super) fn arguments() -> [&'static str; 4] {
    [
        "keeper::tests::roles::process",
        "--exact",
        "--nocapture",
        "--test-threads=1",
    ]
}

fn keeper(folder: &Path, options: &Options) -> i32 {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    if let Some(nofile) = options.nofile {
        let limit = rustix::process::Rlimit {
            current: Some(nofile),
            maximum: Some(nofile),
        };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    }
    let lifeline = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    rustix::stdio::dup2_stdin(&null).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("tcp://{}", listener.local_addr().unwrap());
    let path = folder.join("listener");
    // That of an earlier keeper in the same folder.
    let _ = std::fs::remove_file(&path);
    let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let unix_name = format!("unix:{}", path.display());
    let reload_folder = folder.to_owned();
    let reload_options = options.clone();
    let config_now = config(folder, options);
    let claim = match Claim::new(&config_now) {
        Ok(claim) => claim,
        Err(error) => {
            eprintln!("{error:#}");
            return 3;
        }
    };
    let setup = Setup {
        config: config_now,
        claim,
        socket_files: Vec::new(),
        listeners: vec![(name, listener.into()), (unix_name, unix.into())],
        stdio: false,
        policy: Box::new(TestPolicy),
        host_key: HostKeySigner {
            sign: Box::new(|_| SIGNATURE),
            certificate: b"certificate".to_vec(),
        },
        reload: Box::new(move || {
            let mut config = config(&reload_folder, &reload_options);
            config.gate.idle_timeout_ms = 77;
            Ok((config, Box::new(TestPolicy)))
        }),
        lifeline: Some(lifeline),
        gate: gate_command(),
    };
    match crate::keeper::serve(setup) {
        Ok(_) => 0,
        Err(error) => {
            eprintln!("{error:#}");
            3
        }
    }
}

fn config(folder: &Path, options: &Options) -> ServerConfig {
    ServerConfig {
        listen: Vec::new(),
        host_key: PathBuf::new(),
        state_dir: folder.join("state"),
        authorized_keys: PathBuf::new(),
        ssh_authorized_keys: false,
        own_user_only: false,
        allow_locked_accounts: false,
        allow_users: Vec::new(),
        secrets: Vec::new(),
        gate_user: Some("nobody".to_owned()),
        jobs_max: options.jobs_max,
        kill_grace_ms: options.kill_grace_ms,
        drain_ms: options.drain_ms,
        until_idle_ms: None,
        gate: GateConfig {
            workers: options.workers,
            record_dir: folder.join("record"),
            jobs_per_user_max: options.jobs_per_user_max,
            ..GateConfig::default()
        },
    }
}

fn gate_command() -> GateCommand {
    let c_string = |text: &[u8]| CString::new(text).unwrap();
    let mut argv = vec![c"gate".to_owned()];
    argv.extend(arguments().iter().map(|text| c_string(text.as_bytes())));
    let variable = |name: &str, value: &std::ffi::OsStr| {
        c_string(&[name.as_bytes(), b"=", value.as_bytes()].concat())
    };
    GateCommand {
        argv,
        envp: vec![
            variable(ROLE, "gate".as_ref()),
            variable(FOLDER, &std::env::var_os(FOLDER).unwrap()),
            variable(OPTIONS, &std::env::var_os(OPTIONS).unwrap()),
        ],
    }
}

/// Hands its sockets to the test, and ends when the test lets go of it.
fn gate(folder: &Path, options: &Options) -> i32 {
    if options.broken_gate {
        return 1;
    }
    let sockets = 2 * i32::from(options.workers);
    let fds: Vec<OwnedFd> = (3..3 + sockets)
        .map(|fd| inherited::take(fd).unwrap())
        .collect();
    let kind = SocketType::SEQPACKET;
    let flags = SocketFlags::CLOEXEC;
    let control = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
    let address = SocketAddrUnix::new(folder.join("control")).unwrap();
    rustix::net::connect(&control, &address).unwrap();
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    packet::send(&control, &Inherited::look(sockets), &borrowed).unwrap();
    let mut buffer = Vec::new();
    match packet::receive(&control, &mut buffer) {
        Ok(Some((GateOrder::Exit(status), _))) => status,
        _ => 0,
    }
}

/// What the test may tell its gate's process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum GateOrder {
    Exit(i32),
}

/// What a gate finds itself as.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Inherited {
    /// Open descriptors beyond those that it was promised.
    pub(super) unexpected: Vec<String>,
    pub(super) uid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) no_new_privs: bool,
}

impl Inherited {
    fn look(sockets: i32) -> Self {
        let mut unexpected = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
            let path = entry.unwrap().path();
            let Ok(target) = std::fs::read_link(&path) else {
                continue;
            };
            let number: i32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            // The test's own: the list itself and the socket to the test.
            let own = target.starts_with("/proc") || number == 3 + sockets;
            if number >= 3 + sockets && !own {
                unexpected.push(format!("{number} {}", target.display()));
            }
            if number < 2 && target != Path::new("/dev/null") {
                unexpected.push(format!("{number} {}", target.display()));
            }
        }
        Self {
            unexpected,
            uid: rustix::process::geteuid().as_raw(),
            groups: rustix::process::getgroups()
                .unwrap()
                .iter()
                .map(|group| group.as_raw())
                .collect(),
            no_new_privs: rustix::thread::no_new_privs().unwrap(),
        }
    }
}

/// Lets everybody in as whom the name says: nothing for the keeper's own
/// account, `uid:gid` for another, `forced COMMAND`, `deny`.
struct TestPolicy;

impl Policy for TestPolicy {
    fn decide(&self, asked: &Asked<'_>) -> Result<Decision, DenyCode> {
        let own = rustix::process::geteuid().as_raw();
        let own_group = rustix::process::getegid().as_raw();
        let other = asked.user.split_once(':');
        let number = |text: &str| text.parse().map_err(|_| DenyCode::User);
        let (uid, gid) = match (asked.user, other) {
            ("deny", _) => return Err(DenyCode::NoProof),
            (_, Some((uid, gid))) => (number(uid)?, number(gid)?),
            _ => (own, own_group),
        };
        let command = asked.user.strip_prefix("forced ");
        Ok(Decision {
            account: Account {
                name: format!("user{uid}"),
                uid,
                gid,
                groups: vec![gid, gid + 1],
                home: "/".into(),
                shell: "/bin/sh".into(),
            },
            proof: asked.peer.map_or("none", |_| "peer").to_owned(),
            grant: Grant::default(),
            forced_command: command.map(|command| command.as_bytes().to_vec()),
            environment: Vec::new(),
            server_mac: None,
        })
    }

    fn environment(&self, _: &Decision, spec: &JobSpec, _: JobId) -> Vec<CString> {
        let asked = || spec.env.iter().map(|var| &var[..]);
        let own = [&b"PATH=/usr/bin:/bin"[..], b"BOWLINE_JOB=forged"];
        let path = asked().any(|var| var.starts_with(b"PATH="));
        let all = own.into_iter().skip(usize::from(path)).chain(asked());
        all.map(|var| CString::new(var).unwrap()).collect()
    }
}
