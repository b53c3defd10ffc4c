//! Streams in which every eight bytes say where they are, so that whatever is
//! lost, repeated or out of place shows at once; and the program at their far end.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The words made and compared at a time.
const WORDS: u64 = 8192;
/// In so many bytes there is a whole word, and more than chance.
const LOCATED_BYTES: usize = 24;

/// The words from one of them on, of a stream with this key.
fn words(key: u64, from: u64, to: u64) -> Vec<u8> {
    (from..to)
        .flat_map(|word| key.wrapping_add(word).to_le_bytes())
        .collect()
}

/// Writes a stream of so many words from a byte of it on, for as long as anybody takes it.
pub(super) fn write(mut to: impl Write, key: u64, from: u64, count: u64) {
    let (mut word, mut skipped) = (from / 8, (from % 8) as usize);
    while word < count {
        let end = count.min(word + WORDS);
        let block = words(key, word, end);
        // An error is the reader's end: it is judged by what it says, not here.
        if to.write_all(&block[skipped..]).is_err() {
            return;
        }
        (word, skipped) = (end, 0);
    }
}

/// Reads a stream, from one client after another.
pub(super) struct Reader {
    key: u64,
    words: u64,
    /// How much of it has come, shared with whoever wants to know.
    came: Arc<AtomicU64>,
    /// A piece of what is expected, and the place where it begins.
    expected: (u64, Vec<u8>),
}

impl Reader {
    pub(super) fn new(key: u64, words: u64) -> Reader {
        Reader {
            key,
            words,
            came: Arc::default(),
            expected: (0, Vec::new()),
        }
    }

    /// The length of what came, without a gap.
    pub(super) fn came(&self) -> Arc<AtomicU64> {
        self.came.clone()
    }

    /// Reads to the end of one client's output, or gives the place where that is wrong. The first
    /// one's begins with the stream; another's wherever its first words say, but not behind what came.
    pub(super) fn read(&mut self, mut from: impl Read, first: bool) -> Result<(), u64> {
        let mut buffer = vec![0; 64 * 1024];
        let mut len = 0;
        while !first && len < LOCATED_BYTES {
            match from.read(&mut buffer[len..]).unwrap() {
                0 => break,
                more => len += more,
            }
        }
        let mut at = match first {
            true => 0,
            false => self.locate(&buffer[..len])?,
        };
        loop {
            at = self.check(at, &buffer[..len])?;
            self.came.fetch_max(at, Ordering::SeqCst);
            len = from.read(&mut buffer).unwrap();
            if len == 0 {
                return Ok(());
            }
        }
    }

    /// Where in the stream these bytes are: a word says so, or they are too few and its end.
    fn locate(&mut self, bytes: &[u8]) -> Result<u64, u64> {
        let came = self.came.load(Ordering::SeqCst);
        if bytes.is_empty() {
            return Ok(came);
        }
        let by_word = (0..8_u64).filter_map(|skipped| {
            let word = bytes.get(skipped as usize..)?.first_chunk()?;
            let word = u64::from_le_bytes(*word).wrapping_sub(self.key);
            word.checked_mul(8)?.checked_sub(skipped)
        });
        let by_end = (self.words * 8).checked_sub(bytes.len() as u64);
        let places: Vec<u64> = by_word.chain(by_end).filter(|at| *at <= came).collect();
        let found = places.into_iter().find(|at| self.check(*at, bytes).is_ok());
        found.ok_or(came)
    }

    /// Compares bytes with the stream at a place; gives the place behind them, or that of the
    /// first that differs.
    fn check(&mut self, mut at: u64, mut bytes: &[u8]) -> Result<u64, u64> {
        while !bytes.is_empty() {
            let (begin, block) = &self.expected;
            let end = begin + block.len() as u64;
            if at < *begin || at >= end {
                let word = at / 8;
                self.expected = (word * 8, words(self.key, word, word + WORDS));
                continue;
            }
            let expected = &block[(at - begin) as usize..];
            let len = bytes.len().min(expected.len());
            let (now, rest) = bytes.split_at(len);
            if now != &expected[..len] {
                let same = now.iter().zip(expected).take_while(|(a, b)| a == b);
                return Err(at + same.count() as u64);
            }
            (at, bytes) = (at + len as u64, rest);
        }
        Ok(at)
    }
}

/// The program: writes one stream, reads another, and ends with 7 when it has read all of
/// it as it should be. It notes in its folder that it was started, and what was wrong.
const PROGRAM: &str = r#"
import array, os, sys, threading
folder, wrote, read, count = sys.argv[1], *map(int, sys.argv[2:])
def note(name, text):
    fd = os.open(folder + "/" + name, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
    os.write(fd, (text + "\n").encode())
def words(key, start, end):
    return array.array("Q", range(key + start, key + end)).tobytes()
def give():
    at = 0
    while at < count:
        end = min(at + 8192, count)
        block = words(wrote, at, end)
        while block:
            block = block[os.write(1, block):]
        at = end
    os.close(1)
note("started", str(os.getpid()))
giving = threading.Thread(target=give)
giving.start()
at, rest = 0, b""
while True:
    block = os.read(0, 65536)
    if not block:
        break
    rest += block
    whole = len(rest) // 8
    if rest[:whole * 8] != words(read, at, at + whole):
        note("wrong", "input differs behind word %d" % at)
        os._exit(9)
    at, rest = at + whole, rest[whole * 8:]
if at != count or rest:
    note("wrong", "input ends at word %d of %d" % (at, count))
    os._exit(9)
giving.join()
note("right", "")
os._exit(7)
"#;

/// The arguments of the program: its folder, the key of what it writes, that of what it
/// reads, and the words of each.
pub(super) fn program(folder: &Path, wrote: u64, read: u64, count: u64) -> Vec<String> {
    let folder = folder.to_str().unwrap().to_owned();
    let numbers = [wrote, read, count].map(|number| number.to_string());
    let argv = [
        "python3".to_owned(),
        "-c".to_owned(),
        PROGRAM.to_owned(),
        folder,
    ];
    argv.into_iter().chain(numbers).collect()
}

/// What one client after another shows, and where that is wrong; and how much came.
#[cfg(test)]
fn read(key: u64, words: u64, pieces: &[&[u8]]) -> (Result<(), u64>, u64) {
    let mut reader = Reader::new(key, words);
    let read = pieces.iter().enumerate();
    let read = read.map(|(number, piece)| reader.read(*piece, number == 0));
    let read = read.collect();
    let came = reader.came().load(Ordering::SeqCst);
    (read, came)
}

#[test]
fn what_is_lost_repeated_or_changed_shows() {
    let mut whole = Vec::new();
    write(&mut whole, 5, 0, 20_000);
    let of = |pieces: &[&[u8]]| read(5, 20_000, &[&pieces.concat()]);
    assert_eq!(of(&[&whole]), (Ok(()), 160_000));
    // A prefix is one, also where it ends inside a word.
    assert_eq!(of(&[&whole[..100_001]]), (Ok(()), 100_001));
    assert_eq!(read(6, 20_000, &[&whole]).0, Err(0));
    for (from, error) in [(80_008, 80_000), (79_992, 80_000)] {
        assert_eq!(of(&[&whole[..80_000], &whole[from..]]).0, Err(error));
    }
    let changed = of(&[&whole[..80_000], b"x", &whole[80_001..]]);
    assert_eq!(changed.0, Err(80_000));
}

#[test]
fn what_the_next_client_shows_says_where_it_begins() {
    let mut whole = Vec::new();
    write(&mut whole, 5, 0, 20_000);
    let mut part = Vec::new();
    write(&mut part, 5, 100_003, 20_000);
    assert_eq!(part, &whole[100_003..]);
    let of = |pieces: &[&[u8]]| read(5, 20_000, pieces);
    for from in [0, 99_989, 100_001] {
        let pieces = [&whole[..100_001], &whole[from..]];
        assert_eq!(of(&pieces), (Ok(()), 160_000), "{from}");
    }
    // One that shows little, or nothing, or the end alone.
    let ends = [
        &whole[..159_997],
        &whole[120_000..120_100],
        &[],
        &whole[159_995..],
    ];
    assert_eq!(of(&ends), (Ok(()), 160_000));
    // A gap, or something else, is none of the places that it may begin at.
    assert_eq!(of(&[&whole[..80_000], &whole[80_001..]]).0, Err(80_000));
    assert_eq!(of(&[&whole[..80_000], &[0; 100]]).0, Err(80_000));
    assert_eq!(of(&[&whole[..80_000], &whole[159_995..]]).0, Err(80_000));
}
