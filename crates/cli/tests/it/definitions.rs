//! What is made from the definitions of the commands: completions and pages of the manual.

use std::process::{Command, Output};

use crate::server::bowline;

fn done(args: &[&str]) -> (String, Output) {
    let done = Command::new(bowline()).args(args).output().unwrap();
    (String::from_utf8_lossy(&done.stdout).into_owned(), done)
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let (script, made) = done(&["completions", "bash"]);
    assert_eq!(made.status.code(), Some(0));
    let completed = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let script = format!(
            "{script}\nCOMP_WORDS=({}); COMP_CWORD={}; _bowline bowline '{}' '{}'; echo \"${{COMPREPLY[@]}}\"",
            words.join(" "),
            words.len() - 1,
            words[words.len() - 1],
            words[words.len() - 2],
        );
        let bash = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&bash.stderr), "", "{line}");
        String::from_utf8(bash.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(completed("bowline forg"), "forget");
    assert_eq!(completed("bowline kill --tr"), "--tree --trust");
    assert_eq!(completed("bowline ping --trust st"), "strict");
    // What people do not type is not offered.
    assert_eq!(completed("bowline gat"), "");
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let (script, made) = done(&["completions", shell]);
        assert_eq!(made.status.code(), Some(0), "{shell}");
        assert!(
            script.contains("forget") && script.contains("bowline"),
            "{shell}"
        );
    }
    assert_eq!(done(&["completions", "tcsh"]).1.status.code(), Some(2));
}

#[test]
fn every_command_has_a_page() {
    let (page, made) = done(&["man", "kill"]);
    assert_eq!(made.status.code(), Some(0));
    assert!(
        page.contains(".TH bowline-kill 1") && page.contains("tree"),
        "{page}"
    );
    let (page, _) = done(&["man"]);
    assert!(
        page.contains(".TH bowline 1") && page.contains("bowline\\-run(1)"),
        "{page}"
    );
    assert!(
        done(&["man", "plain", "serve"])
            .0
            .contains(".TH bowline-plain-serve 1")
    );
    for none in ["gate", "copy-worker", "frob"] {
        assert_eq!(done(&["man", none]).1.status.code(), Some(2), "{none}");
    }
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man1");
    let (said, made) = done(&["man", "--dir", pages.to_str().unwrap()]);
    assert_eq!((said.as_str(), made.status.code()), ("", Some(0)));
    let mut names: Vec<String> = std::fs::read_dir(&pages)
        .unwrap()
        .map(|page| page.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    for name in [
        "bowline.1",
        "bowline-run.1",
        "bowline-wait.1",
        "bowline-plain-serve.1",
    ] {
        assert!(names.iter().any(|page| page == name), "{name}: {names:?}");
    }
    assert!(
        !names
            .iter()
            .any(|page| page.contains("gate") || page.contains("help")),
        "{names:?}"
    );
}

/// What a command says of itself is what the list of all commands says of it.
#[test]
fn every_command_says_what_it_is_for() {
    let (list, _) = done(&["--help"]);
    let commands = list.split("Commands:\n").nth(1).unwrap();
    let commands = commands.split("\n\n").next().unwrap();
    let mut seen = 0;
    for line in commands.lines().filter(|line| !line.starts_with("   ")) {
        let (name, about) = line.trim().split_once(' ').unwrap();
        if name == "help" {
            continue;
        }
        let (own, _) = done(&[name, "--help"]);
        let first = own.lines().next().unwrap();
        assert!(first.starts_with(about.trim()), "{name}: {first}");
        seen += 1;
    }
    assert!(seen > 15, "{list}");
}
