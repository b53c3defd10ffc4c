//! The side that gets the files: looks what it has, asks for the rest, and puts it in place.
//!
//! One thread takes in a message, acts, answers; of large files that are here already another says what blocks
//! they have, and a third writes what is taken of them. Nothing that the sender says makes a name that is
//! not one part of a path, follows a link, or is written where nobody asked for it.

mod attributes;
mod basis;
mod content;
mod entries;
mod freeing;
mod links;
mod place;
mod remove;
mod sums;
mod temporary;
mod writer;

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use bowline_proto::copy::{Entry, Message, Node, Options, VERSION};

use self::attributes::Owners;
use self::basis::Basis;
use self::content::Writing;
use self::entries::Level;
use self::freeing::Freeing;
use self::links::Links;
use self::place::Root;
use self::sums::Summing;
use self::temporary::Temporary;
use self::writer::Writer;
use super::link::{Input, Output, SharedOutput};
use super::tree::{Folder, Tree};
use super::{Attributes, Failure, WorkerError, worker};

/// Where a copy goes.
pub(crate) enum Destination {
    /// A path that a person wrote.
    Path(Vec<u8>),
    /// A descriptor that the one file is written to.
    Stream(OwnedFd),
}

/// A file whose content was asked for.
struct Pending {
    folder: Rc<Folder>,
    name: Vec<u8>,
    attributes: Attributes,
    /// As announced; no hole and no block may go further.
    size: u64,
    /// What of it is here already.
    have: Option<Box<Have>>,
    /// It was sent once and was not what it should be.
    again: bool,
}

/// What can be used instead of being sent.
#[derive(Default)]
struct Have {
    /// A beginning that an earlier attempt left, with its length and the hash up to there.
    partial: Option<(Temporary, u64, blake3::Hasher)>,
    /// Blocks of other files.
    basis: Basis,
}

/// A receiver at work.
struct Receiver {
    options: Options,
    output: SharedOutput,
    tree: Tree,
    root: Root,
    levels: Vec<Level>,
    /// The source of the command line that comes now.
    source: Option<usize>,
    /// The number of the next entry.
    next: u64,
    /// What the names cost that are remembered, in all open folders.
    names_bytes: usize,
    pending: HashMap<u64, Pending>,
    /// Files that are to be compared block by block, one after the other.
    to_compare: VecDeque<u64>,
    /// What is compared at the moment: files and blocks.
    comparing: (usize, u64),
    sums: Summing,
    /// Since the first block that was taken.
    writer: Option<Writer>,
    writing: Option<Writing>,
    freeing: Freeing,
    links: Links,
    owners: Owners,
    /// Entries that need nothing, not said yet.
    skipped: Option<(u64, u64)>,
    scanned: bool,
}

/// Takes in a copy until nothing is missing, on a thread that does nothing else.
///
/// # Errors
/// [`WorkerError`].
pub(crate) fn receive(
    destination: Destination,
    options: Options,
    mut input: Input,
    output: Output,
) -> Result<(), WorkerError> {
    worker::own_umask().map_err(WorkerError::Line)?;
    let output = SharedOutput::new(output);
    output.send(&Message::Hello(VERSION))?;
    output.flush()?;
    let root = Root::open(destination, &options)?;
    let mut receiver = Receiver {
        options,
        sums: Summing::new(output.clone()),
        output,
        tree: Tree::default(),
        root,
        levels: Vec::new(),
        source: None,
        next: 0,
        names_bytes: 0,
        pending: HashMap::new(),
        to_compare: VecDeque::new(),
        comparing: (0, 0),
        writer: None,
        writing: None,
        freeing: Freeing::new(),
        links: Links::default(),
        owners: Owners::default(),
        skipped: None,
        scanned: false,
    };
    let received = receiver.run(&mut input);
    if received.is_err() {
        // What is good stays for the next attempt.
        receiver.interrupt();
    }
    received
}

impl Receiver {
    fn run(&mut self, input: &mut Input) -> Result<(), WorkerError> {
        match input.next()? {
            Some(Message::Hello(VERSION)) => {}
            Some(Message::Hello(version)) => return Err(WorkerError::Version(version)),
            Some(_) => return Err(WorkerError::Rules("no greeting")),
            None => return Err(broken()),
        }
        self.enter_root();
        while !self.is_done() {
            if input.would_wait()? {
                self.say_skipped()?;
                self.output.flush()?;
            }
            let Some(message) = input.next()? else {
                return Err(broken());
            };
            self.take(&message)?;
        }
        self.leave_root()?;
        self.say_skipped()?;
        // Of what nobody needed, the end is still to be said.
        self.sums.end();
        self.output.send(&Message::Finished)?;
        self.output.flush()
    }

    fn is_done(&self) -> bool {
        self.scanned && self.pending.is_empty() && self.writing.is_none()
    }

    fn take(&mut self, message: &Message<'_>) -> Result<(), WorkerError> {
        match message {
            Message::Data(bytes) => self.data(bytes),
            Message::Small {
                id, hash, bytes, ..
            } => self.small(*id, hash, bytes),
            Message::Entry(entry) if !self.scanned => self.entry(entry),
            Message::Source(index) if self.levels.len() == 1 => self.source(*index),
            Message::FolderEnd { whole } => self.folder_end(*whole),
            Message::ScanEnd if self.levels.len() == 1 => {
                self.scanned = true;
                Ok(())
            }
            Message::Owner { group, id, name } => {
                self.owners.learn(*group, *id, name);
                Ok(())
            }
            Message::Begin { id, from } => self.begin(*id, *from),
            Message::Hole(len) => self.hole(*len),
            Message::Blocks { first, count } => self.blocks(*first, *count),
            Message::Finish { hash, .. } => self.finish(hash),
            Message::Abort { id, .. } => self.abort(*id),
            Message::Same { id, hash } => self.same(*id, hash.as_ref()),
            Message::Redo { id } => self.redo(*id),
            // For the client, which sees everything that passes.
            Message::Problem { .. } => Ok(()),
            _ => Err(WorkerError::Rules("a message out of its place")),
        }
    }

    fn source(&mut self, index: u64) -> Result<(), WorkerError> {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let later = self.source.is_none_or(|before| before < index);
        if !later || index >= self.options.permits.len() {
            return Err(WorkerError::Rules("a source that there is not"));
        }
        self.source = Some(index);
        Ok(())
    }

    /// What became of an entry that was worked on.
    fn done(&mut self, id: u64, result: Result<(), Failure>) -> Result<(), WorkerError> {
        self.say_skipped()?;
        let failure = result.err().unwrap_or(Failure::new("", ""));
        self.output.send(&Message::Done {
            id,
            code: failure.code.as_bytes(),
            text: failure.text.as_bytes(),
        })
    }

    /// Something failed that is not about an entry.
    fn problem(&mut self, path: &[u8], failure: &Failure) -> Result<(), WorkerError> {
        self.output.send(&Message::Problem {
            path,
            code: failure.code.as_bytes(),
            text: failure.text.as_bytes(),
        })
    }

    /// An entry is as it should be.
    fn skip(&mut self, id: u64) -> Result<(), WorkerError> {
        match &mut self.skipped {
            Some((first, count)) if *first + *count == id => *count += 1,
            _ => {
                self.say_skipped()?;
                self.skipped = Some((id, 1));
            }
        }
        Ok(())
    }

    fn say_skipped(&mut self) -> Result<(), WorkerError> {
        match self.skipped.take() {
            Some((first, count)) => self.output.send(&Message::Skip { first, count }),
            None => Ok(()),
        }
    }

    /// An entry of a folder is finished, and perhaps with it the folder, and so on.
    fn release(&mut self, folder: &Rc<Folder>) -> Result<(), WorkerError> {
        let mut at = Some(folder.clone());
        while let Some(folder) = at {
            folder.left.set(folder.left.get().saturating_sub(1));
            if folder.left.get() > 0 {
                return Ok(());
            }
            if let Some(attributes) = folder.finally.take()
                && let Err(failure) = self.finish_folder(&folder, &attributes)
            {
                let path = folder.path_of(b"");
                self.problem(path.strip_suffix(b"/").unwrap_or(&path), &failure)?;
            }
            at = folder.parent.clone();
        }
        Ok(())
    }
}

impl Attributes {
    fn of(entry: &Entry<'_>) -> Self {
        Self {
            mode: entry.mode,
            mtime: (entry.mtime, entry.mtime_ns),
            uid: entry.uid,
            gid: entry.gid,
        }
    }
}

/// A file's announced size; a stream has none, and neither holes nor blocks.
fn size_of(node: &Node<'_>) -> u64 {
    match node {
        Node::Regular { size, .. } => *size,
        _ => 0,
    }
}

fn broken() -> WorkerError {
    WorkerError::Line(std::io::ErrorKind::UnexpectedEof.into())
}
