//! The files that an `Include` names.
//!
//! Owns `*` and `?` in the parts of a path. It reads folders, never files.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use bowline_proto::pattern;

/// The most entries of a folder that are compared.
const ENTRIES_MAX: usize = 10_000;

/// Finds the files that a name stands for, sorted, at most `files_max`.
///
/// A relative name starts in `folder`. A name without a pattern is given as it is, whether there is such a file
/// or not.
pub(super) fn find(name: &str, folder: &Path, home: &Path, files_max: usize) -> Vec<PathBuf> {
    let name = match name.strip_prefix("~/") {
        Some(rest) => home.join(rest),
        None => folder.join(name),
    };
    let mut found = vec![PathBuf::new()];
    for component in name.components() {
        let part = component.as_os_str().as_bytes();
        let is_pattern = matches!(component, Component::Normal(_))
            && part.iter().any(|byte| matches!(byte, b'*' | b'?'));
        found = match is_pattern {
            false => found.into_iter().map(|path| path.join(component)).collect(),
            true => found
                .iter()
                .flat_map(|path| matching_entries(path, part))
                .take(files_max)
                .collect(),
        };
    }
    found
}

fn matching_entries(folder: &Path, part: &[u8]) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<_> = entries
        .take(ENTRIES_MAX)
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| {
            // As in a shell, a pattern finds hidden files only if it begins with the dot.
            let hidden = name.as_bytes().starts_with(b".") && !part.starts_with(b".");
            !hidden && pattern::matches(part, name.as_bytes())
        })
        .collect();
    names.sort();
    names.into_iter().map(|name| folder.join(name)).collect()
}
