//! What of a wanted file is here already: the beginning that an earlier attempt left, and blocks of the old
//! file. It is offered to the sender, and used where the sender says so.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bowline_proto::copy::{Hash, Layout, Message, SUM_BYTES};
use rustix::fs::{Mode, OFlags};

use super::super::bytes;
use super::super::tree;
use super::super::{Failure, LARGE_BYTES_MIN, WorkerError};
use super::freeing::Freeing;
use super::sums::Job;
use super::temporary::Temporary;
use super::{Have, Pending, Receiver};

/// Files that are compared at a time, each with an open descriptor or more.
pub(super) const FILES_MAX: usize = 64;
/// Blocks that were offered and not used yet, of all files; one file may have more.
const BLOCKS_UNDER_WAY_MAX: u64 = 128 * 1024;

/// Files that are here, and how they are cut into blocks.
#[derive(Debug, Default)]
pub(super) struct Basis {
    files: Vec<Arc<OwnedFd>>,
    sizes: [u64; 2],
    /// Once they were offered.
    layout: Option<Layout>,
    /// Nobody needs their sums any more.
    needless: Arc<AtomicBool>,
    /// Left by earlier attempts: removed when the file is finished.
    left: Vec<Temporary>,
}

impl Basis {
    fn push(&mut self, file: Arc<OwnedFd>, size: u64) {
        if let Some(place) = self.sizes.get_mut(self.files.len()) {
            *place = size;
            self.files.push(file);
        }
    }

    /// Cuts the files into blocks, if that is worth their sums for a file of this size.
    fn lay_out(&mut self, size: u64) {
        let layout = Layout::of(self.sizes);
        let cost = layout.count().saturating_mul(SUM_BYTES as u64);
        self.layout = (!self.files.is_empty() && cost < size / 2).then_some(layout);
    }

    /// Blocks that were offered.
    fn len(&self) -> u64 {
        self.layout.map_or(0, |layout| layout.count())
    }

    /// Where so many blocks lie, as far as they lie in one file: it, its offset there, their length.
    pub(super) fn place(&self, first: u64, count: u64) -> Option<(&Arc<OwnedFd>, u64, u64)> {
        let layout = self.layout?;
        let count = count.min(layout.count().checked_sub(first)?);
        let place = layout.place(first, count)?;
        Some((self.files.get(place.file)?, place.offset, place.len))
    }

    /// How long a block is.
    pub(super) fn block(&self) -> u64 {
        self.layout.map_or(0, |layout| layout.block() as u64)
    }

    /// Whether it is the old file alone, and has this content.
    ///
    /// # Errors
    /// As pread(2).
    pub(super) fn is(&self, hash: &Hash) -> io::Result<bool> {
        let ([file], [size, _]) = (self.files.as_slice(), self.sizes) else {
            return Ok(false);
        };
        let mut hasher = blake3::Hasher::new();
        let whole = bytes::hash_prefix(file.as_fd(), size, &mut hasher)?;
        Ok(whole && self.left.is_empty() && hasher.finalize().as_bytes() == hash)
    }

    /// Has those closed elsewhere that are replaced now.
    pub(super) fn free(&self, freeing: &mut Freeing) {
        self.files.iter().for_each(|file| freeing.take(file));
    }

    pub(super) fn left(&self) -> &[Temporary] {
        &self.left
    }

    pub(super) fn take_left(&mut self) -> Vec<Temporary> {
        std::mem::take(&mut self.left)
    }
}

impl Receiver {
    /// Asks for the files whose turn it is to be compared.
    pub(super) fn compare_next(&mut self) -> Result<(), WorkerError> {
        while let Some(id) = self.to_compare.front().copied() {
            let (files, blocks) = self.comparing;
            if files > 0 && (files >= FILES_MAX || blocks >= BLOCKS_UNDER_WAY_MAX) {
                return Ok(());
            }
            self.to_compare.pop_front();
            if let Some(pending) = self.pending.remove(&id) {
                let pending = self.compare(id, pending)?;
                self.pending.insert(id, pending);
            }
        }
        Ok(())
    }

    /// Offers what is here of one file.
    fn compare(&mut self, id: u64, mut pending: Pending) -> Result<Pending, WorkerError> {
        self.say_skipped()?;
        let mut have = pending.have.take().unwrap_or_default();
        // What cannot be read cannot be used, and is replaced like anything else.
        let _ = self.gather(&pending, &mut have);
        have.basis.lay_out(pending.size);
        let prefix = have
            .partial
            .as_ref()
            .map(|(_, len, hasher)| (*len, *hasher.finalize().as_bytes()));
        self.output.send(&Message::Want {
            id,
            prefix,
            same: None,
            blocks: have.basis.layout,
        })?;
        if let Some(layout) = have.basis.layout {
            self.sums.begin(Job {
                files: have.basis.files.clone(),
                layout,
                needless: Arc::clone(&have.basis.needless),
            })?;
        }
        self.comparing.0 += 1;
        self.comparing.1 += have.basis.len();
        pending.have = Some(have);
        Ok(pending)
    }

    fn gather(&mut self, pending: &Pending, have: &mut Have) -> io::Result<()> {
        let folder = self.tree.fd(&pending.folder)?;
        if have.basis.left.is_empty() && have.partial.is_none() {
            let found = Temporary::find(folder.as_fd(), &pending.name, self.options.origin)?;
            match found {
                Some((partial, len)) if len > 0 && len <= pending.size => {
                    let mut hasher = blake3::Hasher::new();
                    if bytes::hash_prefix(partial.fd.as_fd(), len, &mut hasher)? {
                        have.partial = Some((partial, len, hasher));
                    }
                }
                Some((other, _)) => other.remove(folder.as_fd()),
                None => {}
            }
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let Ok(old) = tree::open(folder.as_fd(), &pending.name, flags, Mode::empty()) else {
            return Ok(());
        };
        let stat = rustix::fs::fstat(&old)?;
        let regular = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if regular && size >= LARGE_BYTES_MIN {
            have.basis.push(Arc::new(old), size);
        }
        Ok(())
    }

    /// A file that was compared needs its descriptors no more.
    pub(super) fn compared(&mut self, have: &Have) -> Result<(), WorkerError> {
        have.basis.needless.store(true, Ordering::Relaxed);
        self.comparing.0 = self.comparing.0.saturating_sub(1);
        self.comparing.1 = self.comparing.1.saturating_sub(have.basis.len());
        self.compare_next()
    }

    /// What was offered as the beginning of a file is not: its blocks may serve.
    pub(super) fn redo(&mut self, id: u64) -> Result<(), WorkerError> {
        let Some(mut pending) = self.pending.remove(&id) else {
            return Err(WorkerError::Rules("a file again that is not under way"));
        };
        if self.options.dry_run {
            self.release(&Rc::clone(&pending.folder))?;
            return self.done(id, Ok(()));
        }
        let Some(mut have) = pending.have.take() else {
            return Err(NOTHING_OFFERED);
        };
        let Some((partial, len, _)) = have.partial.take() else {
            return Err(NOTHING_OFFERED);
        };
        self.compared(&have)?;
        let mut basis = Basis::default();
        basis.push(Arc::clone(&partial.fd), len);
        basis.left.push(partial);
        pending.have = Some(Box::new(Have {
            partial: None,
            basis,
        }));
        self.pending.insert(id, pending);
        self.to_compare.push_back(id);
        self.compare_next()
    }

    /// Takes away what earlier attempts have left of a file that is finished now.
    pub(super) fn tidy(&mut self, pending: &mut Pending) -> Result<(), Failure> {
        let Some(have) = &mut pending.have else {
            return Ok(());
        };
        let partial = have.partial.take().map(|(partial, ..)| partial);
        let left = have.basis.take_left().into_iter().chain(partial);
        let folder = self.tree.fd(&pending.folder)?;
        left.for_each(|left| left.remove(folder.as_fd()));
        Ok(())
    }
}

const NOTHING_OFFERED: WorkerError = WorkerError::Rules("a file again that nothing was offered of");
