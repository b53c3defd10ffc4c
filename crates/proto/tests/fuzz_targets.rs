//! The fuzz targets in the normal test run: over their corpus, and over inputs
//! that were made from it at random, so that they cannot rot unseen.
//!
//! `BOWLINE_SEED=n` begins at another place.

// What is public there is so for the fuzzer's programs.
#[allow(unreachable_pub)]
#[path = "../../../fuzz/src/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

/// Inputs for each target; `tools/fuzz` does it for longer and with coverage.
const INPUTS: u64 = 10_000;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let entries = fs::read_dir(folder.join(target)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let named = paths.iter().map(|path| fs::read(path).unwrap());
    let packed = folder.join(format!("../packed/{target}.hex"));
    let packed = fs::read_to_string(packed).unwrap();
    let found = packed.lines().map(|line| hex::decode(line).unwrap());
    named.chain(found).collect()
}

/// The next of numbers that look random (splitmix64).
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 33) as usize
}

/// A few changes of a kind that parsers trip over.
fn changed(state: &mut u64, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[next(state) % corpus.len()].clone();
    for _ in 0..next(state) % 5 {
        let at = next(state) % (bytes.len() + 1);
        match next(state) % 6 {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, next(state) as u8),
            2 if at < bytes.len() => bytes[at] ^= 1 << (next(state) % 8),
            3 if at < bytes.len() => bytes[at] = [0, 0x7f, 0xff, b' '][next(state) % 4],
            4 => {
                let other = &corpus[next(state) % corpus.len()];
                let from = next(state) % (other.len() + 1);
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let end = (at + next(state) % 40).min(bytes.len());
                let again = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes
}

#[test]
fn targets_hold_on_their_corpus_and_around_it() {
    let seed = std::env::var("BOWLINE_SEED").map_or(1, |seed| seed.parse().unwrap());
    for (name, target) in targets::ALL {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        for bytes in &corpus {
            target(bytes);
        }
        let mut state = seed;
        for input in 0..INPUTS {
            let bytes = changed(&mut state, &corpus);
            let held = std::panic::catch_unwind(|| target(&bytes));
            if let Err(panic) = held {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                eprintln!("{name}, seed {seed}, input {input}: {hex}");
                std::panic::resume_unwind(panic);
            }
        }
    }
}

#[test]
fn each_target_has_its_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let script = fs::read_to_string(folder.join("../tools/fuzz")).unwrap();
    for (name, _) in targets::ALL {
        assert!(folder.join(format!("targets/{name}.rs")).exists(), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        assert!(script.contains(name), "{name}");
    }
}
