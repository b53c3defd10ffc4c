//! Files that changed in every way: what comes out is the new one, and little more than the change moves.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::breaks::litter;
use super::{Bench, noise};

/// A file of another time than any that is made now: size and time do not say that it is the same.
fn write_old(bench: &Bench, name: &str, content: &[u8]) {
    let path = bench.write(name, content);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
}

/// Copies `new` over `old`, to there or from there: the bytes of file data that were sent.
#[track_caller]
fn sent(bench: &Bench, old: &[u8], new: &[u8], to_there: bool) -> u64 {
    bench.write("src/f", new);
    write_old(bench, "to/f", old);
    let (from, to) = match to_there {
        true => (bench.here("src/f"), bench.there("to")),
        false => (bench.there("src/f"), bench.here("to")),
    };
    let (status, records, summary) = bench.json(&[&from, &to]);
    assert_eq!(status, Some(0), "{records:?}");
    assert!(fs::read(bench.path("to/f")).unwrap() == new, "{summary}");
    assert_eq!(litter(bench.dir.path()), [""; 0]);
    summary["sent_bytes"].as_u64().unwrap()
}

#[test]
fn little_more_than_the_change_moves() {
    let bench = Bench::new();
    // 2,000,000 bytes have blocks of 4 KiB.
    let old = noise(1, 2_000_000);
    let block = 4096;
    let other = noise(2, 300_000);
    let at = |at: usize, len: usize| [&old[..at], &other[..len], &old[at..]].concat();
    let mut overwritten = old.clone();
    overwritten[1_000_000..1_100_000].copy_from_slice(&other[..100_000]);
    let blocks: Vec<_> = old.chunks(block).collect();
    let backwards: Vec<u8> = blocks.iter().rev().flat_map(|b| b.to_vec()).collect();
    let cases: [(&str, Vec<u8>, usize); 12] = [
        ("a byte at the front", at(0, 1), 1),
        ("a byte in the middle", at(999_999, 1), 1),
        ("more at the end", at(old.len(), 5000), 5000),
        ("much at the front", at(0, 300_000), 300_000),
        ("the first byte gone", old[1..].to_vec(), 0),
        ("the first half gone", old[1_000_000..].to_vec(), 0),
        ("the second half gone", old[..1_000_001].to_vec(), 0),
        (
            "halves swapped",
            [&old[700_000..], &old[..700_000]].concat(),
            0,
        ),
        ("overwritten", overwritten, 100_000),
        ("backwards", backwards, 0),
        ("twice", [&old[..], &old[..]].concat(), 0),
        (
            "a block's edge",
            [&old[..block], &other[..1], &old[block..]].concat(),
            1,
        ),
    ];
    for (what, new, change) in cases {
        for to_there in [true, false] {
            let sent = sent(&bench, &old, &new, to_there);
            let most = (change + 4 * block) as u64;
            assert!(sent <= most, "{what}: {sent}, not {most}");
        }
    }
}

#[test]
fn what_is_there_may_be_short_or_alike_or_nothing() {
    let bench = Bench::new();
    let new = noise(3, 1_000_000);
    let len = new.len() as u64;
    let of_one = |byte, len| vec![byte; len];
    let cases: [(&str, Vec<u8>, u64); 7] = [
        ("empty", Vec::new(), len),
        ("short", new[..100].to_vec(), len),
        (
            "just too short to be compared",
            new[..128 * 1024].to_vec(),
            len,
        ),
        (
            "just long enough",
            new[..128 * 1024 + 1].to_vec(),
            len - 120 * 1024,
        ),
        ("of one byte", of_one(0, 1_000_000), len),
        ("of another", noise(4, 1_000_000), len),
        (
            "much longer",
            [noise(5, 3_000_000), new.clone()].concat(),
            10_000,
        ),
    ];
    for (what, old, most) in cases {
        let sent = sent(&bench, &old, &new, true);
        assert!(sent <= most, "{what}: {sent}, not {most}");
    }
    // Nothing but one byte, longer and shorter than before.
    for len in [3_000_000, 700_001] {
        let sent = sent(&bench, &of_one(7, 2_000_000), &of_one(7, len), true);
        assert!(sent <= 8192, "{len}: {sent}");
    }
}

#[test]
fn a_large_file_that_is_as_it_was_is_not_written() {
    let bench = Bench::new();
    let content = noise(6, 1_500_000);
    for to_there in [true, false] {
        write_old(&bench, "to/f", &content);
        let inode = bench.path("to/f").metadata().unwrap().ino();
        bench.write("src/f", &content);
        let (from, to) = match to_there {
            true => (bench.here("src/f"), bench.there("to")),
            false => (bench.there("src/f"), bench.here("to")),
        };
        let (status, _, summary) = bench.json(&["-a", &from, &to]);
        let said = (
            &summary["copied"],
            &summary["unchanged"],
            &summary["sent_bytes"],
        );
        assert_eq!((status, said), (Some(0), (&0.into(), &1.into(), &0.into())));
        let meta = bench.path("to/f").metadata().unwrap();
        assert_eq!(meta.ino(), inode);
        let time = bench.path("src/f").metadata().unwrap().modified().unwrap();
        assert_eq!(meta.modified().unwrap(), time);
    }
}

#[test]
fn many_files_that_changed_are_compared_one_behind_the_other() {
    let bench = Bench::new();
    // More than are compared at a time.
    for file in 0..150u64 {
        let old = noise(100 + file, 140_000 + file as usize);
        let mut new = old.clone();
        match file % 3 {
            0 => new.insert(70_000, 1),
            1 => new[139_000] ^= 1,
            _ => {}
        }
        bench.write(&format!("src/{file}"), &new);
        write_old(&bench, &format!("to/{file}"), &old);
        bench.write(&format!("src/small{file}"), "small");
    }
    for to_there in [true, false] {
        let (from, to) = match to_there {
            true => (bench.here("src/."), bench.there("to")),
            false => (bench.there("src/."), bench.here("to")),
        };
        let (status, records, summary) = bench.json(&["-a", &from, &to]);
        assert_eq!(status, Some(0), "{records:?}");
        assert!(summary["sent_bytes"].as_u64().unwrap() < 150 * 4100);
        super::trees::assert_same(&bench.path("src"), &bench.path("to"), "changed");
        for file in 0..150u64 {
            let old = noise(100 + file, 140_000 + file as usize);
            write_old(&bench, &format!("to/{file}"), &old);
        }
    }
}
