//! The systemd units of docs/ are what systemd understands.

use std::path::Path;
use std::process::Command;

use crate::server::bowline;

/// The text of a unit with the program that was built in place of the installed one.
fn with_own_program(text: &str) -> String {
    let own = format!("ExecStart={} serve", bowline().display());
    assert!(text.contains("ExecStart=/usr/bin/bowline serve"));
    text.replace("ExecStart=/usr/bin/bowline serve", &own)
}

fn verify(folder: &Path) -> (bool, String) {
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(folder.join("bowline.service"))
        .arg(folder.join("bowline.socket"))
        // It looks for the other units of a system there, and for a home.
        .env("HOME", folder)
        .output()
        .expect("systemd-analyze, of the package systemd");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), said)
}

#[test]
fn the_units_are_valid() {
    let folder = tempfile::tempdir().unwrap();
    let service = with_own_program(include_str!("../../../../docs/bowline.service"));
    let socket = include_str!("../../../../docs/bowline.socket");
    std::fs::write(folder.path().join("bowline.service"), &service).unwrap();
    std::fs::write(folder.path().join("bowline.socket"), socket).unwrap();
    let (good, said) = verify(folder.path());
    assert!(good, "{said}");
    // Unknown keys are only warned about, so a clean unit says nothing at all.
    assert!(!said.contains("bowline."), "{said}");
    // And the check is able to fail.
    let broken = service.replace("KillMode=process", "KilMode=process");
    std::fs::write(folder.path().join("bowline.service"), broken).unwrap();
    let (_, said) = verify(folder.path());
    assert!(said.contains("KilMode"), "{said}");
}

#[test]
fn the_service_leaves_jobs_alone_and_confines_nothing() {
    let service = include_str!("../../../../docs/bowline.service");
    let keys: Vec<&str> = service
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('=').map(|(key, _)| key))
        .collect();
    assert!(service.contains("\nKillMode=process\n"));
    for key in keys {
        let inherited = [
            "Protect",
            "Private",
            "Restrict",
            "SystemCall",
            "NoNew",
            "Capability",
        ];
        let confines = inherited.iter().any(|start| key.starts_with(start));
        assert!(!confines, "{key} would be inherited by every job");
    }
}
