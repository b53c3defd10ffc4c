//! Every command of the README, run as it stands there.
//!
//! Blocks marked `console` are run line by line by `sh` in a home of their own;
//! what the README shows below a command is what must come, with `…` for
//! anything. `build1` is a name of that home's configuration.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::server::{bowline, signal_process};

/// A command and the lines that the README shows for it.
struct Step {
    command: String,
    shown: Vec<String>,
}

fn readme() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    std::fs::read_to_string(path).unwrap()
}

/// The blocks of the README that begin with "```console".
fn blocks(readme: &str) -> Vec<Vec<Step>> {
    let mut blocks = Vec::new();
    let mut inside = false;
    for line in readme.lines() {
        match (inside, line) {
            (false, "```console") => {
                inside = true;
                blocks.push(Vec::new());
            }
            (true, "```") => inside = false,
            (true, line) => {
                let block: &mut Vec<Step> = blocks.last_mut().unwrap();
                match line.strip_prefix("$ ") {
                    Some(command) => block.push(Step {
                        command: command.to_owned(),
                        shown: Vec::new(),
                    }),
                    None => block.last_mut().unwrap().shown.push(line.to_owned()),
                }
            }
            (false, _) => {}
        }
    }
    blocks
}

/// Whether `line` is what the README shows, `…` standing for anything.
fn fits(shown: &str, line: &str) -> bool {
    let mut parts = shown.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut open = false;
    for part in parts {
        open = true;
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
        if part.is_empty() {
            return true;
        }
    }
    open && shown.ends_with('…') || rest.is_empty()
}

/// A shown line that is `…` alone stands for any number of lines.
fn all_fit(shown: &[String], lines: &[&str]) -> bool {
    match shown.split_first() {
        None => lines.is_empty(),
        Some((any, rest)) if any == "…" => {
            (0..=lines.len()).any(|skip| all_fit(rest, &lines[skip..]))
        }
        Some((first, rest)) => match lines.split_first() {
            Some((line, lines)) => fits(first, line) && all_fit(rest, lines),
            None => false,
        },
    }
}

/// A home with keys, a project, and the names that the README uses.
struct Home {
    dir: tempfile::TempDir,
    server: Option<Child>,
    plain: Vec<Child>,
}

impl Home {
    fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        use std::os::unix::fs::PermissionsExt;
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        open(dir.path(), 0o711);
        for folder in [".ssh", ".config/bowline", "bin", "state"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        open(&dir.path().join(".ssh"), 0o700);
        open(&dir.path().join("state"), 0o711);
        std::os::unix::fs::symlink(bowline(), dir.path().join("bin/bowline")).unwrap();
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(dir.path().join(".ssh/id_ed25519"))
            .status()
            .unwrap();
        assert!(made.success());
        let home = dir.path().display();
        let mut server = format!(
            "listen = [\"127.0.0.1:0\"]\nstate_dir = \"{home}/state\"\nhost_key = \"{home}/host_key\"\n\
             authorized_keys = \"{home}/.config/bowline/authorized_keys\"\n"
        );
        if crate::server::is_root() {
            server.push_str("allow_users = [\"root\"]\n");
        }
        let file = dir.path().join(".config/bowline/server.toml");
        std::fs::write(file, server).unwrap();
        Home {
            dir,
            server: None,
            plain: Vec::new(),
        }
    }

    fn shell(&self, command: &str) -> Command {
        let home = self.dir.path();
        let mut shell = Command::new("sh");
        shell
            .arg("-c")
            .arg(command)
            .current_dir(home)
            .env("HOME", home);
        shell
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("SSH_AUTH_SOCK");
        let path = format!(
            "{}:{}",
            home.join("bin").display(),
            std::env::var("PATH").unwrap()
        );
        shell.env("PATH", path).stdin(Stdio::null());
        shell
    }

    /// `bowline plain serve …`, which goes on; what it says first.
    fn serve_plain(&mut self, command: &str) -> String {
        let mut command = format!("exec {command}");
        if crate::server::is_root() {
            command = command.replace("serve exec", "serve exec --user root");
        }
        let mut server = self.shell(&command).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let stdout = server.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        self.plain.push(server);
        line
    }

    /// `bowline serve`, which goes on; its address becomes `build1`.
    fn serve(&mut self, command: &str) -> String {
        // As root the configuration of the machine counts, not the home's.
        let file = self.dir.path().join(".config/bowline/server.toml");
        let command = format!("exec {command} --config {}", file.display());
        let mut server = self.shell(&command).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(server.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        self.server = Some(server);
        let address = line.trim_end().strip_prefix("listening tcp://").unwrap();
        let config = format!("[host.build1]\naddress = \"{address}\"\n");
        std::fs::write(self.dir.path().join(".config/bowline/config.toml"), config).unwrap();
        line
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for server in self.server.iter_mut().chain(&mut self.plain) {
            signal_process(server.id(), 15);
            let _ = server.wait();
        }
    }
}

/// What is said more where no cgroup can be made: the shell sees its child end first, and the
/// kill is not known to be exact.
const WITHOUT_CGROUPS: &str = " (found by walking the process tree: one that hid may have escaped)";

fn check(step: &Step, output: &str) {
    let output = output.replace(WITHOUT_CGROUPS, "");
    let lines: Vec<&str> = output.lines().collect();
    let lines: Vec<&str> = lines
        .into_iter()
        .filter(|line| *line != "Terminated")
        .collect();
    assert!(
        all_fit(&step.shown, &lines),
        "$ {}\nthe README shows\n{}\nand there came\n{output}",
        step.command,
        step.shown.join("\n")
    );
}

#[test]
fn every_command_of_the_readme_does_what_it_shows() {
    let readme = readme();
    let mut blocks = blocks(&readme);
    assert!(blocks.len() >= 5, "{}", blocks.len());
    // The transcript at the top needs the server that the quick start starts.
    blocks.rotate_left(1);
    let mut home = Home::new();
    std::fs::write(
        home.dir.path().join("Makefile"),
        "test:\n\t@echo cc -c one.c; echo cc -c two.c; echo ok\n",
    )
    .unwrap();
    for step in blocks.iter().flatten() {
        let output = match step.command.as_str() {
            "cargo install --path crates/cli" => installable(),
            "bowline serve" => home.serve(&step.command),
            command if command.starts_with("bowline plain serve ") => home.serve_plain(command),
            command => {
                // What cargo would build and run is what is under test.
                let command = command.replace("cargo run --release --", "bowline");
                // The server's account has its own home; the project is in the test's.
                let command = command.replace(
                    "run build1 -- make",
                    &format!("run --cwd {} build1 -- make", home.dir.path().display()),
                );
                let command = command.replace(
                    "bowline authorize",
                    "bowline authorize --authorized-keys ~/.config/bowline/authorized_keys",
                );
                let output = home
                    .shell(&format!("{{ {command}\n}} 2>&1"))
                    .output()
                    .unwrap();
                assert!(
                    output.status.success(),
                    "{command}: {}",
                    String::from_utf8_lossy(&output.stdout)
                );
                String::from_utf8(output.stdout).unwrap()
            }
        };
        check(step, &output);
    }
    let outcome = std::fs::read(home.dir.path().join("outcome.json")).unwrap();
    let outcome: serde_json::Value = serde_json::from_slice(&outcome).unwrap();
    assert_eq!(outcome["outcome"], "exited");
}

/// That the crate can be installed from its folder: it is named and has the one binary. To build it again in
/// its release form would take longer than all other tests.
fn installable() -> String {
    let metadata = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
            "--manifest-path",
        ])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let cli = packages
        .iter()
        .find(|package| package["name"] == "bowline-cli")
        .unwrap();
    let targets = cli["targets"].as_array().unwrap();
    let binaries: Vec<_> = targets
        .iter()
        .filter(|target| target["kind"][0] == "bin")
        .collect();
    assert_eq!(binaries.len(), 1);
    assert_eq!(binaries[0]["name"], "bowline");
    String::new()
}

#[test]
fn the_comparison_with_the_readme_can_fail() {
    assert!(fits("Linux …", "Linux x 6.1"));
    assert!(fits("a…c…", "abcd"));
    assert!(!fits("Linux …", "Darwin"));
    assert!(!fits("status 1", "status 12"));
    assert!(!fits("{…}", "{} x"));
    let shown = ["…".to_owned(), "end".to_owned()];
    assert!(all_fit(&shown, &["a", "b", "end"]));
    assert!(!all_fit(&shown, &["a", "b"]));
    assert!(!all_fit(&shown[1..], &["end", "more"]));
}
