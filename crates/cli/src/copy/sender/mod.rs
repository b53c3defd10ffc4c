//! The side that has the files: walks them, is told what is wanted, sends it.
//!
//! One thread walks and sends; another takes in the answers, so that neither side ever waits
//! for the other with both lines full.

mod answers;
mod changes;
mod content;
mod place;
mod scan;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bowline_proto::copy::{Message, Options, VERSION, WINDOW_ENTRIES};

use self::answers::{Answer, Answers};
pub(crate) use self::place::{Source, expand, expand_home, permit};
use self::scan::{Scan, Stamp};
use super::link::{Input, Output};
use super::tree::{Folder, Tree};
use super::{Failure, WorkerError};

/// Entries that are walked between two looks at what was answered.
const ENTRIES_AT_ONCE: usize = 64;
/// Bytes of entries that are worth a write, so that the receiver gets to work early.
const ENTRY_BYTES_WORTH: usize = 16 * 1024;

/// A file that may still be asked for.
struct Offered {
    folder: Rc<Folder>,
    name: Box<[u8]>,
    stamp: Stamp,
    /// It is the stream, not a file.
    stream: bool,
}

/// A sender at work.
struct Sender {
    options: Options,
    output: Output,
    tree: Tree,
    offered: HashMap<u64, Offered>,
    /// Entries sent so far: the number of the next.
    sent: u64,
    answered: u64,
    /// Scratch for small files.
    buffer: Vec<u8>,
}

/// Sends the sources to whoever is at the other end, until it has what it wants.
///
/// # Errors
/// [`WorkerError`].
pub(crate) fn send(
    sources: Vec<Source>,
    options: Options,
    input: Input,
    output: Output,
) -> Result<(), WorkerError> {
    let answers = Arc::new(Answers::new().map_err(WorkerError::Line)?);
    let reader = answers.clone();
    // It ends with the stream, or with the first mistake in it.
    let thread = std::thread::Builder::new().name("answers".to_owned());
    let thread = thread.spawn(move || reader.fill(input));
    let thread = thread.map_err(WorkerError::Line)?;
    let mut sender = Sender {
        options,
        output,
        tree: Tree::default(),
        offered: HashMap::new(),
        sent: 0,
        answered: 0,
        buffer: Vec::new(),
    };
    let sent = sender.run(sources, &answers);
    if sent.is_ok() {
        // The receiver said that it has finished, so nothing more comes.
        drop(sender);
        let _ = thread.join();
    }
    sent
}

impl Sender {
    fn run(&mut self, sources: Vec<Source>, answers: &Answers) -> Result<(), WorkerError> {
        self.output.send(&Message::Hello(VERSION))?;
        let mut scan = Scan::new(sources);
        let mut walking = true;
        loop {
            let idle = !(walking && self.sent - self.answered < WINDOW_ENTRIES);
            if idle && answers.is_empty() {
                self.output.flush()?;
            }
            if let Some(answer) = answers.next(idle)? {
                if let Answer::Finished = answer {
                    return Ok(());
                }
                self.answer(answer, answers)?;
            } else if walking {
                for _ in 0..ENTRIES_AT_ONCE {
                    walking = walking && scan.step(self)?;
                }
                if !walking {
                    self.output.send(&Message::ScanEnd)?;
                }
                if self.output.waiting() > ENTRY_BYTES_WORTH {
                    self.output.flush()?;
                }
            }
        }
    }

    fn answer(&mut self, answer: Answer, answers: &Answers) -> Result<(), WorkerError> {
        match answer {
            Answer::Skip { first, count } => {
                if count > self.sent || first > self.sent - count {
                    return Err(WorkerError::Rules(
                        "an answer about an entry that was not sent",
                    ));
                }
                for id in first..first + count {
                    self.forget(id)?;
                }
            }
            Answer::Done { id } => self.forget(id)?,
            Answer::Want(want) => {
                let Some(offered) = self.offered.get(&want.id) else {
                    return Err(WorkerError::Rules("a file is wanted that was not offered"));
                };
                let (folder, name) = (offered.folder.clone(), offered.name.clone());
                let (stamp, stream) = (offered.stamp, offered.stream);
                content::send(self, &want, &folder, &name, stamp, stream, answers)?;
            }
            Answer::Finished => {}
        }
        Ok(())
    }

    fn forget(&mut self, id: u64) -> Result<(), WorkerError> {
        if self.answered == self.sent {
            return Err(WorkerError::Rules("more answers than entries"));
        }
        self.answered += 1;
        self.offered.remove(&id);
        Ok(())
    }

    fn problem(&mut self, path: &[u8], failure: &Failure) -> Result<(), WorkerError> {
        self.output.send(&Message::Problem {
            path,
            code: failure.code.as_bytes(),
            text: failure.text.as_bytes(),
        })
    }

    fn abort(&mut self, id: u64, failure: &Failure) -> Result<(), WorkerError> {
        self.output.send(&Message::Abort {
            id,
            code: failure.code.as_bytes(),
            text: failure.text.as_bytes(),
        })
    }
}

#[cfg(test)]
mod tests;
