//! Streams in which every eight bytes say where they are, so that whatever is
//! lost, repeated or out of place shows at once; and the program at their far end.

use std::io::{Read, Write};
use std::path::Path;

/// The words made and compared at a time.
const WORDS: u64 = 8192;

/// The words from one of them on, of a stream with this key.
fn words(key: u64, from: u64, to: u64) -> Vec<u8> {
    (from..to)
        .flat_map(|word| key.wrapping_add(word).to_le_bytes())
        .collect()
}

/// Writes a stream of so many words, for as long as anybody takes it.
pub(super) fn write(mut to: impl Write, key: u64, count: u64) {
    let mut from = 0;
    while from < count {
        let end = count.min(from + WORDS);
        // An error is the reader's end: it is judged by what it says, not here.
        if to.write_all(&words(key, from, end)).is_err() {
            return;
        }
        from = end;
    }
}

/// Reads a stream to its end and gives its length, or the place where it is wrong.
pub(super) fn read(mut from: impl Read, key: u64) -> Result<u64, u64> {
    let (mut at, mut expected, mut known) = (0_u64, Vec::new(), 0_u64);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let len = from.read(&mut buffer).unwrap();
        if len == 0 {
            return Ok(at);
        }
        for byte in &buffer[..len] {
            let word = at / 8;
            if word >= known + (expected.len() as u64) / 8 {
                known = word;
                expected = words(key, word, word + WORDS);
            }
            if *byte != expected[(at - known * 8) as usize] {
                return Err(at);
            }
            at += 1;
        }
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

#[test]
fn what_is_lost_repeated_or_changed_shows() {
    let mut whole = Vec::new();
    write(&mut whole, 5, 20_000);
    assert_eq!(read(&whole[..], 5), Ok(160_000));
    // A prefix is one, also where it ends inside a word.
    assert_eq!(read(&whole[..100_001], 5), Ok(100_001));
    assert_eq!(read(&whole[..], 6), Err(0));
    let of = |parts: &[&[u8]]| read(&parts.concat()[..], 5);
    assert_eq!(of(&[&whole[..80_000], &whole[80_008..]]), Err(80_000));
    assert_eq!(of(&[&whole[..80_000], &whole[79_992..]]), Err(80_000));
    assert_eq!(of(&[&whole[..80_000], b"x", &whole[80_001..]]), Err(80_000));
}
