//! A sender with a receiver that does what it likes.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use bowline_proto::copy::{Layout, Message, Options, VERSION};

use super::super::link::{Input, Output, pipe};
use super::{Source, send};

const SIZE: u64 = 8 * 1024 * 1024;

/// Makes a file of [`SIZE`], and asks for it.
struct Asked {
    blocks: Option<Layout>,
    /// Behind the first half and a hole of so much.
    hole: u64,
}

/// Takes in a file to which as much is added as has come, so that nobody ever sees its end: how much came, and
/// whether it was said that it changed.
fn follow(asked: &Asked, path: &Path) -> (u64, bool) {
    let mut file = File::create(path).unwrap();
    file.write_all(&vec![1; SIZE as usize / 2]).unwrap();
    let rest = SIZE / 2 - asked.hole;
    file.seek(SeekFrom::Current(asked.hole.cast_signed()))
        .unwrap();
    file.write_all(&vec![2; rest as usize]).unwrap();
    assert_eq!(file.metadata().unwrap().len(), SIZE);

    let (to_receiver, from_sender) = pipe();
    let (to_sender, from_receiver) = pipe();
    let source = Source::Path(0, path.as_os_str().as_bytes().to_vec());
    let sender = std::thread::spawn(move || {
        let input = Input::new(Box::new(from_receiver), None);
        let output = Output::new(Box::new(to_receiver), None);
        send(vec![source], Options::default(), input, output)
    });
    let mut input = Input::new(Box::new(from_sender), None);
    let mut output = Output::new(Box::new(to_sender), None);
    output.send(&Message::Hello(VERSION)).unwrap();
    output.flush().unwrap();
    let (mut came, mut is_changed) = (0, false);
    while let Some(message) = input.next().unwrap() {
        let len = match message {
            Message::Entry(_) => {
                // More than is on its way at any time.
                file.write_all(&vec![3; SIZE as usize]).unwrap();
                let (id, blocks) = (0, asked.blocks);
                let (prefix, same) = (None, None);
                let want = Message::Want {
                    id,
                    prefix,
                    same,
                    blocks,
                };
                output.send(&want).unwrap();
                if blocks.is_some() {
                    output.send(&Message::BasisEnd).unwrap();
                }
                output.flush().unwrap();
                0
            }
            Message::Data(bytes) => bytes.len() as u64,
            Message::Hole(len) => len,
            Message::Finish { changed, .. } => {
                is_changed = changed;
                let (code, text): (&[u8], &[u8]) = (b"", b"");
                output.send(&Message::Done { id: 0, code, text }).unwrap();
                output.send(&Message::Finished).unwrap();
                output.flush().unwrap();
                0
            }
            _ => 0,
        };
        came += len;
        assert!(came <= 8 * SIZE, "it goes on for ever");
        file.write_all(&vec![4; len as usize]).unwrap();
    }
    drop(output);
    sender.join().unwrap().unwrap();
    (came, is_changed)
}

#[test]
fn a_file_that_grows_as_fast_as_it_is_read_comes_to_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("growing");
    let layout = Layout::of([SIZE, 0]);
    for (blocks, hole) in [(None, 0), (None, SIZE / 4), (Some(layout), 0)] {
        let (came, is_changed) = follow(&Asked { blocks, hole }, &path);
        // It had grown once before it was opened.
        assert_eq!((came, is_changed), (2 * SIZE, true), "{blocks:?} {hole}");
        fs::remove_file(&path).unwrap();
    }
}
