//! Trees of every kind, copied both ways and compared with what `rsync -aH` makes of them.
//!
//! `BOWLINE_SEED=n` begins at another tree, `BOWLINE_TREES=n` tries so many.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use super::Bench;

/// The next of numbers that look random (splitmix64).
pub(super) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

pub(super) fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

const SIZES: &[usize] = &[
    0, 1, 17, 4095, 4096, 4097, 65_536, 131_072, 131_073, 400_000,
];
const NAMES: &[&[u8]] = &[
    b"plain",
    b"with blank",
    b" lead",
    b"-rf",
    b"new\nline",
    b"\x1b[31m",
    b"\xff\xfe",
    b"*?[x]",
    b"a\\b",
    b"\"q\"",
    b".hidden",
    b"...",
    b"\xc3\xbc",
    b"CASE",
    b"case",
    b"'",
    b"$HOME",
    b"tab\t",
    b".x.bowline-1",
];

struct Maker {
    state: u64,
    made: Vec<PathBuf>,
}

impl Maker {
    fn pick(&mut self, below: usize) -> usize {
        (next(&mut self.state) % below as u64) as usize
    }

    fn name(&mut self) -> OsString {
        let base = NAMES[self.pick(NAMES.len())];
        OsString::from_vec(match self.pick(8) {
            0 => vec![b'n'; 255],
            1 => [base, format!("{}", self.pick(100)).as_bytes()].concat(),
            _ => base.to_vec(),
        })
    }

    fn fill(&mut self, folder: &Path, depth: usize) {
        for _ in 0..self.pick(9) {
            let path = folder.join(self.name());
            if path.symlink_metadata().is_ok() {
                continue;
            }
            match self.pick(10) {
                0..=4 => self.file(&path),
                5 | 6 if depth < 4 => {
                    fs::create_dir(&path).unwrap();
                    self.fill(&path, depth + 1);
                    let mode = [0o755, 0o700, 0o555, 0o1777][self.pick(4)];
                    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                }
                7 => {
                    let target = [&b"../x"[..], b"/etc/passwd", b".", b"no\nthing"][self.pick(4)];
                    symlink(std::ffi::OsStr::from_bytes(target), &path).unwrap();
                    // rsync leaves the time of a link alone that is right to the second.
                    let past = rustix::fs::Timespec {
                        tv_sec: self.pick(1_000_000_000) as i64,
                        tv_nsec: 5,
                    };
                    let times = rustix::fs::Timestamps {
                        last_access: past,
                        last_modification: past,
                    };
                    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).unwrap();
                }
                8 if !self.made.is_empty() => {
                    let other = self.pick(self.made.len());
                    let other = self.made[other].clone();
                    fs::hard_link(other, &path).unwrap();
                }
                _ => self.sparse(&path),
            }
        }
        self.date(folder);
    }

    fn file(&mut self, path: &Path) {
        let size = SIZES[self.pick(SIZES.len())];
        fs::write(path, super::noise(next(&mut self.state), size)).unwrap();
        let mode = [0o644, 0o600, 0o755, 0o444, 0o4755, 0o000][self.pick(6)];
        // Only root reads what nobody may.
        let mode = if mode == 0 && !crate::server::is_root() {
            0o400
        } else {
            mode
        };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        self.date(path);
        self.made.push(path.to_owned());
    }

    fn sparse(&mut self, path: &Path) {
        use std::os::unix::fs::FileExt;
        let file = fs::File::create(path).unwrap();
        let len = 3_000_000 + self.pick(1_000_000) as u64;
        file.set_len(len).unwrap();
        let at = self.pick(2_000_000) as u64;
        file.write_all_at(b"in the middle", at).unwrap();
        self.date(path);
    }

    fn date(&mut self, path: &Path) {
        let time = UNIX_EPOCH
            + Duration::new(
                self.pick(2_000_000_000) as u64,
                self.pick(1_000_000_000) as u32,
            );
        fs::File::open(path).unwrap().set_modified(time).unwrap();
    }
}

/// What matters of an entry.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    mode: u32,
    mtime: (i64, i64),
    owner: (u32, u32),
    content: Vec<u8>,
    /// The first path with the same inode.
    first: PathBuf,
}

/// Everything below a folder, by path.
fn facts(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let (mut found, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(root.join(&folder)).unwrap();
        let mut entries: Vec<_> = entries
            .map(|entry| folder.join(entry.unwrap().file_name()))
            .collect();
        entries.sort();
        for path in entries {
            let meta = root.join(&path).symlink_metadata().unwrap();
            let content = match meta.file_type() {
                kind if kind.is_dir() => {
                    folders.push(path.clone());
                    Vec::new()
                }
                kind if kind.is_symlink() => {
                    let target = fs::read_link(root.join(&path)).unwrap();
                    target.into_os_string().into_vec()
                }
                _ => blake3::hash(&fs::read(root.join(&path)).unwrap())
                    .as_bytes()
                    .to_vec(),
            };
            let first = inodes.entry(meta.ino()).or_insert(path.clone()).clone();
            let facts = Facts {
                mode: meta.mode(),
                mtime: (meta.mtime(), meta.mtime_nsec()),
                owner: (meta.uid(), meta.gid()),
                content,
                first,
            };
            found.insert(path, facts);
        }
    }
    found
}

#[track_caller]
pub(super) fn assert_same(a: &Path, b: &Path, about: &str) {
    let (a, b) = (facts(a), facts(b));
    for (path, facts) in &a {
        assert_eq!(Some(facts), b.get(path), "{about}: {path:?}");
    }
    let more: Vec<_> = b.keys().filter(|path| !a.contains_key(*path)).collect();
    assert!(more.is_empty(), "{about}: {more:?}");
}

fn rsync(from: &Path, to: &Path) {
    let status = Command::new("rsync").arg("-aH").arg(from).arg(to).status();
    assert!(
        status
            .expect("rsync, of the package of that name")
            .success()
    );
}

#[test]
fn trees_are_what_rsync_makes_of_them() {
    let bench = Bench::new();
    let seed = number("BOWLINE_SEED", 1);
    for seed in seed..seed + number("BOWLINE_TREES", 6) {
        let dir = bench.path(&format!("tree{seed}"));
        for name in ["src", "rsync", "there", "here", "between"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let mut maker = Maker {
            state: seed,
            made: Vec::new(),
        };
        let tree = dir.join("src/tree");
        fs::create_dir(&tree).unwrap();
        while maker.made.len() < 8 {
            maker.fill(&tree, 0);
        }
        rsync(&tree, &dir.join("rsync"));
        let at = |name: &str| format!("tree{seed}/{name}");
        bench.well(&[
            "-a",
            &bench.here(&at("src/tree")),
            &bench.there(&at("there")),
        ]);
        bench.well(&[
            "-a",
            &bench.there(&at("src/tree")),
            &bench.here(&at("here")),
        ]);
        bench.well(&[
            "-a",
            &bench.there(&at("here/tree")),
            &bench.there(&at("between")),
        ]);
        for name in ["there", "here", "between"] {
            assert_same(
                &dir.join("rsync"),
                &dir.join(name),
                &format!("seed {seed}, {name}"),
            );
        }
        // Again, over what is there and over another tree.
        let (status, _, summary) = bench.json(&[
            "-a",
            &bench.here(&at("src/tree")),
            &bench.there(&at("there")),
        ]);
        assert_eq!(
            (status, &summary["copied"]),
            (Some(0), &0.into()),
            "seed {seed}"
        );
        let mut other = Maker {
            state: seed + 1000,
            made: Vec::new(),
        };
        let changed = dir.join("src/other");
        fs::create_dir(&changed).unwrap();
        other.fill(&changed, 0);
        let from = bench.here(&at("src/other/."));
        let output = bench.cp(&["-a", "--delete", &from, &bench.there(&at("there/tree"))]);
        // Where a file has become a folder, or the other way, that one fails and is said.
        match output.status.code() {
            Some(0) => assert_same(
                &changed,
                &dir.join("there/tree"),
                &format!("seed {seed}, over"),
            ),
            code => assert_eq!(code, Some(23), "seed {seed}: {output:?}"),
        }
    }
}

#[test]
fn a_deep_tree_and_a_sparse_file_of_five_gibibytes() {
    let bench = Bench::new();
    let mut deep = bench.path("src");
    for _ in 0..300 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "x").unwrap();
    let sparse = fs::File::create(bench.path("src/sparse")).unwrap();
    sparse.set_len(5 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"here", 3 << 30).unwrap();
    bench.well(&[&bench.here("src"), &bench.there("there")]);
    bench.well(&[&bench.there("there"), &bench.here("here")]);
    for to in ["there", "here"] {
        let meta = bench.path(to).join("sparse").metadata().unwrap();
        assert_eq!(meta.len(), 5 << 30);
        assert!(meta.blocks() < 10_000, "{to}: {} blocks", meta.blocks());
        let file = fs::File::open(bench.path(to).join("sparse")).unwrap();
        let mut middle = [0; 6];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut middle, (3 << 30) - 1).unwrap();
        assert_eq!(&middle, b"\0here\0");
        let bottom = deep.strip_prefix(bench.path("src")).unwrap().join("bottom");
        assert_eq!(
            fs::read_to_string(bench.path(to).join(bottom)).unwrap(),
            "x"
        );
    }
}
