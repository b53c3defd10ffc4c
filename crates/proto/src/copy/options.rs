//! What a worker is told before it begins: how to copy, and what it may accept.

use super::fields::{Fields, put_bytes, put_number};
use super::glob::Excludes;
use super::{PATTERN_BYTES_MAX, PATTERNS_MAX, glob};

/// When what was written has to be on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fsync {
    /// When the kernel thinks fit.
    #[default]
    None,
    /// A file, before it takes its name.
    Files,
    /// And its folder, after that.
    All,
}

/// The names that one source may have at the top of the destination: a copy never
/// makes one that nobody asked for, whatever the sender says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permit {
    /// The folder's contents, with whatever names.
    Contents,
    /// What a pattern of the command line matches.
    Name(Vec<u8>),
}

impl Permit {
    /// Whether an entry may have this name.
    pub fn allows(&self, name: &[u8]) -> bool {
        match self {
            Self::Contents => true,
            Self::Name(pattern) => {
                glob::literal(pattern) == name || glob::matches_name(pattern, name)
            }
        }
    }
}

/// How to copy. Each worker is told all of it by the client that started it, never by
/// the other worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Keep times, owners and special bits of modes too, and hard links.
    pub archive: bool,
    /// Compare contents, whatever the times say.
    pub checksum: bool,
    /// Say what would be done.
    pub dry_run: bool,
    /// Remove what the source does not have.
    pub delete: bool,
    /// The destination must be a folder: it was written with a slash, or there are several sources.
    pub into_folder: bool,
    /// The one source is a stream, or the destination is.
    pub stream: bool,
    /// See [`Fsync`].
    pub fsync: Fsync,
    /// A number that is the same for every attempt at this copy; makes temporary names.
    pub origin: u64,
    /// What is left out.
    pub excludes: Excludes,
    /// For each source, what it may be called.
    pub permits: Vec<Permit>,
}

impl Options {
    pub(super) fn read(fields: &mut Fields<'_>) -> Option<Self> {
        let bits = fields.byte()?;
        let flag = |bit: u8| bits & (1 << bit) != 0;
        let fsync = match fields.byte()? {
            0 => Fsync::None,
            1 => Fsync::Files,
            2 => Fsync::All,
            _ => return None,
        };
        let origin = fields.number()?;
        let excludes = list(fields, |fields| {
            Some(fields.bytes(PATTERN_BYTES_MAX)?.to_vec())
        })?;
        let permits = list(fields, |fields| {
            Some(match fields.bytes(PATTERN_BYTES_MAX)? {
                b"" => Permit::Contents,
                pattern => Permit::Name(pattern.to_vec()),
            })
        })?;
        (bits < 1 << 6).then_some(Self {
            archive: flag(0),
            checksum: flag(1),
            dry_run: flag(2),
            delete: flag(3),
            into_folder: flag(4),
            stream: flag(5),
            fsync,
            origin,
            excludes: Excludes::new(excludes),
            permits,
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let flags = [
            self.archive,
            self.checksum,
            self.dry_run,
            self.delete,
            self.into_folder,
            self.stream,
        ];
        let bits = flags
            .iter()
            .rev()
            .fold(0, |bits, flag| bits << 1 | u8::from(*flag));
        out.push(bits);
        out.push(match self.fsync {
            Fsync::None => 0,
            Fsync::Files => 1,
            Fsync::All => 2,
        });
        put_number(out, self.origin);
        put_number(out, self.excludes.patterns().len() as u64);
        for pattern in self.excludes.patterns() {
            put_bytes(out, pattern);
        }
        put_number(out, self.permits.len() as u64);
        for permit in &self.permits {
            match permit {
                Permit::Contents => put_bytes(out, b""),
                Permit::Name(pattern) => put_bytes(out, pattern),
            }
        }
    }
}

fn list<'a, T>(
    fields: &mut Fields<'a>,
    mut item: impl FnMut(&mut Fields<'a>) -> Option<T>,
) -> Option<Vec<T>> {
    let count = usize::try_from(fields.number()?).ok()?;
    if count > PATTERNS_MAX {
        return None;
    }
    (0..count).map(|_| item(fields)).collect()
}
