//! The keeper's journal: the truth about live jobs, append-only and checksummed.
//!
//! Owns the file `journal` in the state directory and an image of what it
//! says. A record is its length and CRC-32 (both u32 little-endian), then
//! postcard of [`Record`]. Written without fsync: it survives the death of
//! processes, not of power. Where the end of the file is torn, the rest is cut
//! off with a warning; whoever writes fails rather than go on unrecorded.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bowline_proto::id::JobId;
use serde::{Deserialize, Serialize};

use crate::ipc::{Cause, End, Source, Stream, Terms};

/// The version of the records. A journal of another version is put aside.
pub(crate) const VERSION: u16 = 2;
/// The longest record, in bytes.
const RECORD_BYTES_MAX: usize = 16 * 1024;
/// The journal is rewritten at this size, and again when it has doubled since.
const COMPACT_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// Ended jobs that are remembered, so that a start that comes twice is recognised.
const RECENT_MAX: usize = 16 * 1024;
/// Length and checksum.
const PREFIX_BYTES: usize = 8;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Record {
    /// A keeper has begun to write. The first record of a file.
    Keeper(KeeperRecord),
    /// A job is about to be spawned.
    Start(StartRecord),
    /// It was spawned; `started` in clock ticks since the boot tells its pid from later ones.
    Spawned {
        job: JobId,
        pid: i32,
        started: Option<u64>,
    },
    /// It could not be; nothing ran.
    NotStarted { job: JobId },
    /// A stream was closed on request.
    Closed { job: JobId, stream: Stream },
    /// It is being made to end.
    Ending { job: JobId, cause: Cause },
    /// Its main process is gone.
    Ended { job: JobId, end: End },
    /// Everybody knows; only the id is remembered.
    Released { job: JobId, uid: u32 },
}

/// Who writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeeperRecord {
    pub(crate) version: u16,
    pub(crate) pid: i32,
    pub(crate) boot_id: String,
    pub(crate) unix_ms: u64,
}

/// What is known of a job before it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StartRecord {
    pub(crate) job: JobId,
    pub(crate) user: String,
    pub(crate) uid: u32,
    pub(crate) source: Source,
    pub(crate) connection: u64,
    pub(crate) unix_ms: u64,
    /// When its timeout ends it.
    pub(crate) deadline_unix_ms: Option<u64>,
    /// What another start of it must have in common with this one.
    pub(crate) fingerprint: u64,
    /// What a gate needs to know of it.
    pub(crate) terms: Terms,
}

/// A job that is not released, as the journal has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobImage {
    pub(crate) start: StartRecord,
    pub(crate) pid: Option<(i32, Option<u64>)>,
    pub(crate) closed: Vec<Stream>,
    pub(crate) cause: Option<Cause>,
    pub(crate) end: Option<End>,
}

/// What the records so far amount to.
#[derive(Debug, Default)]
struct Image {
    /// Who wrote last.
    keeper: Option<KeeperRecord>,
    jobs: BTreeMap<JobId, JobImage>,
    recent: VecDeque<(u32, JobId)>,
    recent_set: HashSet<(u32, JobId)>,
}

/// The open journal of this keeper.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    compact_at: u64,
    keeper: KeeperRecord,
    image: Image,
}

impl Journal {
    /// Opens the journal in `folder`, which nobody else may have open, and
    /// reads what earlier keepers left.
    ///
    /// # Errors
    /// As open(2), read(2) and write(2).
    pub(crate) fn open(folder: &Path, keeper: KeeperRecord) -> io::Result<Self> {
        let path = folder.join("journal");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let (image, good) = replay(&bytes);
        if good < bytes.len() {
            let kept = folder.join("journal.damaged");
            tracing::warn!(
                file = %path.display(), bytes = bytes.len() - good, kept = %kept.display(),
                "the end of the journal is damaged and was cut off; the file as it was is kept"
            );
            fs::copy(&path, kept)?;
        }
        // What was read is written anew: no record ever follows a damaged one.
        let (file, bytes) = rewrite(&path, &keeper, &image)?;
        Ok(Self {
            path,
            file,
            bytes,
            compact_at: COMPACT_BYTES_MIN.max(bytes * 2),
            keeper,
            image,
        })
    }

    /// Goes on with what an earlier program of this process knew. Its file is
    /// replaced and not read: it may be written as this program does not write.
    ///
    /// # Errors
    /// As open(2) and write(2).
    pub(crate) fn resume(
        folder: &Path,
        keeper: KeeperRecord,
        jobs: Vec<JobImage>,
        recent: Vec<(u32, JobId)>,
    ) -> io::Result<Self> {
        let image = Image::of(jobs, recent);
        let path = folder.join("journal");
        let (file, bytes) = rewrite(&path, &keeper, &image)?;
        Ok(Self {
            path,
            file,
            bytes,
            compact_at: COMPACT_BYTES_MIN.max(bytes * 2),
            image,
            keeper,
        })
    }

    /// Makes sure that [`Journal::resume`] could write what it would be given: a
    /// program that finds no room has no way back.
    ///
    /// # Errors
    /// As open(2) and write(2).
    pub(crate) fn check_resume(
        folder: &Path,
        keeper: &KeeperRecord,
        jobs: Vec<JobImage>,
        recent: Vec<(u32, JobId)>,
    ) -> io::Result<()> {
        // Not where the keeper that runs writes its own.
        let path = folder.join("journal.check");
        let written = write_anew(&path, &encode_all(keeper, &Image::of(jobs, recent))?);
        let _ = fs::remove_file(&path);
        written
    }

    /// Adds a record.
    ///
    /// # Errors
    /// As write(2); then the file is as it was before.
    pub(crate) fn append(&mut self, record: Record) -> io::Result<()> {
        let bytes = encode(&record)?;
        if let Err(error) = self.file.write_all(&bytes) {
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += bytes.len() as u64;
        self.image.apply(record);
        if self.bytes >= self.compact_at {
            self.compact();
        }
        Ok(())
    }

    /// The jobs that are not released, those of earlier keepers among them.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = &JobImage> {
        self.image.jobs.values()
    }

    /// One of them.
    pub(crate) fn job(&self, job: JobId) -> Option<&JobImage> {
        self.image.jobs.get(&job)
    }

    /// The keeper that wrote before this one, if there was one.
    pub(crate) fn predecessor(&self) -> Option<&KeeperRecord> {
        self.image.keeper.as_ref()
    }

    /// Who writes.
    pub(crate) fn keeper(&self) -> &KeeperRecord {
        &self.keeper
    }

    /// The jobs that are over and remembered, the oldest first.
    pub(crate) fn recent(&self) -> impl Iterator<Item = (u32, JobId)> {
        self.image.recent.iter().copied()
    }

    /// Whether this user's job was known once and is over.
    pub(crate) fn is_recent(&self, uid: u32, job: JobId) -> bool {
        self.image.recent_set.contains(&(uid, job))
    }

    fn compact(&mut self) {
        match rewrite(&self.path, &self.keeper, &self.image) {
            Ok((file, bytes)) => {
                self.file = file;
                self.bytes = bytes;
                self.compact_at = COMPACT_BYTES_MIN.max(bytes * 2);
            }
            Err(error) => {
                // The old file stays the journal; try again when it has grown as much again.
                self.compact_at = self.bytes * 2;
                tracing::warn!(%error, "the journal cannot be rewritten and goes on growing");
            }
        }
    }
}

impl Image {
    fn of(jobs: Vec<JobImage>, recent: Vec<(u32, JobId)>) -> Self {
        let mut image = Self::default();
        for job in jobs {
            image.jobs.insert(job.start.job, job);
        }
        for (uid, job) in recent {
            image.remember(uid, job);
        }
        image
    }

    fn apply(&mut self, record: Record) {
        match record {
            Record::Keeper(keeper) => self.keeper = Some(keeper),
            Record::Start(start) => {
                let image = JobImage {
                    start,
                    pid: None,
                    closed: Vec::new(),
                    cause: None,
                    end: None,
                };
                self.jobs.insert(image.start.job, image);
            }
            Record::Spawned { job, pid, started } => {
                self.change(job, |image| image.pid = Some((pid, started)));
            }
            Record::NotStarted { job } => {
                self.jobs.remove(&job);
            }
            Record::Closed { job, stream } => self.change(job, |image| {
                if !image.closed.contains(&stream) {
                    image.closed.push(stream);
                }
            }),
            Record::Ending { job, cause } => self.change(job, |image| image.cause = Some(cause)),
            Record::Ended { job, end } => self.change(job, |image| image.end = Some(end)),
            Record::Released { job, uid } => {
                self.jobs.remove(&job);
                self.remember(uid, job);
            }
        }
    }

    fn change(&mut self, job: JobId, how: impl FnOnce(&mut JobImage)) {
        if let Some(image) = self.jobs.get_mut(&job) {
            how(image);
        }
    }

    fn remember(&mut self, uid: u32, job: JobId) {
        if !self.recent_set.insert((uid, job)) {
            return;
        }
        self.recent.push_back((uid, job));
        if self.recent.len() > RECENT_MAX
            && let Some(oldest) = self.recent.pop_front()
        {
            self.recent_set.remove(&oldest);
        }
    }

    /// The fewest records that amount to this image.
    fn records(&self) -> impl Iterator<Item = Record> {
        let recent = self.recent.iter();
        let released = recent.map(|&(uid, job)| Record::Released { job, uid });
        released.chain(self.jobs.values().flat_map(JobImage::records))
    }
}

impl JobImage {
    fn records(&self) -> Vec<Record> {
        let job = self.start.job;
        let mut records = vec![Record::Start(self.start.clone())];
        let spawned = |(pid, started)| Record::Spawned { job, pid, started };
        records.extend(self.pid.map(spawned));
        let closed = self.closed.iter();
        records.extend(closed.map(|&stream| Record::Closed { job, stream }));
        records.extend(self.cause.map(|cause| Record::Ending { job, cause }));
        records.extend(self.end.map(|end| Record::Ended { job, end }));
        records
    }
}

/// The image of a file, and how many of its bytes are good.
fn replay(bytes: &[u8]) -> (Image, usize) {
    let mut image = Image::default();
    let mut good = 0;
    while let Some((record, length)) = bytes.get(good..).and_then(decode) {
        if matches!(&record, Record::Keeper(keeper) if keeper.version != VERSION) {
            break;
        }
        image.apply(record);
        good += length;
    }
    (image, good)
}

fn rewrite(path: &Path, keeper: &KeeperRecord, image: &Image) -> io::Result<(File, u64)> {
    let bytes = encode_all(keeper, image)?;
    let fresh = path.with_extension("new");
    write_anew(&fresh, &bytes)?;
    let file = OpenOptions::new().append(true).open(&fresh)?;
    fs::rename(&fresh, path)?;
    Ok((file, bytes.len() as u64))
}

fn write_anew(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(0o600);
    options.open(path)?.write_all(bytes)
}

fn encode_all(keeper: &KeeperRecord, image: &Image) -> io::Result<Vec<u8>> {
    let mut bytes = encode(&Record::Keeper(keeper.clone()))?;
    for record in image.records() {
        bytes.extend(encode(&record)?);
    }
    Ok(bytes)
}

fn encode(record: &Record) -> io::Result<Vec<u8>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let payload = postcard::to_stdvec(record).map_err(invalid)?;
    if payload.len() > RECORD_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = (payload.len() as u32).to_le_bytes().to_vec();
    bytes.extend_from_slice(&crc32(&payload).to_le_bytes());
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// The record at the start of `bytes`, and its length with its prefix.
fn decode(bytes: &[u8]) -> Option<(Record, usize)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if length > RECORD_BYTES_MAX {
        return None;
    }
    let payload = rest.get(..length)?;
    if crc32(payload) != u32::from_le_bytes(*crc) {
        return None;
    }
    let record = postcard::from_bytes(payload).ok()?;
    Some((record, PREFIX_BYTES + length))
}

/// CRC-32 of IEEE 802.3, reflected. A record has some hundred bytes, so a table suffices.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc32_table();
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8)
    })
}

const fn crc32_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = (value >> 1) ^ (0xedb8_8320 & (value & 1).wrapping_neg());
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::{Exited, Tree};

    fn keeper() -> KeeperRecord {
        KeeperRecord {
            version: VERSION,
            pid: 1,
            boot_id: "boot".to_owned(),
            unix_ms: 1,
        }
    }

    fn id(n: u16) -> JobId {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&n.to_le_bytes());
        JobId::from_bytes(bytes)
    }

    fn start(n: u16) -> Record {
        Record::Start(StartRecord {
            job: id(n),
            user: "user".to_owned(),
            uid: 1000,
            source: Source::Unix,
            connection: 3,
            unix_ms: 4,
            deadline_unix_ms: Some(5),
            fingerprint: 4,
            terms: Terms::default(),
        })
    }

    fn life(n: u16) -> Vec<Record> {
        let job = id(n);
        let end = End {
            exited: Exited::Code(3),
            cause: Some(Cause::TimedOut),
            tree: Tree::Exact,
            unix_ms: 9,
        };
        vec![
            start(n),
            Record::Spawned {
                job,
                pid: 77,
                started: Some(8),
            },
            Record::Closed {
                job,
                stream: Stream::Stdin,
            },
            Record::Ending {
                job,
                cause: Cause::TimedOut,
            },
            Record::Ended { job, end },
        ]
    }

    fn states(records: &[Record]) -> Vec<Vec<JobImage>> {
        let mut image = Image::default();
        let mut states = vec![Vec::new()];
        for record in records {
            image.apply(record.clone());
            states.push(image.jobs.values().cloned().collect());
        }
        states
    }

    #[test]
    fn checksums_are_the_standard_ones() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }

    #[test]
    fn a_file_cut_anywhere_gives_the_records_before_the_cut() {
        let records = [life(1), life(2)].concat();
        let states = states(&records);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let encoded: Vec<Vec<u8>> = records.iter().map(|r| encode(r).unwrap()).collect();
        let whole = encoded.concat();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut end = 0;
            let complete = encoded.iter().take_while(|bytes| {
                end += bytes.len();
                end <= cut
            });
            let complete = complete.count();
            let journal = Journal::open(folder.path(), keeper()).unwrap();
            let found: Vec<JobImage> = journal.jobs().cloned().collect();
            assert_eq!(found, states[complete], "cut at {cut}");
            drop(journal);
            // What was repaired reads the same again, and nothing is behind it.
            let bytes = fs::read(&path).unwrap();
            let (image, good) = replay(&bytes);
            assert_eq!(good, bytes.len());
            assert_eq!(image.jobs.into_values().collect::<Vec<_>>(), found);
        }
    }

    #[test]
    fn any_flipped_byte_ends_what_counts() {
        let records = life(1);
        let encoded: Vec<Vec<u8>> = records.iter().map(|r| encode(r).unwrap()).collect();
        let whole = encoded.concat();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            let (_, good) = replay(&damaged);
            let mut starts = encoded.iter().scan(0, |end, bytes| {
                let start = *end;
                *end += bytes.len();
                Some(start..*end)
            });
            let hit = starts.find(|range| range.contains(&at)).unwrap();
            assert_eq!(good, hit.start, "byte {at}");
        }
    }

    #[test]
    fn a_journal_goes_on_where_it_was_and_stays_small() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), keeper()).unwrap();
        journal.compact_at = 10_000;
        journal.append(start(0)).unwrap();
        let many = RECENT_MAX as u16 + 10;
        for n in 1..=many {
            for record in life(n) {
                journal.append(record).unwrap();
            }
            let released = Record::Released {
                job: id(n),
                uid: 1000,
            };
            journal.append(released).unwrap();
        }
        assert!(journal.bytes < 2 * COMPACT_BYTES_MIN);
        drop(journal);
        let journal = Journal::open(folder.path(), keeper()).unwrap();
        let live: Vec<JobId> = journal.jobs().map(|image| image.start.job).collect();
        assert_eq!(live, [id(0)]);
        assert!(journal.is_recent(1000, id(many)));
        assert!(!journal.is_recent(1001, id(many)));
        assert!(!journal.is_recent(1000, id(1)), "forgotten as the oldest");
        assert!(!journal.is_recent(1000, id(0)));
    }

    #[test]
    fn a_full_disk_leaves_the_journal_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(folder.path(), keeper()).unwrap();
        // /dev/full takes nothing, and cannot be truncated either.
        journal.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert!(journal.append(start(1)).is_err());
        assert_eq!(journal.jobs().count(), 0);
    }
}
