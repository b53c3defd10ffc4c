//! Accounts: a server of an ordinary user with that user's own files, and root's
//! server for others.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Serving, copy_program, ended, passable, public, run_at, ssh_keygen};
use crate::server::{bowline, is_root};

/// A uid that passwd does not know, as in a container that was given a number.
const BARE_UID: u32 = 54_321;

/// A home with a key in it that may log in there, all of it of one owner.
fn home_of(uid: u32, dir: &Path) -> PathBuf {
    passable(dir);
    let home = dir.join("home");
    let ssh = home.join(".ssh");
    std::fs::create_dir_all(&ssh).unwrap();
    ssh_keygen(&ssh.join("id_ed25519"), &["-t", "ed25519"]);
    std::fs::copy(ssh.join("id_ed25519.pub"), ssh.join("authorized_keys")).unwrap();
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o700)).unwrap();
    own(uid, &home);
    home
}

/// Gives a folder and all that is in it to somebody.
fn own(uid: u32, path: &Path) {
    let given = Command::new("chown")
        .args(["-R", &format!("{uid}:{uid}")])
        .arg(path)
        .status();
    assert!(given.unwrap().success());
}

/// A command of the program that runs as somebody else, with that home.
fn as_user(uid: u32, home: &Path) -> Command {
    // The folder that it was built in may be closed to others.
    let program = home.with_file_name("bowline");
    if !program.exists() {
        copy_program(&bowline(), &program);
    }
    let mut command = Command::new("setpriv");
    command
        .args([format!("--reuid={uid}"), format!("--regid={uid}")])
        .arg("--clear-groups")
        .arg(program)
        .current_dir("/")
        .env("HOME", home)
        .env_remove("SSH_AUTH_SOCK")
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_STATE_HOME")
        .env_remove("XDG_RUNTIME_DIR");
    command
}

#[test]
fn a_user_serves_and_runs_with_stock_files_alone() {
    // Who is not root cannot be somebody whose ~/.ssh may be filled by a test.
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let home = home_of(BARE_UID, dir.path());
    let mut serve = as_user(BARE_UID, &home);
    serve.args(["serve", "--listen", "127.0.0.1:0"]);
    let serving = Serving::start(serve, dir.path());
    let run = |flags: &[&str], argv: &[&str]| {
        let mut command = as_user(BARE_UID, &home);
        command
            .arg("run")
            .args(flags)
            .arg(&serving.target)
            .arg("--")
            .args(argv);
        command
    };
    let (_, err) = ended(&run(&[], &["true"]), 255);
    assert!(err.contains("[host_key_unknown]"), "{err}");
    ended(&run(&["--trust", "new"], &["true"]), 0);
    let (out, err) = ended(&run(&[], &["sh", "-c", "id -u; id -G; echo $HOME; pwd"]), 0);
    let there = home.display();
    assert_eq!(
        out,
        format!("{BARE_UID}\n{BARE_UID}\n{there}\n{there}\n"),
        "{err}"
    );
    // Another account cannot be asked for.
    let (_, err) = ended(&run(&["--user", "root"], &["true"]), 255);
    assert!(err.contains("[not_authenticated]"), "{err}");
    // The files are looked at as sshd does.
    let grants = home.join(".ssh/authorized_keys");
    std::fs::set_permissions(&grants, std::fs::Permissions::from_mode(0o620)).unwrap();
    ended(&run(&[], &["true"]), 255);
    assert!(
        serving.said().contains(".ssh/authorized_keys"),
        "{}",
        serving.said()
    );
    std::fs::set_permissions(&grants, std::fs::Permissions::from_mode(0o600)).unwrap();
    ended(&run(&[], &["true"]), 0);
    // bowline's own grant file counts beside ssh's.
    let own_grants = home.join(".config/bowline/authorized_keys");
    std::fs::rename(&grants, &own_grants).unwrap();
    ended(&run(&[], &["true"]), 0);
    std::fs::remove_file(&own_grants).unwrap();
    ended(&run(&[], &["true"]), 255);
}

/// Lets a process make children while its user has at most `more` tasks more than now.
fn limit_processes(pid: u32, uid: u32, more: u64) {
    let processes = std::fs::read_dir("/proc").unwrap();
    let tasks = processes.filter_map(|entry| {
        // Processes may end meanwhile; those of this user do not.
        let status = std::fs::read_to_string(entry.ok()?.path().join("status")).ok()?;
        let number = |key: &str| -> Option<u64> {
            let value = status.lines().find_map(|line| line.strip_prefix(key))?;
            value.split_whitespace().next()?.parse().ok()
        };
        (number("Uid:")? == u64::from(uid)).then(|| number("Threads:"))?
    });
    let limit = tasks.sum::<u64>() + more;
    // As that user: root in a container may not change what another's process may do.
    let done = Command::new("setpriv")
        .args([format!("--reuid={uid}"), format!("--regid={uid}")])
        .args(["--clear-groups", "prlimit"])
        .args([format!("--pid={pid}"), format!("--nproc={limit}:")])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", super::text(&done.stderr));
}

/// A server whose user may have no more processes says so, serves those it has, and starts
/// programs again when there is room. Root's processes are exempt from the limit.
#[test]
fn processes_of_a_user_run_out() {
    if !is_root() {
        return;
    }
    // Nobody else's, so that no other test's processes are counted.
    let uid = BARE_UID + 2;
    let dir = tempfile::tempdir().unwrap();
    let home = home_of(uid, dir.path());
    let mut serve = as_user(uid, &home);
    serve.args(["serve", "--listen", "127.0.0.1:0"]);
    let serving = Serving::start(serve, dir.path());
    let client = |args: &[&str]| {
        let mut command = as_user(uid, &home);
        command.args(args);
        command
    };
    let run = |argv: &[&str]| client(&[&["run", &serving.target, "--"], argv].concat());
    ended(&client(&["ping", "--trust", "new", &serving.target]), 0);
    limit_processes(serving.pid(), uid, 12);
    let mut running = Vec::new();
    // Each `cat` is a task, and so is each client.
    let said = loop {
        assert!(running.len() < 12, "there is no end to the processes");
        let mut child = run(&["cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A client that has said its last word already takes nothing.
        let _ = stdin.write_all(b"x");
        let heard = child.stdout.as_mut().unwrap().read(&mut [0]).unwrap();
        if heard == 0 {
            let done = child.wait_with_output().unwrap();
            assert_eq!(done.status.code(), Some(125));
            break super::text(&done.stderr);
        }
        running.push((child, stdin));
    };
    assert!(said.contains("[out_of_resources]"), "{said}");
    assert!(!running.is_empty(), "not one program could be started");
    // The server lives on, and so do the programs that it has.
    ended(&client(&["ping", &serving.target]), 0);
    for (mut child, stdin) in running {
        drop(stdin);
        assert!(child.wait().unwrap().success());
    }
    ended(&run(&["true"]), 0);
}

/// An account made for one test; gone when dropped, whatever became of the test.
struct TestAccount {
    name: String,
}

impl TestAccount {
    fn make(home: &Path) -> TestAccount {
        let name = format!("bowline-{}", std::process::id());
        let account = TestAccount { name };
        // `*`: no password, and not locked either.
        account.tool(
            "useradd",
            &["-M", "-d", home.to_str().unwrap(), "-s", "/bin/sh"],
            &["-p", "*", "-G", "games"],
        );
        account
    }

    fn tool(&self, program: &str, args: &[&str], more: &[&str]) {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        let done = command
            .args(args)
            .args(more)
            .arg(&self.name)
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{program}: {}",
            super::text(&done.stderr)
        );
    }

    fn passwd(&self) -> nix::unistd::User {
        nix::unistd::User::from_name(&self.name).unwrap().unwrap()
    }
}

impl Drop for TestAccount {
    fn drop(&mut self) {
        // Also where a job of it should still run.
        let path = std::env::var("PATH").unwrap_or_default();
        let _ = Command::new("userdel")
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .args(["-f", &self.name])
            .output();
    }
}

/// Root's server with these lines in its configuration.
fn root_server(dir: &Path, lines: &str) -> Serving {
    let config = dir.join("server.toml");
    let text = format!(
        "listen = [\"127.0.0.1:0\"]\nhost_key = \"{0}/host_key\"\nstate_dir = \"{0}/state\"\n\
         authorized_keys = \"{0}/grants/%u\"\n{lines}\n",
        dir.display()
    );
    std::fs::write(&config, text).unwrap();
    let mut serve = Command::new(bowline());
    serve.arg("serve").arg("--config").arg(config);
    Serving::start(serve, dir)
}

#[test]
fn root_serves_the_accounts_that_are_listed() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // Dropped after the server that runs its jobs.
    let account = TestAccount::make(&dir.path().join("home"));
    let passwd = account.passwd();
    let home = home_of(passwd.uid.as_raw(), dir.path());
    let name = account.name.as_str();
    let key = home.join(".ssh/id_ed25519");
    let client = dir.path().join("client");
    let run_with = |serving: &Serving, user: &str, more: &[&str], argv: &[&str]| {
        let flags = [
            "--identity",
            key.to_str().unwrap(),
            "--trust",
            "new",
            "--user",
            user,
        ];
        let flags = [&flags[..], more].concat();
        run_at(&client, &serving.target, &flags, argv)
    };
    let run = |serving: &Serving, user: &str, argv: &[&str]| run_with(serving, user, &[], argv);
    let refused = |serving: &Serving, user: &str| {
        let (_, err) = ended(&run(serving, user, &["true"]), 255);
        assert!(err.contains("[not_authenticated]"), "{err}");
    };

    // ~/.ssh/authorized_keys counts only where that is said.
    let serving = root_server(dir.path(), &format!("allow_users = [\"{name}\"]"));
    refused(&serving, name);
    drop(serving);

    let lines = format!("allow_users = [\"{name}\", \"daemon\"]\nssh_authorized_keys = true");
    let serving = root_server(dir.path(), &lines);
    let show = "id -u; id -g; id -Gn; echo $HOME $USER $LOGNAME $SHELL; pwd";
    let (out, _) = ended(&run(&serving, name, &["sh", "-c", show]), 0);
    let there = home.display();
    let expected = format!(
        "{}\n{}\n{name} games\n{there} {name} {name} /bin/sh\n{there}\n",
        passwd.uid, passwd.gid
    );
    assert_eq!(out, expected);
    // No more than that: files of root stay closed.
    let (_, err) = ended(&run(&serving, name, &["cat", "/etc/shadow"]), 1);
    assert!(err.contains("Permission denied"), "{err}");
    // A terminal belongs to the account, which may open it by its name.
    let show = "stat -c %u $BOWLINE_TTY; echo named >$BOWLINE_TTY";
    let with_pty = run_with(&serving, name, &["--pty"], &["sh", "-c", show]);
    let (out, _) = ended(&with_pty, 0);
    assert_eq!(out, format!("{}\r\nnamed\r\n", passwd.uid));
    // It is signalled and ended as any other, too.
    ended(&run(&serving, name, &["sh", "-c", "kill -TERM $$"]), 143);

    // Others are refused: not listed, without a shell, not there at all.
    let grants = dir.path().join("grants");
    std::fs::create_dir(&grants).unwrap();
    for other in ["root", "daemon", "no-such-user"] {
        std::fs::copy(public(&key), grants.join(other)).unwrap();
        refused(&serving, other);
    }
    let said = serving.said();
    assert!(
        said.contains("daemon") && said.contains("nologin"),
        "{said}"
    );

    // Locked and expired accounts are refused from that moment on.
    account.tool("usermod", &["-p", "!*"], &[]);
    refused(&serving, name);
    account.tool("usermod", &["-p", "*", "-e", "2020-01-01"], &[]);
    refused(&serving, name);
    account.tool("usermod", &["-e", ""], &[]);
    ended(&run(&serving, name, &["true"]), 0);
    account.tool("usermod", &["-s", "/usr/sbin/nologin"], &[]);
    refused(&serving, name);
    account.tool("usermod", &["-s", "/bin/sh"], &[]);

    // The home belongs to somebody else: nothing in it counts.
    own(BARE_UID, &home);
    refused(&serving, name);
    own(passwd.uid.as_raw(), &home);
    ended(&run(&serving, name, &["true"]), 0);
    drop(serving);

    let serving = root_server(
        dir.path(),
        &format!(
            "allow_users = [\"{name}\"]\nallow_locked_accounts = true\nssh_authorized_keys = true"
        ),
    );
    account.tool("usermod", &["-p", "!*"], &[]);
    ended(&run(&serving, name, &["true"]), 0);
}

#[test]
fn over_a_unix_socket_the_uid_decides() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let home = home_of(BARE_UID, dir.path());
    let other_dir = tempfile::tempdir().unwrap();
    let other = home_of(BARE_UID + 1, other_dir.path());
    let socket = dir.path().join("home/socket");
    let target = format!("unix:{}", socket.display());
    let mut serve = as_user(BARE_UID, &home);
    serve.args(["serve", "--listen", "127.0.0.1:0", "--listen", &target]);
    let serving = Serving::start(serve, dir.path());
    let run = |uid: u32, home: &Path| {
        let mut command = as_user(uid, home);
        command.args(["run", &target, "--", "id", "-u"]);
        command
    };
    // No key is needed by who is known to the kernel.
    std::fs::remove_dir_all(home.join(".ssh")).unwrap();
    assert_eq!(ended(&run(BARE_UID, &home), 0).0, format!("{BARE_UID}\n"));
    let (_, err) = ended(&run(BARE_UID + 1, &other), 255);
    assert!(err.contains("[connect_failed]"), "{err}");
    // Also where the socket's own mode would not keep them out.
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let (_, err) = ended(&run(BARE_UID + 1, &other), 255);
    assert!(err.contains("[not_authenticated]"), "{err}");
    drop(serving);
}
