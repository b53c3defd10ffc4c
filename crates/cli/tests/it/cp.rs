//! `bowline cp` as a person meets it: places, what is kept, what is said, what moves.

mod breaks;
mod changes;
mod hostile;
mod moving;
mod proxy;
mod relayed;
mod trees;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::server::Server;

/// A server, and a folder for the files of a test.
struct Bench {
    server: Server,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            server: Server::start(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a file with the folders that it is in.
    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// A path on the other machine.
    fn there(&self, name: &str) -> String {
        format!("{}:{}", self.server.target(), self.path(name).display())
    }

    fn here(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.server.command(&["cp"]);
        command.args(args).stdin(Stdio::null());
        command
    }

    fn cp(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Copies; all must be well, and nothing said.
    #[track_caller]
    fn well(&self, args: &[&str]) {
        let output = self.cp(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*said), (Some(0), ""), "{args:?}");
    }

    /// Copies with `--json`: status, records, summary.
    fn json(&self, args: &[&str]) -> (Option<i32>, Vec<Value>, Value) {
        let output = self.cp(&[&["--json"], args].concat());
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        let mut lines: Vec<Value> = lines.collect();
        let summary = lines.pop().unwrap();
        (output.status.code(), lines, summary)
    }
}

/// Names of what is in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| {
        let name = entry.unwrap().file_name();
        name.to_string_lossy().into_owned()
    };
    let mut names: Vec<_> = entries.map(name).collect();
    names.sort();
    names
}

/// Bytes that do not repeat.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&trees::next(&mut state).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn places_are_those_of_scp() {
    let bench = Bench::new();
    bench.write("src/a", "a");
    bench.write("src/sub/b", "b");
    fs::create_dir(bench.path("into")).unwrap();
    // A file to a new name, over an old one, into a folder.
    bench.well(&[&bench.here("src/a"), &bench.there("new")]);
    bench.write("old", "before");
    bench.well(&[&bench.there("src/a"), &bench.here("old")]);
    bench.well(&[&bench.here("src/a"), &bench.there("into/")]);
    let read = ["new", "old", "into/a"].map(|name| bench.read(name));
    assert_eq!(read, ["a", "a", "a"]);
    // A folder into a folder, to a new name, its contents.
    bench.well(&[&bench.here("src"), &bench.there("into")]);
    bench.well(&[&bench.there("src/"), &bench.here("renamed")]);
    bench.well(&[&bench.there("src/."), &bench.here("contents")]);
    for name in ["into/src/sub/b", "renamed/sub/b", "contents/sub/b"] {
        assert_eq!(bench.read(name), "b");
    }
    // Several sources, and wildcards that are expanded there.
    bench.well(&[
        &bench.there("src/*"),
        &bench.here("old"),
        &bench.here("into"),
    ]);
    assert_eq!(names(&bench.path("into")), ["a", "old", "src", "sub"]);
    // From there to there.
    bench.well(&[&bench.there("src/sub/b"), &bench.there("between")]);
    assert_eq!(bench.read("between"), "b");
    // A local name with a colon; a path from home on.
    bench.write("a:b", "colon");
    let new = format!("from-home-{}", std::process::id());
    let mut command = bench.command(&["./a:b", &format!("{}:{new}", bench.server.target())]);
    let home = bench.server.home();
    let output = command.current_dir(bench.dir.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let there = nix::unistd::User::from_uid(nix::unistd::geteuid())
        .unwrap()
        .unwrap();
    let copied = [there.dir.join(&new), home.join(&new)];
    let copied = copied
        .iter()
        .find(|path| path.exists())
        .expect("a file at home");
    assert_eq!(fs::read_to_string(copied).unwrap(), "colon");
    fs::remove_file(copied).unwrap();
}

#[test]
fn streams_are_places_too() {
    use std::io::Write;
    let bench = Bench::new();
    let mut command = bench.command(&["-", &bench.there("made")]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let content = noise(1, 700_000);
    child.stdin.take().unwrap().write_all(&content).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(fs::read(bench.path("made")).unwrap(), content);
    let output = bench.cp(&[&bench.there("made"), "-"]);
    assert!(output.status.success() && output.stdout == content);
    // Whoever types is not waited for when nobody takes it.
    let mut command = bench.command(&["-", &bench.there("no/such/folder")]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let typing = child.stdin.take();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    drop(typing);
    // A stream is no folder, and no folder is a stream.
    fs::create_dir(bench.path("folder")).unwrap();
    let output = bench.cp(&["-", &bench.there("folder")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    bench.write("folder/x", "x");
    let output = bench.cp(&[&bench.there("folder"), "-"]);
    assert_eq!((output.status.code(), output.stdout), (Some(1), Vec::new()));
}

/// As a local program would: by SIGPIPE, and without a word.
#[test]
fn a_reader_that_has_had_enough_ends_the_copy() {
    use std::io::{Read, Write};
    let bench = Bench::new();
    let large = noise(2, 20_000_000);
    bench.write("large", &large);
    bench.write("small", &large[..100_000]);
    for source in [
        bench.there("large"),
        bench.here("large"),
        bench.there("small"),
    ] {
        let mut command = bench.command(&[&source, "-"]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 10];
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut first).unwrap();
        assert_eq!(first, large[..10]);
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(141), "{source}: {output:?}");
        assert!(output.stderr.is_empty(), "{source}: {output:?}");
    }
    // However much there is still to come.
    let mut child = bench
        .command(&["-", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    while stdin.write_all(&large).is_ok() {}
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn modes_and_links_are_kept_and_times_with_archive() {
    let bench = Bench::new();
    let a = bench.write("src/a", "a");
    fs::set_permissions(&a, fs::Permissions::from_mode(0o640)).unwrap();
    let set = bench.write("src/set", "s");
    fs::set_permissions(&set, fs::Permissions::from_mode(0o6755)).unwrap();
    symlink("/nowhere", bench.path("src/link")).unwrap();
    fs::create_dir(bench.path("src/closed")).unwrap();
    let closed = fs::Permissions::from_mode(0o500);
    fs::set_permissions(bench.path("src/closed"), closed).unwrap();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    fs::File::open(&a).unwrap().set_modified(long_ago).unwrap();
    bench.well(&[&bench.here("src"), &bench.there("plain")]);
    bench.well(&["-a", &bench.there("src"), &bench.here("archive")]);
    // What differs of a file whose content is right is put right.
    bench.well(&[&bench.here("src/."), &bench.there("later")]);
    let open = fs::Permissions::from_mode(0o666);
    fs::set_permissions(bench.path("later/a"), open).unwrap();
    let inode = bench.path("later/a").metadata().unwrap().ino();
    bench.well(&["-a", &bench.here("src/."), &bench.there("later")]);
    assert_eq!(bench.path("later/a").metadata().unwrap().ino(), inode);
    for to in ["plain", "archive", "later"] {
        let mode = |name: &str| bench.path(to).join(name).metadata().unwrap().mode() & 0o7777;
        assert_eq!((mode("a"), mode("closed")), (0o640, 0o500));
        assert_eq!(
            mode("set"),
            if to == "plain" { 0o755 } else { 0o6755 },
            "{to}"
        );
        let link = fs::read_link(bench.path(to).join("link")).unwrap();
        assert_eq!(link, Path::new("/nowhere"));
        let time = bench
            .path(to)
            .join("a")
            .metadata()
            .unwrap()
            .modified()
            .unwrap();
        assert_eq!(time == long_ago, to != "plain");
    }
}

#[test]
fn a_folder_that_is_closed_is_copied_into_again() {
    let bench = Bench::new();
    let closed = bench.path("src/closed");
    let close = |mode| fs::set_permissions(&closed, fs::Permissions::from_mode(mode)).unwrap();
    bench.write("src/closed/a", "a");
    close(0o500);
    let args = ["-a", &bench.here("src/."), &bench.there("to")];
    bench.well(&args);
    close(0o700);
    fs::remove_file(bench.path("src/closed/a")).unwrap();
    bench.write("src/closed/b", "b");
    close(0o500);
    bench.well(&[&["--delete"], &args[..]].concat());
    assert_eq!(names(&bench.path("to/closed")), ["b"]);
    let mode = bench.path("to/closed").metadata().unwrap().mode();
    assert_eq!(mode & 0o7777, 0o500);
    let open = fs::Permissions::from_mode(0o700);
    fs::set_permissions(bench.path("to/closed"), open).unwrap();
    close(0o700);
}

#[test]
fn what_is_written_may_have_to_be_on_the_disk() {
    let bench = Bench::new();
    bench.write("src/sub/a", "a");
    bench.write("src/big", noise(4, 300_000));
    for when in ["none", "file", "all"] {
        let to = format!("to-{when}");
        bench.well(&["--fsync", when, &bench.here("src"), &bench.there(&to)]);
        assert_eq!(bench.read(&format!("{to}/sub/a")), "a");
    }
}

#[test]
fn holes_stay_holes_where_only_changes_move() {
    use std::os::unix::fs::FileExt;
    let bench = Bench::new();
    let sparse = fs::File::create(bench.write("src", "")).unwrap();
    sparse.set_len(24 << 20).unwrap();
    sparse.write_all_at(&noise(1, 500_000), 3 << 20).unwrap();
    let (from, to) = (bench.here("src"), bench.there("to"));
    let args = [from.as_str(), &to];
    bench.well(&args);
    sparse.write_all_at(b"a change", (3 << 20) + 9).unwrap();
    sparse.write_all_at(b"new", 20 << 20).unwrap();
    let (status, _, summary) = bench.json(&args);
    let sent = summary["sent_bytes"].as_u64().unwrap();
    assert!(status == Some(0) && sent < 100_000, "{summary}");
    let content = fs::read(bench.path("to")).unwrap();
    assert!(content == fs::read(bench.path("src")).unwrap());
    let meta = bench.path("to").metadata().unwrap();
    assert!(meta.blocks() < 3000, "{} blocks", meta.blocks());
}

#[test]
fn only_what_changed_moves() {
    let bench = Bench::new();
    let big = noise(2, 5_000_000);
    bench.write("src/big", &big);
    bench.write("src/small", "small");
    for flags in [&["-a"][..], &[]] {
        let to = format!("to{}", flags.len());
        let (from, to) = (bench.here("src"), bench.there(&to));
        let args = [flags, &[&from, &to]].concat();
        let contents = format!("{from}/.");
        let again = [flags, &[&contents, &to]].concat();
        let (status, _, summary) = bench.json(&args);
        assert_eq!(
            (status, &summary["sent_bytes"]),
            (Some(0), &Value::from(5_000_005))
        );
        let (status, records, summary) = bench.json(&again);
        assert_eq!(status, Some(0));
        assert_eq!(
            (&summary["sent_bytes"], &summary["copied"]),
            (&0.into(), &0.into())
        );
        assert!(records.iter().all(|record| record["action"] == "unchanged"));
    }
    // A byte more at the front, and a change in the middle.
    let mut other = [&b"x"[..], &big].concat();
    other[2_500_000..2_500_100].copy_from_slice(&noise(3, 100));
    bench.write("src/big", &other);
    for (from, to) in [
        (bench.here("src/."), bench.there("to1")),
        (bench.there("src/."), bench.here("to0")),
    ] {
        let (status, records, summary) = bench.json(&[&from, &to]);
        assert_eq!(status, Some(0));
        assert!(
            summary["sent_bytes"].as_u64().unwrap() < 100_000,
            "{summary}"
        );
        let record = records
            .iter()
            .find(|record| record["path"] == "big")
            .unwrap();
        let hash = hex::encode(blake3::hash(&other).as_bytes());
        assert_eq!(
            (&record["action"], &record["blake3"]),
            (&"copied".into(), &hash.into())
        );
    }
    for to in ["to0/big", "to1/big"] {
        assert!(fs::read(bench.path(to)).unwrap() == other, "{to}");
    }
}

#[test]
fn a_change_costs_no_more_than_with_rsync() {
    let bench = Bench::new();
    let proxy = proxy::Proxy::start(bench.server.port().unwrap());
    proxy.pin(&bench);
    let old = noise(6, 16 << 20);
    let mut new = old.clone();
    new[8 << 20..][..1000].copy_from_slice(&noise(7, 1000));
    new.insert(0, b'x');
    let source = bench.write("src/f", &new);
    // The bytes on the wire, the handshake among them.
    bench.write("to/f", &old);
    let to = format!("127.0.0.1:{}:{}", proxy.port, bench.here("to"));
    bench.well(&[&bench.here("src/f"), &to]);
    let ours = proxy.bytes();
    assert!(fs::read(bench.path("to/f")).unwrap() == new);
    // And those that rsync says it would need.
    let there = bench.write("rsync/f", &old);
    let output = Command::new("rsync")
        .args(["--no-whole-file", "--ignore-times", "--stats"])
        .args([&source, &there])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let total = said.lines().filter_map(|line| {
        let count = line.strip_prefix("Total bytes ")?.split(": ").nth(1)?;
        count.replace([',', '.'], "").parse::<u64>().ok()
    });
    let theirs: u64 = total.sum();
    assert!(theirs > 10_000, "{said}");
    assert!(ours < theirs, "{ours} bytes, and {theirs} with rsync");
}

#[test]
fn progress_is_for_terminals() {
    use crate::terminal::Terminal;
    let bench = Bench::new();
    bench.write("src/a\u{1b}[2Jb", noise(8, 3_000_000));
    let args = [bench.here("src"), bench.there("to")];
    let command = |more: &[&str]| {
        let mut command = bench.command(more);
        command.args(&args);
        command
    };
    let mut terminal = Terminal::start(&command(&[]));
    terminal.resize(100, 20);
    terminal.expect("/2.86 MiB");
    terminal.expect("a\\u{1b}[2Jb");
    let (status, shown) = terminal.end();
    assert!(status.success() && shown.contains(" entries"), "{shown:?}");
    assert!(!shown.contains("a\u{1b}[2J"), "{shown:?}");
    for quiet in ["-q", "--dry-run"] {
        let (status, shown) = Terminal::start(&command(&[quiet])).end();
        assert!(status.success() && !shown.contains("MiB"), "{shown:?}");
    }
    let (_, shown) = Terminal::start(&command(&["-q"])).end();
    assert_eq!(shown, "");
}

#[test]
fn contents_are_compared_where_times_cannot_tell() {
    let bench = Bench::new();
    let (a, b) = (bench.write("src/f", "aaaa"), bench.write("to/f", "bbbb"));
    let time = a.metadata().unwrap().modified().unwrap();
    fs::File::open(&b).unwrap().set_modified(time).unwrap();
    // As with rsync: the same size and time is the same, unless somebody wants to know.
    let args = ["-a", &bench.here("src/."), &bench.there("to")];
    bench.well(&args);
    assert_eq!(bench.read("to/f"), "bbbb");
    bench.well(&[&["--checksum"], &args[..]].concat());
    assert_eq!(bench.read("to/f"), "aaaa");
}

#[test]
fn delete_exclude_and_dry_run_are_those_of_rsync() {
    let bench = Bench::new();
    bench.write("src/keep/a", "a");
    bench.write("src/junk.o", "o");
    for name in ["extra", "keep/extra", "gone/deep/x", "old.o"] {
        bench.write(&format!("to/{name}"), "x");
    }
    symlink("/etc", bench.path("to/gone/etc")).unwrap();
    let (from, to) = (bench.here("src/."), bench.there("to"));
    let args = ["--delete", "--exclude", "*.o", &from, &to];
    let output = bench.cp(&[&["-n"], &args[..]].concat());
    let said = String::from_utf8(output.stdout).unwrap();
    let mut said: Vec<_> = said.lines().collect();
    said.sort_unstable();
    let expected = [
        "copied keep/a",
        "removed extra",
        "removed gone",
        "removed gone/deep",
        "removed gone/deep/x",
        "removed gone/etc",
        "removed keep/extra",
    ];
    assert_eq!(said, expected);
    assert_eq!(names(&bench.path("to")), ["extra", "gone", "keep", "old.o"]);
    bench.well(&args);
    assert_eq!(names(&bench.path("to")), ["keep", "old.o"]);
    assert_eq!(names(&bench.path("to/keep")), ["a"]);
    assert!(Path::new("/etc/passwd").exists());
    // What is left out is not removed either, and keeps the folders that it is in.
    bench.write("to/gone/keeps/x.o", "o");
    bench.write("to/gone/goes/x", "x");
    bench.well(&args);
    assert_eq!(names(&bench.path("to/gone")), ["keeps"]);
    assert_eq!(names(&bench.path("to/gone/keeps")), ["x.o"]);
    fs::remove_dir_all(bench.path("to/gone")).unwrap();
    // What could not be read is not missing.
    let output = bench.cp(&["--delete", &bench.here("nothing/."), &to]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(names(&bench.path("to")), ["keep", "old.o"]);
}

#[test]
fn some_failures_are_not_all() {
    let bench = Bench::new();
    bench.write("src/a", "a");
    let fifo = bench.path("src/fifo\u{1b}[2J");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, rustix::fs::Mode::RWXU, 0).unwrap();
    let output = bench.cp(&[&bench.here("src"), &bench.there("to")]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(23), "{said}");
    assert_eq!(
        said,
        "bowline: src/fifo\\u{1b}[2J: it is no file, folder or link [not_regular]\n"
    );
    assert_eq!(bench.read("to/a"), "a");
    let (status, records, summary) = bench.json(&[&bench.there("src/f*"), &bench.here("to")]);
    assert_eq!((status, &summary["outcome"]), (Some(1), &"failed".into()));
    assert_eq!(
        (&records[0]["action"], &records[0]["error"]),
        (&"failed".into(), &"not_regular".into())
    );
    // A folder does not become a file, nor a file a folder; what is under the other name goes on.
    bench.write("there/a/inside", "x");
    bench.write("src/b/c", "c");
    bench.write("there/b", "file");
    bench.write("src/d", "d");
    fs::remove_file(fifo).unwrap();
    let (status, records, _) = bench.json(&[&bench.here("src/."), &bench.there("there")]);
    assert_eq!(status, Some(23));
    let failed = records.iter().filter(|record| record["action"] == "failed");
    let mut failed: Vec<_> = failed
        .map(|record| record["path"].as_str().unwrap())
        .collect();
    failed.sort_unstable();
    assert_eq!(failed, ["a", "b", "b/c"]);
    assert_eq!(bench.read("there/d") + &bench.read("there/b"), "dfile");
    // The second of a name is not copied over the first.
    bench.write("one/x", "1");
    bench.write("two/x", "2");
    fs::create_dir(bench.path("both")).unwrap();
    let to = bench.there("both");
    let (status, records, _) = bench.json(&[&bench.there("one/*"), &bench.there("two/*"), &to]);
    assert_eq!(status, Some(23));
    let failed = records.iter().filter(|record| record["action"] == "failed");
    assert_eq!((records.len(), failed.count()), (2, 1));
    assert_eq!(bench.read("both/x"), "1");
    let output = bench.cp(&[&bench.here("src/a"), &bench.there("no/such/folder/")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let output = bench.cp(&["a", "nowhere.invalid:b"]);
    assert_eq!(output.status.code(), Some(255), "{output:?}");
}

#[test]
fn arguments_that_make_no_sense_copy_nothing() {
    let bench = Bench::new();
    bench.write("a", "a");
    let (a, to) = (bench.here("a"), bench.there("to"));
    for args in [
        &["-", &a, &to][..],
        &["--json", &a, "-"],
        &["--delete", &a, &bench.there("b"), &to],
        &[&a, &bench.there("x/a"), &to],
        &[&a, "host:0:x"],
        &[&a],
    ] {
        let output = bench.cp(args);
        assert_eq!(output.status.code(), Some(2), "{args:?} {output:?}");
    }
    assert!(!bench.path("to").exists());
}

#[test]
fn a_forced_command_runs_instead_of_the_worker() {
    let bench = Bench::new();
    let keys = bench.server.dir().join("authorized_keys");
    let key = fs::read_to_string(&keys).unwrap();
    let asked = bench.path("asked");
    let command = format!(
        "command=\"echo $SSH_ORIGINAL_COMMAND > {}\" {key}",
        asked.display()
    );
    fs::write(&keys, command).unwrap();
    bench.write("a", "a");
    let output = bench.cp(&[&bench.here("a"), &bench.there("to")]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(255), "{said}");
    assert!(said.contains("[no_file_worker]"), "{said}");
    let words = fs::read_to_string(asked).unwrap();
    let expected = format!("'' copy receive -- {}\n", bench.here("to"));
    assert_eq!(words, expected);
    assert!(!bench.path("to").exists());
    // `restrict` alone takes nothing away that a copy needs.
    fs::write(&keys, format!("restrict {key}")).unwrap();
    bench.well(&[&bench.here("a"), &bench.there("to")]);
}

#[test]
fn a_copy_is_a_job_in_the_record() {
    let bench = Bench::new();
    bench.write("a", "a");
    bench.well(&[&bench.here("a"), &bench.there("to")]);
    let mut command = bench
        .server
        .command(&["jobs", "--all", "--json", &bench.server.target()]);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("copy receive -- "), "{said}");
}
