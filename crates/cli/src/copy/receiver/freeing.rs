//! Large files that were replaced, on their way out of the memory or the disk.
//!
//! The kernel frees a file when its last descriptor is closed, which takes 0.1 to 0.5 s for 2 GiB in memory, and a process
//! does not end before, on whatever thread it closes. The copy is complete by then. So that nobody waits, the last
//! descriptor is that of a process of its own, which has nothing to do but end.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

/// Files from this size on are worth a process.
const WORTH_BYTES: u64 = 256 * 1024 * 1024;
/// This program, also where its file was replaced by a newer one.
const PROGRAM: &str = "/proc/self/exe";

/// Hands files over, and knows the processes that may not have ended yet.
#[derive(Debug)]
pub(super) struct Freeing {
    program: &'static str,
    worth: u64,
    children: Vec<Child>,
}

impl Freeing {
    pub(super) fn new() -> Self {
        Self {
            program: PROGRAM,
            worth: WORTH_BYTES,
            children: Vec::new(),
        }
    }

    /// Has a file closed elsewhere, where that is worth it: the caller's own descriptor is not the last then.
    pub(super) fn take(&mut self, file: &OwnedFd) {
        // Those that have ended are collected.
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        self.children.retain_mut(|child| !ended(child));
        // What cannot be handed over is freed here.
        if self.is_worth_it(file)
            && let Ok(child) = self.hand_over(file)
        {
            self.children.push(child);
        }
    }

    /// Whether it is large and has no name any more.
    fn is_worth_it(&self, file: &OwnedFd) -> bool {
        let stat = rustix::fs::fstat(file);
        stat.is_ok_and(|stat| {
            let stored = u64::try_from(stat.st_blocks).unwrap_or(0);
            stat.st_nlink == 0 && stored.saturating_mul(512) >= self.worth
        })
    }

    fn hand_over(&self, file: &OwnedFd) -> io::Result<Child> {
        Command::new(self.program)
            .args(["copy-worker", "free"])
            .stdin(file.try_clone()?)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn only_a_large_file_without_a_name_is_handed_over_and_its_process_collected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut freeing = Freeing {
            program: "true",
            worth: 64 * 1024,
            children: Vec::new(),
        };
        let mut take = |len: usize, named: bool| {
            fs::write(&path, vec![1; len]).unwrap();
            let file = OwnedFd::from(File::open(&path).unwrap());
            if !named {
                fs::remove_file(&path).unwrap();
            }
            freeing.take(&file);
            freeing.children.iter_mut().for_each(|child| {
                assert!(child.wait().unwrap().success());
            });
            freeing.children.len()
        };
        assert_eq!(take(128 * 1024, true), 0);
        assert_eq!(take(8 * 1024, false), 0);
        assert_eq!(take(128 * 1024, false), 1);
        assert_eq!(take(128 * 1024, false), 1, "the one before is collected");
        assert_eq!(take(8 * 1024, false), 0);
    }
}
