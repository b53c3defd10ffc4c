//! Copies that are broken again and again: the connection, the gate, the worker, the client. Each goes on
//! where it was, and what comes out in the end is what a whole copy would have been.
//!
//! `BOWLINE_BREAKS=n` breaks so often, `BOWLINE_SEED=n` at other places.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

use super::proxy::Proxy;
use super::trees::{assert_same, next, number};
use super::{Bench, noise};
use crate::server::{children_of, signal_process};

/// What nobody wants to see when a copy has ended.
pub(super) fn litter(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().contains(".bowline-") {
            found.push(path.display().to_string());
        }
        if path.is_dir() {
            found.extend(litter(&path));
        }
    }
    found
}

fn source(bench: &Bench) {
    bench.write("src/big", noise(1, 9_000_000));
    bench.write("src/last", noise(2, 4_000_000));
    for folder in 0..4 {
        for file in 0..25 {
            let size = [3, 2000, 70_000][file % 3];
            bench.write(&format!("src/{folder}/{file}"), noise(file as u64, size));
        }
    }
    // What is there already is old, and has the same beginning and end.
    let mut old = noise(2, 4_000_000);
    old[2_000_000..2_300_000].fill(0);
    bench.write("old/last", old);
}

fn broken(send: bool, breaks: u64) {
    let bench = Bench::new();
    source(&bench);
    let proxy = Proxy::start(bench.server.port().unwrap());
    proxy.pin(&bench);
    let there = |path: &str| format!("127.0.0.1:{}:{}", proxy.port, bench.here(path));
    let args = match send {
        true => ["-a".to_owned(), bench.here("src/."), there("to")],
        false => ["-a".to_owned(), there("src/."), bench.here("to")],
    };
    let args = args.each_ref().map(String::as_str);
    let start = || {
        let mut command = bench.command(&args);
        command.stderr(Stdio::piped()).spawn().unwrap()
    };
    let fresh = || {
        let _ = fs::remove_dir_all(bench.path("to"));
        fs::create_dir(bench.path("to")).unwrap();
        fs::copy(bench.path("old/last"), bench.path("to/last")).unwrap();
    };
    let finish = |client: Child| {
        let output = client.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*said), (Some(0), ""));
        assert_same(&bench.path("src"), &bench.path("to"), "after breaks");
        assert_eq!(litter(&bench.path("to")), [""; 0]);
    };
    let mut state = number("BOWLINE_SEED", 1) + u64::from(send) * 7919;
    fresh();
    let mut client = start();
    let mut done = 0;
    while done < breaks {
        if !proxy.wait(next(&mut state) % 3_000_000, &mut client) {
            finish(client);
            fresh();
            client = start();
            continue;
        }
        done += 1;
        match next(&mut state) % 4 {
            0 => proxy.cut(),
            1 => {
                client.kill().unwrap();
                client.wait().unwrap();
                client = start();
            }
            kind => {
                let name = if kind == 2 { " gate" } else { " copy-worker " };
                let children = children_of(bench.server.pid());
                let found = children.iter().find(|(_, command)| command.contains(name));
                found.iter().for_each(|(pid, _)| signal_process(*pid, 9));
            }
        }
    }
    finish(client);
}

#[test]
fn a_copy_to_there_goes_on_after_breaks() {
    broken(true, number("BOWLINE_BREAKS", 20) / 2);
}

#[test]
fn a_copy_from_there_goes_on_after_breaks() {
    broken(false, number("BOWLINE_BREAKS", 20) / 2);
}

#[test]
fn what_was_good_is_not_sent_again() {
    let bench = Bench::new();
    let mut content = noise(5, 16_000_000);
    let proxy = Proxy::start(bench.server.port().unwrap());
    proxy.pin(&bench);
    let to = format!("127.0.0.1:{}:{}", proxy.port, bench.here("to"));
    for change in [false, true] {
        bench.write("src", &content);
        let mut client = bench.command(&[&bench.here("src"), &to]).spawn().unwrap();
        assert!(proxy.wait(14_000_000, &mut client));
        client.kill().unwrap();
        client.wait().unwrap();
        assert!(!bench.path("to").exists());
        // Its worker may still write what it has got: more is good, not less.
        let partial = fs::metadata(&litter(bench.dir.path())[0]).unwrap().len();
        assert!(partial > 100_000, "{partial}");
        // Where the beginning is another one now, the blocks behind it serve.
        content[10] ^= u8::from(change);
        bench.write("src", &content);
        let (status, _, summary) = bench.json(&[&bench.here("src"), &to]);
        let sent = summary["sent_bytes"].as_u64().unwrap();
        assert!(
            status == Some(0) && sent < 16_100_000 - partial,
            "{partial} {summary}"
        );
        assert!(fs::read(bench.path("to")).unwrap() == content);
        assert_eq!(litter(bench.dir.path()), [""; 0]);
        fs::remove_file(bench.path("to")).unwrap();
    }
}
