//! The rules of the house that a machine can check, over every file of the repository.
//!
//! Nothing is built or changed here: sources, documents and what cargo says of
//! the dependencies are read. Each exception stands in a list with its reason,
//! and an exception that is no longer needed fails too.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

mod licences;
mod source;

use source::{Source, code_of, markdown_links};

/// Lines of a file without its tests.
const FILE_LINES_MAX: usize = 600;

/// Files over [`FILE_LINES_MAX`]: the lines they may have, and why.
const LONG_FILES: &[(&str, usize, &str)] = &[];

/// Where `unsafe` may stand, and what it is for.
const UNSAFE_FILES: &[(&str, &str)] = &[
    (
        "crates/cli/src/inherited.rs",
        "descriptors that a parent process left",
    ),
    (
        "crates/cli/src/keeper/spawn.rs",
        "clone3 and what a child does before execve",
    ),
    ("crates/cli/src/keeper/aside.rs", "fork, for what may hang"),
    ("crates/cli/src/keeper/local_time.rs", "mktime"),
    ("crates/cli/src/system_clock.rs", "strftime and adjtimex"),
];

/// Where tests may sleep, and why that does not wait for a thing.
const SLEEPING_TESTS: &[(&str, &str)] = &[(
    "crates/cli/tests/it/slow_line.rs",
    "the delay of a slow line",
)];

/// Documents that are linked to before they are written.
const DOCUMENTS_TO_COME: &[&str] = &[];

fn root() -> PathBuf {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    crates.parent().unwrap().to_owned()
}

/// Every file of the repository that is kept, by its path from the root.
fn files() -> Vec<String> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let skipped = [
                ".git",
                "target",
                "found",
                "kept",
                "artifacts",
                "__pycache__",
            ];
            if skipped.contains(&name.as_str()) || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                let relative = path.strip_prefix(root).unwrap();
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &root(), &mut found);
    found.sort();
    found
}

fn read(path: &str) -> String {
    String::from_utf8_lossy(&fs::read(root().join(path)).unwrap()).into_owned()
}

fn sources() -> Vec<Source> {
    let paths = files().into_iter().filter(|path| path.ends_with(".rs"));
    paths
        .map(|path| {
            let text = read(&path);
            Source::new(path, text)
        })
        .collect()
}

/// Fails with everything that is wrong, not only with the first.
#[track_caller]
fn none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn every_file_says_what_it_owns() {
    let bare: Vec<String> = sources()
        .iter()
        .filter(|source| !source.text.starts_with("//! "))
        .map(|source| source.path.clone())
        .collect();
    none("a file opens with `//!`", &bare);
}

#[test]
fn files_are_short() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let lines = source.lines_without_tests();
        let exception = LONG_FILES.iter().find(|long| long.0 == source.path);
        let max = exception.map_or(FILE_LINES_MAX, |long| long.1);
        if lines > max {
            wrong.push(format!("{} has {lines} lines of {max}", source.path));
        }
        if lines > FILE_LINES_MAX {
            used.insert(source.path.clone());
        }
    }
    for (path, _, reason) in LONG_FILES {
        assert!(!reason.is_empty());
        if !used.contains(*path) {
            wrong.push(format!("{path} is short now: take it off the list"));
        }
    }
    none("files stay short", &wrong);
}

#[test]
fn modules_are_nouns_that_a_reader_would_search_for() {
    let empty = [
        "utils", "util", "helpers", "helper", "common", "manager", "misc",
    ];
    let wrong: Vec<String> = sources()
        .iter()
        .filter(|source| source.names().any(|name| empty.contains(&name)))
        .map(|source| source.path.clone())
        .collect();
    none("no module is named so", &wrong);
}

#[test]
fn unsafe_stands_in_few_files() {
    let mut wrong = Vec::new();
    for source in &sources() {
        let listed = UNSAFE_FILES.iter().any(|file| file.0 == source.path);
        let found = source.has_word("unsafe");
        if found && !listed {
            wrong.push(format!("{} has unsafe code", source.path));
        }
        if listed && !source.text.contains("SAFETY") {
            wrong.push(format!("{} does not say why it is safe", source.path));
        }
    }
    for (path, reason) in UNSAFE_FILES {
        assert!(!reason.is_empty());
        let source = Source::new((*path).to_owned(), read(path));
        if !source.has_word("unsafe") {
            wrong.push(format!("{path} has none: take it off the list"));
        }
    }
    for path in ["crates/proto/src/lib.rs", "crates/bowline/src/lib.rs"] {
        if !read(path).contains("#![forbid(unsafe_code)]") {
            wrong.push(format!("{path} does not forbid it"));
        }
    }
    none("unsafe code is listed", &wrong);
}

#[test]
fn the_protocol_crate_knows_no_world() {
    let banned = [
        "tokio",
        "Instant",
        "SystemTime",
        "UNIX_EPOCH",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "UnixStream",
        "File",
        "OpenOptions",
        "Command",
        "getrandom",
        "OsRng",
        "unwrap",
        "expect",
        "panic",
        "unreachable",
        "todo",
    ];
    let paths = [
        "std::fs",
        "std::process",
        "std::thread",
        "std::env",
        "std::io",
        "std::os",
    ];
    let mut wrong = Vec::new();
    for source in sources()
        .iter()
        .filter(|source| source.is_in("crates/proto/src"))
    {
        if source.is_test() {
            continue;
        }
        let code = source.code_without_tests();
        for word in banned.iter().filter(|word| source::word_in(&code, word)) {
            // The lint's own name.
            if source.path != "crates/proto/src/lib.rs" {
                wrong.push(format!("{}: {word}", source.path));
            }
        }
        for path in paths.iter().filter(|path| code.contains(**path)) {
            wrong.push(format!("{}: {path}", source.path));
        }
    }
    none(
        "no clock, socket, file, randomness or panic in bowline-proto",
        &wrong,
    );
    let manifest = read("crates/proto/Cargo.toml");
    for name in [
        "tokio",
        "rustix",
        "libc",
        "nix",
        "getrandom",
        "rand",
        "aws-lc-rs",
    ] {
        let own = manifest
            .lines()
            .any(|line| line.starts_with(&format!("{name}.")));
        assert!(!own, "bowline-proto depends on {name}");
    }
}

#[test]
fn imports_go_one_way() {
    let rules: [(&str, &[&str]); 4] = [
        (
            "crates/proto/src",
            &["bowline::", "clap", "tokio", "rustls"],
        ),
        ("crates/bowline/src", &["clap", "anyhow", "rusqlite"]),
        (
            "crates/cli/src/keeper",
            &["tokio", "rustls", "serde_json", "crate::gate", "crate::cmd"],
        ),
        (
            "crates/cli/src/gate",
            &["crate::keeper", "crate::cmd", "clap"],
        ),
    ];
    let mut wrong = Vec::new();
    for (folder, banned) in rules {
        let inside: Vec<Source> = sources()
            .into_iter()
            .filter(|source| source.is_in(folder) && !source.is_test())
            .collect();
        assert!(!inside.is_empty(), "{folder} has no sources");
        for source in &inside {
            let code = source.code_without_tests();
            for name in banned.iter().filter(|name| source::path_in(&code, name)) {
                wrong.push(format!("{}: {name}", source.path));
            }
        }
    }
    none("a module imports only from its left", &wrong);
}

#[test]
fn tests_run_and_do_not_sleep() {
    let mut wrong = Vec::new();
    let ignore = concat!("#[ign", "ore");
    for source in &sources() {
        let code = code_of(&source.text);
        if code.contains(ignore) {
            wrong.push(format!("{} leaves a test out", source.path));
        }
        // tokio's paused clock makes sleeping instant, so only real threads count.
        let sleeps = code.contains("thread::sleep") && source.has_tests();
        let listed = SLEEPING_TESTS.iter().any(|file| file.0 == source.path);
        if sleeps && !listed {
            wrong.push(format!("{} sleeps: wait for the thing", source.path));
        }
        if listed && !sleeps {
            wrong.push(format!("{} does not sleep: take it off", source.path));
        }
    }
    none("tests wait for things, and all of them run", &wrong);
}

#[test]
fn words_go_where_a_full_disk_ends_nothing() {
    let mut wrong = Vec::new();
    let sources = sources();
    let crates = ["crates/proto/src", "crates/bowline/src", "crates/cli/src"];
    let shipped = |source: &&Source| crates.iter().any(|folder| source.is_in(folder));
    for source in sources.iter().filter(shipped).filter(|it| !it.is_test()) {
        let code = source.code_without_tests();
        let words = ["eprintln", "eprint", "println"];
        let found =
            words.iter().any(|word| source::word_in(&code, word)) || code.contains(" print!(");
        if found {
            wrong.push(source.path.clone());
        }
    }
    none(
        "`tell!` and `exit::print` do not panic where nobody takes what they write",
        &wrong,
    );
}

#[test]
fn every_task_has_an_owner() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let code = source.code_without_tests();
        for bare in ["tokio::spawn(", "task::spawn(", "mem::forget("] {
            if code.contains(bare) {
                wrong.push(format!("{}: {bare}", source.path));
            }
        }
    }
    none("tasks are spawned into a set that awaits them", &wrong);
}

#[test]
fn nothing_names_the_machine_that_it_was_written_on() {
    let home = std::env::var("HOME").unwrap_or_default();
    let mut places = vec![
        root().to_string_lossy().into_owned(),
        concat!("/wo", "rk/").to_owned(),
    ];
    // That of root is the same everywhere.
    if home.len() > 1 && home != "/root" {
        places.push(format!("{home}/"));
    }
    let mut wrong = Vec::new();
    for path in files()
        .iter()
        .filter(|path| !path.starts_with("fuzz/corpus/"))
    {
        let text = read(path);
        for (number, line) in text.lines().enumerate() {
            if places.iter().any(|place| line.contains(place.as_str())) {
                wrong.push(format!("{path}:{}", number + 1));
            }
        }
    }
    none("no path of a machine", &wrong);
}

#[test]
fn documents_are_there_and_their_links_lead_somewhere() {
    for path in [
        "PROTOCOL.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "deny.toml",
    ] {
        assert!(root().join(path).is_file(), "{path} is missing");
    }
    assert!(read("CHANGELOG.md").contains("\n## Unreleased\n"));
    let mut wrong = Vec::new();
    for path in files().iter().filter(|path| path.ends_with(".md")) {
        let folder = root().join(path).parent().unwrap().to_owned();
        for link in markdown_links(&read(path)) {
            let outside = link.contains("://") || link.starts_with("mailto:");
            let file = link.split('#').next().unwrap_or_default();
            let to_come = DOCUMENTS_TO_COME.contains(&file);
            if !outside && !to_come && !file.is_empty() && !folder.join(file).exists() {
                wrong.push(format!("{path}: {link}"));
            }
        }
    }
    none("a link leads nowhere", &wrong);
}

#[test]
fn codes_that_a_client_is_told_are_documented() {
    let document = read("PROTOCOL.md");
    let mut wrong = Vec::new();
    let mut found = BTreeSet::new();
    for source in sources()
        .iter()
        .filter(|source| source.is_in("crates/cli/src/gate"))
    {
        found.extend(source.first_strings_of(&["refuse(", "refused(", "leave(", "Err(("]));
        found.extend(source.first_strings_of(&["Happened::NotStarted, ", "Happened::Cancelled, "]));
        found.extend(source.first_strings_of(&["=> (", "code: ", "125,", "126,", "Some("]));
    }
    found.retain(|word| {
        let word_like = |c: char| c.is_ascii_lowercase() || c == '_';
        word.contains('_') && word.chars().all(word_like)
    });
    for code in &found {
        if !document.contains(&format!("| `{code}` |")) {
            wrong.push(code.clone());
        }
    }
    none("a code that PROTOCOL.md does not name", &wrong);
    assert!(found.len() > 8, "few codes were found: {found:?}");
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    for path in files() {
        if path.starts_with("crates/") && path.ends_with("/Cargo.toml") {
            let manifest = read(&path);
            assert!(manifest.contains("[lints]\nworkspace = true"), "{path}");
            assert!(manifest.contains("license.workspace = true"), "{path}");
        }
    }
}

/// What cargo links into the program: name, version, licence of each crate, and where it is from.
fn dependencies() -> Vec<(String, String)> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "--workspace",
            "--prefix=none",
        ])
        .args(["--edges=normal,build", "--format={p}\t{l}"])
        .current_dir(root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo tree: {said}");
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: BTreeSet<(String, String)> = text
        .lines()
        .filter_map(|line| line.trim_end_matches(" (*)").split_once('\t'))
        .map(|(package, licence)| {
            let licence = licence.trim_end_matches(" (*)");
            (package.to_owned(), licence.to_owned())
        })
        .collect();
    rows.into_iter().collect()
}

#[test]
fn dependencies_are_ones_that_may_be_linked() {
    let rows = dependencies();
    assert!(rows.len() > 50, "few dependencies: {rows:?}");
    let deny = read("deny.toml");
    let mut wrong = Vec::new();
    for (package, licence) in &rows {
        let name = package.split(' ').next().unwrap_or_default();
        let own = ["bowline", "bowline-proto", "bowline-cli"].contains(&name);
        // cargo names the place only where it is not the registry.
        if package.contains("://")
            || (package.contains('/') && !own && !package.ends_with("(proc-macro)"))
        {
            wrong.push(format!("{package} is not from crates.io"));
        }
        if !licences::is_permitted(licence, &licences::permitted(&deny)) {
            wrong.push(format!("{package} is under {licence:?}"));
        }
        if licences::banned(&deny).iter().any(|banned| banned == name) {
            wrong.push(format!("{name} is banned: see deny.toml"));
        }
    }
    none("dependencies", &wrong);
    // The lists were read.
    assert!(licences::banned(&deny).iter().any(|name| name == "rsa"));
    assert!(licences::permitted(&deny).iter().any(|name| name == "MIT"));
}

#[test]
fn every_source_in_the_lock_file_is_the_registry() {
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        for line in read(lock)
            .lines()
            .filter(|line| line.starts_with("source = "))
        {
            let registry = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
            assert_eq!(line, registry, "{lock}");
        }
    }
}
