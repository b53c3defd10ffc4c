//! The sources of a copy: paths that the person at the command line wrote.
//!
//! These, and only these, are handed to the kernel as paths, links and all.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bowline_proto::copy::{Permit, glob};
use rustix::fs::{Mode, OFlags};

use super::super::tree;

/// Paths that one pattern may stand for.
const PATHS_MAX: usize = 100_000;

/// Something to be copied.
#[derive(Debug)]
pub(crate) enum Source {
    /// A path, with the number of the source that it belongs to.
    Path(u64, Vec<u8>),
    /// What comes out of this descriptor, as a file without a name.
    Stream(OwnedFd),
}

/// How a path names what is to be copied.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named<'a> {
    /// All that is in this folder.
    Contents(&'a [u8]),
    /// This name in this folder.
    Entry {
        folder: &'a [u8],
        name: &'a [u8],
        /// It was written with a slash behind it: a folder, also where it is a link to one.
        slash: bool,
    },
}

/// Takes a path apart.
pub(super) fn named(path: &[u8]) -> Named<'_> {
    let mut end = path.len();
    while end > 0 && path.get(end - 1) == Some(&b'/') {
        end -= 1;
    }
    let trimmed = path.get(..end).unwrap_or_default();
    let cut = trimmed
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |at| at + 1);
    let (folder, name) = trimmed.split_at_checked(cut).unwrap_or_default();
    match name {
        b"" if path.is_empty() => Named::Contents(b"."),
        b"" | b"." | b".." => Named::Contents(path),
        name => Named::Entry {
            folder: if folder.is_empty() { b"." } else { folder },
            name,
            slash: end < path.len(),
        },
    }
}

/// What a source may be called in the copy. A pattern is what a remote path is; the name of
/// a local one is meant as it is.
pub(crate) fn permit(path: &[u8], is_pattern: bool) -> Permit {
    match named(path) {
        Named::Contents(_) => Permit::Contents,
        Named::Entry { name, .. } if is_pattern => Permit::Name(name.to_vec()),
        Named::Entry { name, .. } => {
            let escape = |byte: &u8| match byte {
                b'*' | b'?' | b'[' | b'\\' => vec![b'\\', *byte],
                byte => vec![*byte],
            };
            Permit::Name(name.iter().flat_map(escape).collect())
        }
    }
}

/// Opens a folder by the path that a person wrote.
pub(super) fn open_folder(path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// A remote path as it was written: `~/` at the front, or nothing at all, is where a job begins: at home.
pub(crate) fn expand_home(path: &[u8]) -> Vec<u8> {
    let rest = match path {
        b"" | b"~" => b".",
        [b'~', b'/', rest @ ..] => match rest.iter().position(|byte| *byte != b'/') {
            Some(at) => rest.get(at..).unwrap_or_default(),
            None => b".",
        },
        path => path,
    };
    rest.to_vec()
}

/// The paths that a pattern stands for, sorted; the pattern itself, as the shell does, where
/// there are none.
pub(crate) fn expand(pattern: &[u8]) -> Vec<Vec<u8>> {
    let pattern = expand_home(pattern);
    let pattern = pattern.as_slice();
    let given = || vec![glob::literal(pattern)];
    if !glob::is_pattern(pattern) {
        return given();
    }
    let exists = |path: &[u8]| {
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        path.symlink_metadata().is_ok()
    };
    if exists(pattern) {
        return vec![pattern.to_vec()];
    }
    let mut paths: Vec<Vec<u8>> = vec![Vec::new()];
    for part in pattern.split_inclusive(|byte| *byte == b'/') {
        let (name, slashes) = match part.strip_suffix(b"/") {
            Some(name) => (name, &b"/"[..]),
            None => (part, &b""[..]),
        };
        paths = paths
            .iter()
            .flat_map(|path| in_folder(path, name))
            .map(|path| [&path, slashes].concat())
            .take(PATHS_MAX)
            .collect();
    }
    paths.retain(|path| exists(path));
    if paths.is_empty() {
        return vec![pattern.to_vec()];
    }
    paths
}

/// The paths of what in `folder`, which is empty or ends in a slash, has a name that matches.
fn in_folder(folder: &[u8], pattern: &[u8]) -> Vec<Vec<u8>> {
    if !glob::is_pattern(pattern) {
        return vec![[folder, &glob::literal(pattern)].concat()];
    }
    let open = open_folder(if folder.is_empty() { b"." } else { folder });
    let names = open.and_then(|fd| tree::names(std::os::fd::AsFd::as_fd(&fd)));
    let mut names = names.unwrap_or_default();
    names.retain(|name| glob::matches_name(pattern, name));
    names.sort();
    names.iter().map(|name| [folder, name].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart_as_scp_does() {
        let entry = |folder, name, slash| Named::Entry {
            folder,
            name,
            slash,
        };
        assert_eq!(named(b"a"), entry(b".", b"a", false));
        assert_eq!(named(b"a/b//"), entry(b"a/", b"b", true));
        assert_eq!(named(b"/b"), entry(b"/", b"b", false));
        assert_eq!(named(b"a/."), Named::Contents(b"a/."));
        assert_eq!(named(b"a/../"), Named::Contents(b"a/../"));
        assert_eq!(named(b"/"), Named::Contents(b"/"));
        assert_eq!(named(b""), Named::Contents(b"."));
    }

    #[test]
    fn wildcards_are_expanded_part_by_part() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/x.c", "a/y.c", "b/z.c", "b/.h.c", "a*b/q"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let root = dir.path().to_str().unwrap();
        let of = |pattern: &str| {
            let found = expand(format!("{root}/{pattern}").as_bytes());
            let short =
                |path: Vec<u8>| String::from_utf8(path).unwrap()[root.len() + 1..].to_owned();
            found.into_iter().map(short).collect::<Vec<_>>()
        };
        assert_eq!(of("?/*.c"), ["a/x.c", "a/y.c", "b/z.c"]);
        assert_eq!(of("b/.*"), ["b/.h.c"]);
        assert_eq!(of("none*"), ["none*"]);
        assert_eq!(of("a*b"), ["a*b"]);
        assert_eq!(of("a\\*b/q"), ["a*b/q"]);
        assert_eq!(of("[ab]/"), ["a/", "b/"]);
        assert_eq!(expand(b"~"), [b"."]);
        assert_eq!(expand(b"~//x"), [b"x"]);
    }
}
