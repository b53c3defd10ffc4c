//! What stands still for nobody: files that change while they are read, and names that are two only there.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Bench, names, noise};

/// Has a file change all the time while something runs.
fn while_it_changes<T>(path: &Path, run: impl FnOnce() -> T) -> T {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
            for count in 0_u64.. {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                file.seek(SeekFrom::Start(1_000_000)).unwrap();
                file.write_all(&count.to_le_bytes()).unwrap();
                std::thread::yield_now();
            }
        });
        let result = run();
        ended.store(true, Ordering::Relaxed);
        result
    })
}

#[test]
fn a_file_that_changes_while_it_is_read_is_said_so() {
    let bench = Bench::new();
    let path = bench.write("src/moving", noise(1, 24 << 20));
    // To there, from there, and over what the first one left.
    for (from, to, copied) in [
        (bench.here("src/."), bench.there("to"), "to"),
        (bench.there("src/."), bench.here("back"), "back"),
        (bench.here("src/."), bench.there("to"), "to"),
    ] {
        let args = ["--checksum", "--json", &from, &to];
        let output = while_it_changes(&path, || bench.cp(&args));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            said,
            "bowline: moving: it changed while it was read [changed_while_read]\n"
        );
        assert_eq!(output.status.code(), Some(23));
        let lines = String::from_utf8(output.stdout).unwrap();
        let records = lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let records: Vec<_> = records.collect();
        let moving = records.iter().find(|record| record["path"] == "moving");
        let moving = moving.unwrap();
        assert_eq!(moving["changed"], true, "{lines}");
        // What was copied is whole, and what the record says it is.
        let content = fs::read(bench.path(copied).join("moving")).unwrap();
        let hash = blake3::hash(&content).to_hex();
        assert_eq!(moving["blake3"], hash.as_str(), "{lines}");
        assert_eq!(records.last().unwrap()["outcome"], "partial", "{lines}");
    }
    bench.well(&["--checksum", &bench.here("src/."), &bench.there("to")]);
    assert!(fs::read(&path).unwrap() == fs::read(bench.path("to/moving")).unwrap());
}

/// Where case does not count: NTFS in a file, mounted for this one command and gone with it. No kernel of
/// a test machine need know such a filesystem itself.
const WITHOUT_CASE: &str = "set -eu
truncate -s 8M image
mkntfs -qQF image >/dev/null
mkdir mounted
lowntfs-3g -o ignore_case,silent,permissions image mounted
trap 'umount mounted' EXIT
status=0
\"$@\" || status=$?
cp -r mounted kept
exit $status
";

#[test]
fn names_that_are_one_there_collide() {
    // Only root can mount.
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let bench = Bench::new();
    for (name, content) in [
        ("src/Makefile", "upper"),
        ("src/makefile", "lower"),
        ("src/Sub/inside", "upper"),
        ("src/sub/inside", "lower"),
        ("src/other", "other"),
    ] {
        bench.write(name, content);
    }
    let client = bench.command(&["--json", &bench.there("src/."), "mounted"]);
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", WITHOUT_CASE, "sh"]);
    command.arg(client.get_program()).args(client.get_args());
    for (name, value) in client.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.current_dir(bench.dir.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(23), "{lines}{said}");
    let records = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let records: Vec<_> = records.collect();
    let failed = |path: &str| {
        let of_it = |record: &&serde_json::Value| record["path"] == path;
        let record = records.iter().find(of_it);
        let record = record.unwrap_or_else(|| panic!("{path}: {lines}"));
        record["error"].as_str().map(ToOwned::to_owned)
    };
    // Which of two comes first is the folder's affair.
    let mut pairs = Vec::new();
    for pair in [["Makefile", "makefile"], ["Sub", "sub"]] {
        let [first, second] = pair.map(failed);
        let (kept, collided) = match &first {
            None => (pair[0], second),
            Some(_) => (pair[1], first),
        };
        assert_eq!(collided.as_deref(), Some("name_collides"), "{lines}{said}");
        assert_eq!(failed(kept), None, "{lines}");
        pairs.push(kept);
    }
    assert_eq!(failed("other"), None);
    let lost = match pairs[1] {
        "Sub" => "sub/inside",
        _ => "Sub/inside",
    };
    assert_eq!(failed(lost).as_deref(), Some("no_folder"), "{lines}");
    // Each is whole, and neither is the other.
    let kept = bench.path("kept");
    let content = |name: &str| fs::read_to_string(kept.join(name)).unwrap();
    let expected = |name: &str| {
        if name.starts_with(char::is_uppercase) {
            "upper"
        } else {
            "lower"
        }
    };
    // This one shows all names in small letters.
    assert_eq!(names(&kept), ["makefile", "other", "sub"]);
    assert_eq!(content("makefile"), expected(pairs[0]));
    assert_eq!(content("sub/inside"), expected(pairs[1]));
}
