//! From what was asked for to what is executed: arguments, environment, places to look.
//!
//! Pure: a [`JobSpec`] and the [`Decision`] on its connection enter, a
//! [`Program`] leaves. The gate has checked the spec already, and nothing here relies on it.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use bowline_proto::id::JobId;
use bowline_proto::limits::{START_BYTES_MAX, START_STRINGS_MAX};
use serde_bytes::ByteBuf;

use super::policy::{Account, Decision, Policy};
use super::spawn::{Ids, Image, Program};
use crate::ipc::JobSpec;

/// The variable that marks every process of a job.
pub(crate) const COOKIE: &str = "BOWLINE_JOB";
/// Where programs are looked for when the job's environment has no PATH.
const PATH_DEFAULT: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// A spec that is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the spec of the job is malformed")]
pub(crate) struct BadSpec;

/// What the keeper itself contributes to every job.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    /// The uid that the keeper runs as.
    pub(crate) uid: u32,
    /// The limit of descriptors that the keeper was started with.
    pub(crate) nofile: (u64, u64),
    /// The mask that the keeper was started with.
    pub(crate) umask: u32,
}

/// Prepares the program of a job. `worker` is this program's own file, where [`copy_worker`] asks for it.
///
/// # Errors
/// [`BadSpec`].
pub(crate) fn prepare(
    policy: &dyn Policy,
    decision: &Decision,
    spec: &JobSpec,
    job: JobId,
    own: &Own,
    worker: Option<OwnedFd>,
) -> Result<Program, BadSpec> {
    check(spec)?;
    let login = spec.login && decision.forced_command.is_none();
    let account = &decision.account;
    let shell = || c_string(account.shell.as_os_str().as_bytes());
    let mut envp = policy.environment(decision, spec, job);
    set(&mut envp, COOKIE, job.to_string().as_bytes())?;
    let mut image = None;
    let argv = if let Some(command) = &decision.forced_command {
        if !spec.login {
            set(&mut envp, "SSH_ORIGINAL_COMMAND", &asked_command(spec))?;
        }
        vec![shell()?, c_string(b"-c")?, c_string(command)?]
    } else if login {
        vec![login_name(account)?]
    } else if spec.shell {
        vec![shell()?, c_string(b"-c")?, c_string(first(spec)?)?]
    } else if let (Some(arguments), Some(file)) = (copy_worker(spec), worker) {
        image = Some(Image::Open(file));
        let begin = [c"bowline".to_owned(), c"copy-worker".to_owned()];
        let strings = arguments.iter().map(|s| c_string(s));
        begin
            .into_iter()
            .map(Ok)
            .chain(strings)
            .collect::<Result<_, _>>()?
    } else {
        let strings = spec.argv.iter().map(|s| c_string(s));
        strings.collect::<Result<_, _>>()?
    };
    let image = match image {
        Some(image) => image,
        None if login => Image::Paths(vec![shell()?]),
        None => Image::Paths(places(&argv, &envp)?),
    };
    let cwd = match &spec.cwd {
        Some(cwd) => vec![c_string(cwd)?],
        // As sshd: a home that is missing keeps nobody out.
        None => vec![
            c_string(account.home.as_os_str().as_bytes())?,
            c_string(b"/")?,
        ],
    };
    let other = own.uid != account.uid;
    let ids = other.then(|| Ids {
        uid: account.uid,
        gid: account.gid,
        groups: account.groups.clone(),
    });
    Ok(Program {
        image,
        argv,
        envp,
        cwd,
        ids,
        nofile: own.nofile,
        umask: own.umask,
        terminal: spec.pty.is_some(),
        no_new_privs: false,
    })
}

/// The arguments of the file worker, where it is what is asked for: no program has an empty name,
/// so that stands for this one. A forced command runs instead of it, as instead of anything.
pub(crate) fn copy_worker(spec: &JobSpec) -> Option<&[ByteBuf]> {
    match spec.argv.as_slice() {
        [program, worker, arguments @ ..] if program.is_empty() && worker.as_slice() == b"copy" => {
            (!spec.shell).then_some(arguments)
        }
        _ => None,
    }
}

fn check(spec: &JobSpec) -> Result<(), BadSpec> {
    let strings = || spec.argv.iter().chain(&spec.env).chain(&spec.cwd);
    let bytes: usize = strings().map(|s| s.len() + 1).sum();
    let named = |var: &[u8]| var.iter().position(|&byte| byte == b'=') > Some(0);
    let good = bytes <= START_BYTES_MAX
        && strings().count() <= START_STRINGS_MAX
        && spec.argv.is_empty() == spec.login
        && !(spec.shell && spec.login)
        && spec.pty.as_ref().is_none_or(|pty| !pty.term.contains('\0'))
        && (!spec.shell || spec.argv.len() == 1)
        && strings().all(|s| !s.contains(&0))
        && spec.env.iter().all(|var| named(var));
    good.then_some(()).ok_or(BadSpec)
}

fn first(spec: &JobSpec) -> Result<&[u8], BadSpec> {
    spec.argv.first().map(|s| s.as_slice()).ok_or(BadSpec)
}

/// What a login shell is called: its file's name behind a dash (login(1)).
fn login_name(account: &Account) -> Result<CString, BadSpec> {
    let name = account.shell.file_name().unwrap_or_default();
    c_string(&[b"-", name.as_bytes()].concat())
}

fn c_string(bytes: &[u8]) -> Result<CString, BadSpec> {
    CString::new(bytes).map_err(|_| BadSpec)
}

/// Sets a variable, whatever it was before.
fn set(envp: &mut Vec<CString>, name: &str, value: &[u8]) -> Result<(), BadSpec> {
    let prefix = [name.as_bytes(), b"="].concat();
    envp.retain(|var| !var.as_bytes().starts_with(&prefix));
    // In front, where those who look for it in a large environment find it soon.
    envp.insert(0, c_string(&[&prefix, value].concat())?);
    Ok(())
}

/// The places where execvp(3) would look for the program.
fn places(argv: &[CString], envp: &[CString]) -> Result<Vec<CString>, BadSpec> {
    let program = argv.first().ok_or(BadSpec)?;
    let name = program.as_bytes();
    if name.is_empty() {
        return Ok(Vec::new());
    }
    if name.contains(&b'/') {
        return Ok(vec![program.clone()]);
    }
    let path = envp
        .iter()
        .find_map(|var| var.as_bytes().strip_prefix(b"PATH="));
    let folders = path.unwrap_or(PATH_DEFAULT).split(|&byte| byte == b':');
    // An empty entry of PATH is the working directory.
    let place = |folder: &[u8]| match folder {
        b"" => c_string(&[b"./", name].concat()),
        folder => c_string(&[folder, b"/", name].concat()),
    };
    folders.map(place).collect()
}

/// What the client asked for, for a forced command to read: its own text, or
/// its arguments quoted so that a shell gives back the same arguments.
fn asked_command(spec: &JobSpec) -> Vec<u8> {
    if spec.shell {
        return spec
            .argv
            .iter()
            .flat_map(|text| text.iter().copied())
            .collect();
    }
    let quoted: Vec<Vec<u8>> = spec.argv.iter().map(|argument| quote(argument)).collect();
    quoted.join(&b' ')
}

fn quote(argument: &[u8]) -> Vec<u8> {
    // Not `=`: in front of a command it would make an assignment of an argument.
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_./:@%+,".contains(byte);
    if !argument.is_empty() && argument.iter().all(plain) {
        return argument.to_vec();
    }
    let mut quoted = vec![b'\''];
    for &byte in argument {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            _ => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::{Source, Stdin, Terms};

    fn spec(argv: &[&[u8]]) -> JobSpec {
        JobSpec {
            argv: argv.iter().map(|&a| ByteBuf::from(a)).collect(),
            env: Vec::new(),
            cwd: None,
            shell: false,
            stdin: Stdin::Null,
            timeout_ms: None,
            pty: None,
            login: false,
            source: Source::Unix,
            connection: 1,
            terms: Terms::default(),
        }
    }

    #[test]
    fn a_spec_that_is_no_command_is_refused() {
        assert_eq!(check(&spec(&[b"ls", b""])), Ok(()));
        assert_eq!(check(&spec(&[])), Err(BadSpec));
        assert_eq!(check(&spec(&[b"a\0b"])), Err(BadSpec));
        let shell = |argv| JobSpec {
            shell: true,
            ..spec(argv)
        };
        assert_eq!(check(&shell(&[b"a"])), Ok(()));
        assert_eq!(check(&shell(&[b"a", b"b"])), Err(BadSpec));
        for var in [&b"A"[..], b"=1", b"", b"A=\0"] {
            let mut with = spec(&[b"ls"]);
            with.env.push(ByteBuf::from(var));
            assert_eq!(check(&with), Err(BadSpec), "{var:?}");
        }
        // A login shell has no arguments, and is no text for a shell.
        let login = |argv: &[&[u8]], shell| JobSpec {
            login: true,
            shell,
            ..spec(argv)
        };
        assert_eq!(check(&login(&[], false)), Ok(()));
        assert_eq!(check(&login(&[b"ls"], false)), Err(BadSpec));
        assert_eq!(check(&login(&[], true)), Err(BadSpec));
        let long = vec![b'x'; START_BYTES_MAX];
        assert_eq!(check(&spec(&[&long])), Err(BadSpec));
        assert_eq!(check(&spec(&[&long[1..]])), Ok(()));
    }

    #[test]
    fn the_file_worker_is_asked_for_by_an_empty_name() {
        let asked = spec(&[b"", b"copy", b"send", b"a"]);
        assert_eq!(copy_worker(&asked).map(<[_]>::len), Some(2));
        for other in [&[&b""[..]][..], &[b"", b"other"], &[b"copy", b"copy"]] {
            assert_eq!(copy_worker(&spec(other)), None, "{other:?}");
        }
        assert_eq!(asked_command(&asked), b"'' copy send a");
    }

    #[test]
    fn places_are_those_of_execvp() {
        let c = |s: &str| CString::new(s).unwrap();
        let of = |program: &str, path: &str| places(&[c(program)], &[c("X=1"), c(path)]).unwrap();
        assert_eq!(of("ls", "PATH=/a:/b"), [c("/a/ls"), c("/b/ls")]);
        assert_eq!(of("ls", "PATH=:/b:"), [c("./ls"), c("/b/ls"), c("./ls")]);
        assert_eq!(of("./ls", "PATH=/a"), [c("./ls")]);
        assert_eq!(of("", "PATH=/a"), [] as [CString; 0]);
        assert_eq!(of("ls", "Y=1").last(), Some(&c("/bin/ls")));
    }

    #[test]
    fn a_shell_reads_back_the_arguments_that_were_quoted() {
        let every: Vec<u8> = (1..=255).collect();
        let argv: [&[u8]; 5] = [b"a b", b"", b"it's", b"$HOME*", &every];
        let command = asked_command(&spec(&argv));
        let mut text = b"printf '%s\\0' ".to_vec();
        text.extend_from_slice(&command);
        let shell = std::process::Command::new("/bin/sh")
            .arg("-c")
            .arg(std::ffi::OsStr::from_bytes(&text))
            .output()
            .unwrap();
        let expected: Vec<u8> = argv.iter().flat_map(|a| [a, &b"\0"[..]].concat()).collect();
        assert_eq!(shell.stdout, expected);
        assert_eq!(asked_command(&spec(&[b"ls", b"-l", b"/a"])), b"ls -l /a");
        assert_eq!(asked_command(&spec(&[b"a=b", b"ls"])), b"'a=b' ls");
    }
}
