//! The environment of a job: docs/environment.md as code.
//!
//! A job's environment is made from nothing; what the keeper itself was started
//! with never leaks into it, but for PATH where the keeper is rootless. Later
//! sources win: defaults of the account, then what the client sent, then the
//! grant line's `environment=`, then what bowline itself says.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use bowline_proto::id::JobId;

use super::policy::{Account, Decision};
use crate::ipc::{JobSpec, Source};

/// Names that begin so are bowline's own; nobody else sets them.
const OWN_PREFIX: &[u8] = b"BOWLINE_";

/// The whole environment of a job, each `NAME=value`, no name twice.
///
/// `path` is what its PATH begins as.
pub(crate) fn environment(
    decision: &Decision,
    spec: &JobSpec,
    job: JobId,
    path: &[u8],
) -> Vec<CString> {
    let account = &decision.account;
    let mut variables = Variables::default();
    variables.set(b"PATH", path);
    variables.set(b"HOME", account.home.as_os_str().as_bytes());
    variables.set(b"USER", account.name.as_bytes());
    variables.set(b"LOGNAME", account.name.as_bytes());
    variables.set(b"SHELL", account.shell.as_os_str().as_bytes());
    let runtime_dir = format!("/run/user/{}", account.uid);
    if is_runtime_dir(Path::new(&runtime_dir), account) {
        variables.set(b"XDG_RUNTIME_DIR", runtime_dir.as_bytes());
    }
    if let Some(pty) = &spec.pty
        && !pty.term.is_empty()
    {
        variables.set(b"TERM", pty.term.as_bytes());
    }
    let forced = decision.forced_command.is_some();
    for (name, value) in spec.env.iter().filter_map(|variable| split(variable)) {
        // A forced command is a cage: LD_PRELOAD or BASH_ENV would be its key.
        if !forced || is_harmless(name) {
            variables.set_foreign(name, value);
        }
    }
    for (name, value) in decision.environment.iter().filter_map(|line| split(line)) {
        variables.set_foreign(name, value);
    }
    variables.set(b"BOWLINE_JOB", job.to_string().as_bytes());
    variables.set(b"BOWLINE_CONNECTION", connection(&spec.source).as_bytes());
    variables.into_strings()
}

/// Variables in the order in which they were first set. A `HashMap` beside it
/// keeps thousands of variables from costing their square.
#[derive(Default)]
struct Variables {
    lines: Vec<Vec<u8>>,
    places: std::collections::HashMap<Vec<u8>, usize>,
}

impl Variables {
    fn set(&mut self, name: &[u8], value: &[u8]) {
        let line = [name, b"=", value].concat();
        match self.places.get(name).and_then(|&at| self.lines.get_mut(at)) {
            Some(place) => *place = line,
            None => {
                self.places.insert(name.to_vec(), self.lines.len());
                self.lines.push(line);
            }
        }
    }

    /// Sets what somebody else asked for; bowline's own names stay bowline's.
    fn set_foreign(&mut self, name: &[u8], value: &[u8]) {
        if !name.starts_with(OWN_PREFIX) {
            self.set(name, value);
        }
    }

    fn into_strings(self) -> Vec<CString> {
        // A NUL cannot get here: specs and grants that hold one are refused.
        let strings = self.lines.into_iter().map(CString::new);
        strings.filter_map(Result::ok).collect()
    }
}

/// Name and value of a variable; `None` where there is no name.
fn split(variable: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = variable.iter().position(|&byte| byte == b'=')?;
    let (name, value) = variable.split_at(at);
    (!name.is_empty()).then_some((name, value.get(1..)?))
}

/// What even the client of a forced command may choose: language and terminal.
fn is_harmless(name: &[u8]) -> bool {
    name == b"LANG" || name == b"TERM" || name.starts_with(b"LC_")
}

fn connection(source: &Source) -> String {
    match source {
        Source::Tcp(address, port) => format!("{} {port}", address.to_canonical()),
        Source::Unix => "unix".to_owned(),
        Source::Stdio => "stdio".to_owned(),
    }
}

fn is_runtime_dir(path: &Path, account: &Account) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == account.uid)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_bytes::ByteBuf;

    use super::*;
    use crate::ipc::{Grant, Stdin};

    fn decision(forced: bool, environment: &[&str]) -> Decision {
        Decision {
            account: Account {
                name: "ann".to_owned(),
                uid: 4_000_000_000,
                gid: 4_000_000_000,
                groups: vec![4_000_000_000],
                home: PathBuf::from("/home/ann"),
                shell: PathBuf::from("/bin/sh"),
            },
            proof: "peer".to_owned(),
            grant: Grant::default(),
            forced_command: forced.then(|| b"true".to_vec()),
            environment: environment.iter().map(|e| e.as_bytes().to_vec()).collect(),
            server_mac: None,
        }
    }

    fn made(decision: &Decision, env: &[&str]) -> Vec<String> {
        let spec = JobSpec {
            argv: vec![ByteBuf::from("true")],
            env: env.iter().map(|e| ByteBuf::from(e.as_bytes())).collect(),
            cwd: None,
            shell: false,
            stdin: Stdin::Null,
            timeout_ms: None,
            pty: None,
            login: false,
            source: Source::Tcp("::ffff:192.0.2.7".parse().unwrap(), 51_312),
            connection: 1,
            terms: crate::ipc::Terms::default(),
        };
        let job = JobId::from_bytes([0xab; 16]);
        environment(decision, &spec, job, b"/bin")
            .into_iter()
            .map(|line| line.into_string().unwrap())
            .collect()
    }

    #[test]
    fn nothing_but_the_table_is_there() {
        let lines = made(&decision(false, &[]), &[]);
        let names: Vec<&str> = lines.iter().map(|l| l.split('=').next().unwrap()).collect();
        let expected = [
            "PATH",
            "HOME",
            "USER",
            "LOGNAME",
            "SHELL",
            "BOWLINE_JOB",
            "BOWLINE_CONNECTION",
        ];
        assert_eq!(names, expected);
        assert!(lines.contains(&"HOME=/home/ann".to_owned()));
        assert!(lines.contains(&format!("BOWLINE_JOB={}", "ab".repeat(16))));
        assert!(lines.contains(&"BOWLINE_CONNECTION=192.0.2.7 51312".to_owned()));
    }

    #[test]
    fn the_grant_wins_over_the_client_and_bowline_over_both() {
        let decision = decision(
            false,
            &["ROLE=reader", "BOWLINE_JOB=1", "TWICE=a", "TWICE=b"],
        );
        let lines = made(
            &decision,
            &["ROLE=writer", "BOWLINE_JOB=2", "HOME=/x", "A=1", "A=2"],
        );
        let of = |name: &str| {
            let prefix = format!("{name}=");
            let mut found = lines.iter().filter_map(|line| line.strip_prefix(&prefix));
            let value = found.next().unwrap().to_owned();
            assert_eq!(found.next(), None, "{name} is there twice");
            value
        };
        assert_eq!(of("ROLE"), "reader");
        assert_eq!(of("BOWLINE_JOB"), "ab".repeat(16));
        assert_eq!(of("HOME"), "/x");
        assert_eq!(of("A"), "2");
        assert_eq!(of("TWICE"), "b");
    }

    #[test]
    fn the_client_of_a_forced_command_chooses_only_its_language() {
        let decision = decision(true, &["LD_LIBRARY_PATH=/opt/lib"]);
        let sent = [
            "LD_PRELOAD=/tmp/x.so",
            "BASH_ENV=/tmp/x",
            "PATH=/tmp",
            "LC_ALL=C",
            "LANG=C",
        ];
        let lines = made(&decision, &sent);
        assert!(lines.iter().all(|line| !line.contains("/tmp")));
        assert!(lines.contains(&"LC_ALL=C".to_owned()));
        assert!(lines.contains(&"LD_LIBRARY_PATH=/opt/lib".to_owned()));
    }

    #[test]
    fn names_that_are_none_do_not_arrive() {
        let lines = made(&decision(false, &["=x"]), &["=x", "novalue", "", "OK="]);
        assert!(lines.contains(&"OK=".to_owned()));
        assert_eq!(lines.len(), 8);
    }

    #[test]
    fn a_runtime_folder_must_belong_to_the_account() {
        let folder = tempfile::tempdir().unwrap();
        let own = Account::own().unwrap();
        assert!(is_runtime_dir(folder.path(), &own));
        assert!(!is_runtime_dir(&folder.path().join("missing"), &own));
        let ann = decision(false, &[]).account;
        assert!(!is_runtime_dir(folder.path(), &ann));
    }

    #[test]
    fn a_start_with_very_many_variables_is_quick() {
        let many: Vec<String> = (0..20_000).map(|n| format!("V{n}=1")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(made(&decision(false, &[]), &many).len(), 20_007);
    }
}
