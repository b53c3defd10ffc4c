//! authorized_keys: the options of a line mean what they mean to sshd(8).

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::{ended, let_in, public};
use crate::server::Server;

/// A server whose stderr can be read, and the line of its client's key.
struct Granting {
    server: Server,
    key: String,
}

impl Granting {
    fn start() -> Granting {
        let server = Server::start_with(|command, dir| {
            command.stderr(File::create(dir.join("stderr")).unwrap());
        });
        let key = public(&server.home().join(".ssh/id_ed25519"));
        let key = std::fs::read_to_string(key).unwrap();
        Granting { server, key }
    }

    /// Lets the key in with these options alone.
    fn with(&self, options: &str) -> &Granting {
        let_in(&self.server, &format!("{options} {}", self.key));
        self
    }

    #[track_caller]
    fn gives(&self, flags: &[&str], argv: &[&str], expected: &str) {
        let (out, err) = ended(&self.server.run(flags, argv), 0);
        assert_eq!((out.as_str(), err.as_str()), (expected, ""));
    }

    #[track_caller]
    fn refuses(&self) {
        let marker = self.server.dir().join("marker");
        let touch = ["touch", marker.to_str().unwrap()];
        let (_, err) = ended(&self.server.run(&[], &touch), 255);
        assert!(err.contains("[not_authenticated]"), "{err}");
        assert!(!marker.exists());
    }

    /// What the server has said so far. It speaks before it answers.
    fn said(&self) -> String {
        std::fs::read_to_string(self.server.dir().join("stderr")).unwrap()
    }

    #[track_caller]
    fn warned(&self, line: usize, about: &str) {
        let file = self.server.dir().join("authorized_keys");
        let place = format!("{}:{line}: ", file.display());
        let said = self.said();
        let warned = said
            .lines()
            .any(|said| said.contains(&place) && said.contains(about));
        assert!(warned, "{place}{about} in {said}");
    }
}

#[test]
fn from_names_addresses() {
    let granting = Granting::start();
    for from in [
        "127.0.0.1",
        "127.0.0.0/8",
        "10.0.0.0/8,127.*",
        "!10.0.0.1,*",
    ] {
        let from = format!("from=\"{from}\"");
        granting.with(&from).gives(&[], &["echo", "in"], "in\n");
    }
    for from in ["10.0.0.0/8", "127.0.0.2", "!127.0.0.1,*", "::1"] {
        granting.with(&format!("from=\"{from}\"")).refuses();
    }
    // A later line for the same key may hold where the first does not.
    let key = &granting.key;
    let_in(
        &granting.server,
        &format!("from=\"::1\" {key}from=\"127.0.0.1\" {key}"),
    );
    granting.gives(&[], &["echo", "in"], "in\n");
}

#[test]
fn a_line_expires() {
    let granting = Granting::start();
    for future in ["20990101", "209901012359", "20990101235959", "20990101Z"] {
        let expiry = format!("expiry-time=\"{future}\"");
        granting.with(&expiry).gives(&[], &["echo", "in"], "in\n");
    }
    for past in ["20200101", "202001012359", "20200101235959Z"] {
        granting.with(&format!("expiry-time=\"{past}\"")).refuses();
    }
}

#[test]
fn a_command_is_forced_and_sees_what_was_asked_for() {
    let granting = Granting::start();
    granting.with(r#"command="printf %s \"$SSH_ORIGINAL_COMMAND\"""#);
    // A person's text reaches it as it is.
    let text = "echo  'two   blanks' \"$HOME\" * ; exit 3";
    let mut shell = granting.server.command(&["run", "--shell", text]);
    shell.arg(granting.server.target());
    assert_eq!(ended(&shell, 0).0, text);
    // Arguments reach it so that a shell gives back the very same.
    granting.gives(&[], &["ls", "-l", "/usr"], "ls -l /usr");
    granting.gives(&[], &["ls", "a b", "it's"], r"ls 'a b' 'it'\''s'");
    let every: Vec<u8> = (1..=255).collect();
    let every = OsString::from_vec(every);
    let mut run = granting.server.run(&[], &["prog"]);
    run.args(["", "$HOME", "`id`", "a\nb", "*", "~", "-n", "#", "a=b"]);
    run.arg(&every);
    let quoted = super::output(&run).stdout;
    let mut script = b"set -- ".to_vec();
    script.extend_from_slice(&quoted);
    script.extend_from_slice(b"\nprintf '%s\\0' \"$@\"");
    let script = OsString::from_vec(script);
    let read = Command::new("sh").arg("-c").arg(script).output().unwrap();
    let mut expected = Vec::new();
    for argument in run
        .get_args()
        .skip_while(|argument| *argument != "--")
        .skip(1)
    {
        expected.extend_from_slice(argument.as_bytes());
        expected.push(0);
    }
    assert_eq!(read.stdout, expected);
    // The key to the cage is not among what a client may choose.
    granting.with(r#"command="env""#);
    let flags = [
        "-e",
        "BASH_ENV=/x",
        "-e",
        "LD_PRELOAD=/x",
        "-e",
        "LC_TIME=C",
    ];
    let (out, _) = ended(&granting.server.run(&flags, &["true"]), 0);
    assert!(out.contains("LC_TIME=C\n"), "{out}");
    assert!(!out.contains("=/x"), "{out}");
    // Its status is the outcome.
    granting.with(r#"command="exit 7""#);
    ended(&granting.server.run(&[], &["true"]), 7);
}

#[test]
fn an_environment_of_the_line_wins() {
    let granting = Granting::start();
    granting.with(r#"environment="GREETING=hello there",environment="OTHER=x\"y""#);
    let show = ["sh", "-c", "echo \"$GREETING|$OTHER\""];
    granting.gives(&[], &show, "hello there|x\"y\n");
    granting.gives(&["-e", "GREETING=mine"], &show, "hello there|x\"y\n");
}

#[test]
fn options_that_forbid_what_bowline_has_not_are_honoured() {
    let granting = Granting::start();
    let all = "restrict,pty,no-pty,no-port-forwarding,no-X11-forwarding,no-agent-forwarding,\
               no-user-rc,permitopen=\"localhost:80\",NO-PTY";
    granting.with(all).gives(&[], &["echo", "in"], "in\n");
    for option in all.split(',') {
        granting.with(option).gives(&[], &["echo", "in"], "in\n");
    }
    assert_eq!(granting.said(), "");
}

#[test]
fn a_line_with_an_unknown_option_counts_for_nothing() {
    let granting = Granting::start();
    for (number, option) in [
        "frobnicate",
        "cert-authority",
        "tunnel=\"1\"",
        "principals=\"a\"",
    ]
    .iter()
    .enumerate()
    {
        let comments = "# a comment\n".repeat(number);
        let line = format!("{comments}no-pty,{option} {}", granting.key);
        let_in(&granting.server, &line);
        granting.refuses();
        let name = option.split('=').next().unwrap();
        granting.warned(number + 1, name);
    }
    // Others in the file count all the same.
    let key = &granting.key;
    let_in(
        &granting.server,
        &format!("frobnicate {key}not a line\n{key}"),
    );
    granting.gives(&[], &["echo", "in"], "in\n");
}

#[test]
fn a_server_says_at_its_start_which_lines_do_not_count() {
    let server = Server::start_with(|command, dir| {
        command.stderr(File::create(dir.join("stderr")).unwrap());
        let file = dir.join("authorized_keys");
        let key = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, format!("{key}frobnicate {key}")).unwrap();
    });
    let said = std::fs::read_to_string(server.dir().join("stderr")).unwrap();
    let file = server.dir().join("authorized_keys");
    let place = format!("{}:2: ", file.display());
    assert!(
        said.contains(&place) && said.contains("frobnicate"),
        "{said}"
    );
    assert!(!said.contains('\x1b'), "{said:?}");
    assert_eq!(ended(&server.run(&[], &["echo", "in"]), 0).0, "in\n");
}

#[test]
fn a_file_that_others_may_write_lets_nobody_in() {
    let granting = Granting::start();
    let file = granting.server.dir().join("authorized_keys");
    let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode));
    mode(0o666).unwrap();
    granting.refuses();
    let said = granting.said();
    assert!(said.contains("chmod go-w"), "{said}");
    assert!(said.contains(file.to_str().unwrap()), "{said}");
    mode(0o644).unwrap();
    granting.gives(&[], &["echo", "in"], "in\n");
}

#[test]
fn authorize_adds_a_line_that_lets_in() {
    let granting = Granting::start();
    let_in(&granting.server, "");
    granting.refuses();
    let file = granting.server.dir().join("authorized_keys");
    let key = granting.server.home().join(".ssh/id_ed25519.pub");
    let authorize = |options: &[&str]| {
        let mut command = granting.server.command(&["authorize"]);
        command
            .arg(&key)
            .arg("--authorized-keys")
            .arg(&file)
            .args(options);
        command
    };
    let forced = ["--options", "command=\"echo forced\""];
    ended(&authorize(&forced), 0);
    granting.gives(&[], &["echo", "in"], "forced\n");
    let before = std::fs::read_to_string(&file).unwrap();
    let (out, _) = ended(&authorize(&[]), 0);
    assert!(out.contains("there already"), "{out}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
    // sshd would take the line too: ssh-keygen reads it.
    let read = Command::new("ssh-keygen")
        .arg("-lf")
        .arg(&file)
        .output()
        .unwrap();
    assert!(read.status.success());
    // What the server would refuse is not written.
    let (_, err) = ended(&authorize(&["--options", "frobnicate"]), 2);
    assert!(err.contains("frobnicate"), "{err}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
}
