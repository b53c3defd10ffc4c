//! Messages and their bytes.
//!
//! ```text
//! sender                                     receiver
//!   entry, entry, entry, …          ───────►   looks what it has
//!                                   ◄───────   skip, want, want (with hashes of what it has) …
//!   small, begin data … finish, …   ───────►   writes, compares, renames
//!                                   ◄───────   done, done …
//!   scan end                        ───────►
//!                                   ◄───────   finished
//! ```

use super::fields::{Fields, put_bytes, put_number, put_signed};
use super::{
    CODE_BYTES_MAX, CopyError, DATA_BYTES_MAX, HEAD_BYTES, Hash, Layout, MAGIC, NAME_BYTES_MAX,
    Options, PAYLOAD_BYTES_MAX, REPORT_BYTES_MAX, Sums, TARGET_BYTES_MAX,
};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node<'a> {
    /// A file of about so many bytes; `linked` if others may name it in `HardLink`.
    Regular {
        /// As the sender's file system says; the data may turn out otherwise.
        size: u64,
        /// It has several names.
        linked: bool,
    },
    /// A stream: nobody knows its size.
    Stream,
    /// A folder; what follows is in it, up to its `FolderEnd`.
    Folder,
    /// A symbolic link to this text.
    Symlink(&'a [u8]),
    /// Another name of the file with this number.
    HardLink(u64),
}

/// A file, a folder or a link in the folder that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// One part of a path.
    pub name: &'a [u8],
    /// What it is.
    pub node: Node<'a>,
    /// Permission bits and the three special ones (07777).
    pub mode: u32,
    /// Seconds since 1970 of the last change of the content.
    pub mtime: i64,
    /// And nanoseconds, less than a second.
    pub mtime_ns: u32,
    /// The owner's number; what it is called comes in `Owner`.
    pub uid: u32,
    /// The group's.
    pub gid: u32,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Each worker's first: it speaks this protocol, in this version.
    Hello(u64),
    /// The client's first to a worker.
    Options(Options),
    /// What comes belongs to this source of the command line.
    Source(u64),
    /// The next entry.
    Entry(Entry<'a>),
    /// The folder that is open has no more entries; `whole` if everything in it could be read.
    FolderEnd {
        /// What is not here is not in the source either.
        whole: bool,
    },
    /// There are no more entries.
    ScanEnd,
    /// Something failed that is not about an entry with a number.
    Problem {
        /// What it is about.
        path: &'a [u8],
        /// A stable code.
        code: &'a [u8],
        /// A sentence for a person.
        text: &'a [u8],
    },
    /// What a number of an owner is called where the sender is.
    Owner {
        /// A group, not a user.
        group: bool,
        /// The number.
        id: u32,
        /// The name.
        name: &'a [u8],
    },
    /// A whole file.
    Small {
        /// Which entry.
        id: u64,
        /// Of the content.
        hash: Hash,
        /// It changed while it was read.
        changed: bool,
        /// The content.
        bytes: &'a [u8],
    },
    /// The content of a file follows, from this offset on.
    Begin {
        /// Which entry.
        id: u64,
        /// 0, or what `Want` offered as good.
        from: u64,
    },
    /// The next bytes.
    Data(&'a [u8]),
    /// So many zeros, which need not be stored.
    Hole(u64),
    /// Blocks that the receiver has.
    Blocks {
        /// The number of the first, in the order of `Basis`.
        first: u64,
        /// How many in a row.
        count: u64,
    },
    /// The end of a file's content.
    Finish {
        /// Of all of it, from offset 0.
        hash: Hash,
        /// It changed while it was read.
        changed: bool,
    },
    /// The file cannot be sent, or not to its end.
    Abort {
        /// Which entry.
        id: u64,
        /// A stable code.
        code: &'a [u8],
        /// A sentence for a person.
        text: &'a [u8],
    },
    /// The receiver's content is this one already.
    Same {
        /// Which entry.
        id: u64,
        /// Of the content, where the receiver has to make sure: its blocks look like it.
        hash: Option<Hash>,
    },
    /// What the receiver offered as the beginning is none: what else has it?
    Redo {
        /// Which entry.
        id: u64,
    },
    /// So many entries from this one on are as they should be.
    Skip {
        /// The first.
        first: u64,
        /// How many.
        count: u64,
    },
    /// Send the content of this file.
    Want {
        /// Which entry.
        id: u64,
        /// The beginning that is there already: its length and hash.
        prefix: Option<(u64, Hash)>,
        /// The hash of the whole old content, if it could be the same.
        same: Option<Hash>,
        /// `Basis` messages follow, of these blocks of what is there.
        blocks: Option<Layout>,
    },
    /// The sums of the next blocks.
    Basis(Sums<'a>),
    /// No more sums of this file come, perhaps before its end.
    BasisEnd,
    /// What became of an entry.
    Done {
        /// Which.
        id: u64,
        /// Empty if all is well, else a stable code.
        code: &'a [u8],
        /// A sentence for a person.
        text: &'a [u8],
    },
    /// Something was removed (`--delete`).
    Removed {
        /// From the destination on.
        path: &'a [u8],
    },
    /// The receiver's last.
    Finished,
}

/// The head of a message with a payload of `len` bytes.
pub fn head(kind: u8, len: usize) -> [u8; HEAD_BYTES] {
    let [a, b, c, ..] = len.to_le_bytes();
    [kind, a, b, c]
}

impl Message<'_> {
    /// The kind of `Data`, for who reads a file right behind its head.
    pub const DATA: u8 = 0x21;

    fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 0x01,
            Self::Options(_) => 0x02,
            Self::Source(_) => 0x10,
            Self::Entry(_) => 0x11,
            Self::FolderEnd { .. } => 0x12,
            Self::ScanEnd => 0x13,
            Self::Problem { .. } => 0x14,
            Self::Owner { .. } => 0x15,
            Self::Begin { .. } => 0x20,
            Self::Data(_) => Self::DATA,
            Self::Hole(_) => 0x22,
            Self::Blocks { .. } => 0x23,
            Self::Finish { .. } => 0x24,
            Self::Small { .. } => 0x25,
            Self::Abort { .. } => 0x26,
            Self::Same { .. } => 0x27,
            Self::Redo { .. } => 0x28,
            Self::Skip { .. } => 0x30,
            Self::Want { .. } => 0x31,
            Self::Basis(_) => 0x32,
            Self::BasisEnd => 0x33,
            Self::Done { .. } => 0x34,
            Self::Removed { .. } => 0x35,
            Self::Finished => 0x36,
        }
    }
}

/// Reads the message at the front of `input`: it and how many bytes it takes, or `None`
/// where there is not all of it yet.
///
/// # Errors
/// [`CopyError`]; a length is checked as soon as the head is there.
pub fn decode(input: &[u8]) -> Result<Option<(Message<'_>, usize)>, CopyError> {
    let Some(([kind, a, b, c], rest)) = input.split_first_chunk() else {
        return Ok(None);
    };
    let len = usize::from(*a) | usize::from(*b) << 8 | usize::from(*c) << 16;
    if len > PAYLOAD_BYTES_MAX {
        return Err(CopyError::TooLong);
    }
    if !matches!(kind, 0x01 | 0x02 | 0x10..=0x15 | 0x20..=0x28 | 0x30..=0x36) {
        return Err(CopyError::Kind(*kind));
    }
    let Some(payload) = rest.get(..len) else {
        return Ok(None);
    };
    match read(*kind, Fields(payload)) {
        Some(message) => Ok(Some((message, HEAD_BYTES + len))),
        None => Err(CopyError::Malformed(*kind)),
    }
}

fn read(kind: u8, mut fields: Fields<'_>) -> Option<Message<'_>> {
    let f = &mut fields;
    let message = match kind {
        0x01 => {
            let magic = f.fixed(MAGIC.len())?;
            Message::Hello((magic == MAGIC).then_some(f.number()?)?)
        }
        0x02 => Message::Options(Options::read(f)?),
        0x10 => Message::Source(f.number()?),
        0x11 => Message::Entry(read_entry(f)?),
        0x12 => Message::FolderEnd { whole: f.flag()? },
        0x13 => Message::ScanEnd,
        0x14 => Message::Problem {
            path: f.bytes(REPORT_BYTES_MAX)?,
            code: f.bytes(CODE_BYTES_MAX)?,
            text: f.bytes(REPORT_BYTES_MAX)?,
        },
        0x15 => Message::Owner {
            group: f.flag()?,
            id: f.small()?,
            name: f.bytes(NAME_BYTES_MAX)?,
        },
        0x20 => Message::Begin {
            id: f.number()?,
            from: f.number()?,
        },
        Message::DATA => {
            let bytes = f.rest();
            (!bytes.is_empty() && bytes.len() <= DATA_BYTES_MAX).then_some(Message::Data(bytes))?
        }
        0x22 => Message::Hole(f.number()?),
        0x23 => Message::Blocks {
            first: f.number()?,
            count: f.number()?,
        },
        0x24 => Message::Finish {
            hash: f.hash()?,
            changed: f.flag()?,
        },
        0x25 => Message::Small {
            id: f.number()?,
            hash: f.hash()?,
            changed: f.flag()?,
            bytes: Some(f.rest()).filter(|bytes| bytes.len() <= DATA_BYTES_MAX)?,
        },
        0x26 => Message::Abort {
            id: f.number()?,
            code: f.bytes(CODE_BYTES_MAX)?,
            text: f.bytes(REPORT_BYTES_MAX)?,
        },
        0x27 => Message::Same {
            id: f.number()?,
            hash: read_hash(f)?,
        },
        0x28 => Message::Redo { id: f.number()? },
        kind => read_answer(kind, f)?,
    };
    fields.done()?;
    Some(message)
}

/// What a receiver says.
fn read_answer<'a>(kind: u8, f: &mut Fields<'a>) -> Option<Message<'a>> {
    Some(match kind {
        0x30 => Message::Skip {
            first: f.number()?,
            count: f.number()?,
        },
        0x31 => Message::Want {
            id: f.number()?,
            prefix: match f.flag()? {
                true => Some((f.number()?, f.hash()?)),
                false => None,
            },
            same: read_hash(f)?,
            blocks: Layout::read(f)?,
        },
        0x32 => Message::Basis(Sums::read(f.rest())?),
        0x33 => Message::BasisEnd,
        0x34 => Message::Done {
            id: f.number()?,
            code: f.bytes(CODE_BYTES_MAX)?,
            text: f.bytes(REPORT_BYTES_MAX)?,
        },
        0x35 => Message::Removed {
            path: f.bytes(REPORT_BYTES_MAX)?,
        },
        0x36 => Message::Finished,
        _ => return None,
    })
}

fn read_hash(f: &mut Fields<'_>) -> Option<Option<Hash>> {
    Some(match f.flag()? {
        true => Some(f.hash()?),
        false => None,
    })
}

fn read_entry<'a>(f: &mut Fields<'a>) -> Option<Entry<'a>> {
    let kind = f.byte()?;
    let name = f.bytes(NAME_BYTES_MAX)?;
    let (mode, mtime, mtime_ns) = (f.small()?, f.signed()?, f.small()?);
    let (uid, gid) = (f.small()?, f.small()?);
    let node = match kind {
        0 | 1 => Node::Regular {
            size: f.number()?,
            linked: kind == 1,
        },
        2 => Node::Stream,
        3 => Node::Folder,
        4 => Node::Symlink(f.bytes(TARGET_BYTES_MAX)?),
        5 => Node::HardLink(f.number()?),
        _ => return None,
    };
    (mode <= 0o7777 && mtime_ns < 1_000_000_000).then_some(Entry {
        name,
        node,
        mode,
        mtime,
        mtime_ns,
        uid,
        gid,
    })
}

/// Writes a message behind what is in `out`. Texts and lists over their limits are the
/// caller's mistake; the other side refuses them.
pub fn encode(message: &Message<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD_BYTES]);
    write(message, out);
    let len = out.len() - start - HEAD_BYTES;
    if let Some(place) = out.get_mut(start..start + HEAD_BYTES) {
        place.copy_from_slice(&head(message.kind(), len));
    }
}

fn write(message: &Message<'_>, out: &mut Vec<u8>) {
    match message {
        Message::Hello(version) => {
            out.extend_from_slice(MAGIC);
            put_number(out, *version);
        }
        Message::Options(options) => options.write(out),
        Message::Source(index) => put_number(out, *index),
        Message::Entry(entry) => write_entry(entry, out),
        Message::FolderEnd { whole } => out.push(u8::from(*whole)),
        Message::ScanEnd | Message::BasisEnd | Message::Finished => {}
        Message::Problem { path, code, text } => {
            [path, code, text].iter().for_each(|b| put_bytes(out, b))
        }
        Message::Owner { group, id, name } => {
            out.push(u8::from(*group));
            put_number(out, u64::from(*id));
            put_bytes(out, name);
        }
        Message::Begin { id, from } => [id, from].iter().for_each(|n| put_number(out, **n)),
        Message::Data(bytes) => out.extend_from_slice(bytes),
        Message::Hole(len) => put_number(out, *len),
        Message::Blocks { first, count } | Message::Skip { first, count } => {
            [first, count].iter().for_each(|n| put_number(out, **n));
        }
        Message::Finish { hash, changed } => {
            out.extend_from_slice(hash);
            out.push(u8::from(*changed));
        }
        Message::Small {
            id,
            hash,
            changed,
            bytes,
        } => {
            put_number(out, *id);
            out.extend_from_slice(hash);
            out.push(u8::from(*changed));
            out.extend_from_slice(bytes);
        }
        Message::Abort { id, code, text } | Message::Done { id, code, text } => {
            put_number(out, *id);
            put_bytes(out, code);
            put_bytes(out, text);
        }
        Message::Redo { id } => put_number(out, *id),
        Message::Same { id, hash } => {
            put_number(out, *id);
            write_hash(hash.as_ref(), out);
        }
        Message::Want {
            id,
            prefix,
            same,
            blocks,
        } => {
            put_number(out, *id);
            out.push(u8::from(prefix.is_some()));
            if let Some((len, hash)) = prefix {
                put_number(out, *len);
                out.extend_from_slice(hash);
            }
            write_hash(same.as_ref(), out);
            Layout::write(blocks.as_ref(), out);
        }
        Message::Basis(sums) => out.extend_from_slice(sums.packed()),
        Message::Removed { path } => put_bytes(out, path),
    }
}

fn write_hash(hash: Option<&Hash>, out: &mut Vec<u8>) {
    out.push(u8::from(hash.is_some()));
    out.extend(hash.into_iter().flatten());
}

fn write_entry(entry: &Entry<'_>, out: &mut Vec<u8>) {
    out.push(match entry.node {
        Node::Regular { linked, .. } => u8::from(linked),
        Node::Stream => 2,
        Node::Folder => 3,
        Node::Symlink(_) => 4,
        Node::HardLink(_) => 5,
    });
    put_bytes(out, entry.name);
    put_number(out, u64::from(entry.mode));
    put_signed(out, entry.mtime);
    for number in [entry.mtime_ns, entry.uid, entry.gid] {
        put_number(out, u64::from(number));
    }
    match entry.node {
        Node::Regular { size, .. } => put_number(out, size),
        Node::Symlink(target) => put_bytes(out, target),
        Node::HardLink(id) => put_number(out, id),
        Node::Stream | Node::Folder => {}
    }
}
