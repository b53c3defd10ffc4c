//! The ring at every step at which its writer may die.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::pipe::PipeFlags;

use super::*;

fn memfd() -> OwnedFd {
    rustix::fs::memfd_create("ring", MemfdFlags::CLOEXEC).unwrap()
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
    let _ = rustix::pipe::fcntl_setpipe_size(&pipe.1, 1 << 20);
    pipe
}

/// Bytes that say where they are.
fn coded(offset: u64, len: usize) -> Vec<u8> {
    let byte = |at: u64| (at / 8).to_le_bytes()[(at % 8) as usize];
    (offset..offset + len as u64).map(byte).collect()
}

/// Writes up to `len` bytes of the coded stream through the pipe; gives the new end.
fn feed(ring: &mut Ring, memfd: &OwnedFd, pipe: &(OwnedFd, OwnedFd), len: usize) -> u64 {
    let mut bytes = coded(ring.end(), len);
    while !bytes.is_empty() {
        let written = rustix::io::write(&pipe.1, &bytes).unwrap();
        let mut left = written as u64;
        while left > 0 {
            left -= ring.fill(memfd.as_fd(), pipe.0.as_fd(), left).unwrap();
        }
        bytes.drain(..written);
    }
    ring.end()
}

fn check(memfd: &OwnedFd, layout: Layout, from: u64, end: u64) {
    let mut at = from;
    let mut space = vec![0; 60_000];
    while at < end {
        let want = space.len().min((end - at) as usize);
        let len = read(memfd.as_fd(), layout, at, &mut space[..want]).unwrap();
        assert!(len > 0);
        assert!(space[..len] == coded(at, len), "at {at}");
        at += len as u64;
    }
}

/// Fills the ring to the end of its lap.
fn fill_up(ring: &mut Ring, memfd: &OwnedFd, pipe: &(OwnedFd, OwnedFd)) {
    let (_, len, _) = ring.layout.ring();
    while ring.position < len {
        let left = len - ring.position;
        feed(ring, memfd, pipe, left.min(1 << 20) as usize);
    }
}

/// A ring that has grown after so many bytes.
fn grown(after: usize, memfd: &OwnedFd, pipe: &(OwnedFd, OwnedFd)) -> Ring {
    let mut ring = Ring::open(memfd.as_fd()).unwrap();
    feed(&mut ring, memfd, pipe, after);
    ring.grow(memfd.as_fd()).unwrap();
    ring
}

/// A stream of a gate that knew one ring alone, with so many bytes before `end`.
fn single(memfd: &OwnedFd, end: u64) {
    let mut at = end.saturating_sub(RING_BYTES);
    while at < end {
        let len = (end - at).min(RING_BYTES - at % RING_BYTES).min(1 << 16);
        let bytes = coded(at, len as usize);
        rustix::io::pwrite(memfd, &bytes, at % RING_BYTES).unwrap();
        at += len;
    }
    let lap = end / RING_BYTES;
    if lap > 0 {
        write_word(memfd.as_fd(), RING_BYTES + 8, lap).unwrap();
        write_word(memfd.as_fd(), RING_BYTES, lap).unwrap();
    }
    rustix::fs::seek(memfd, SeekFrom::Start(end % RING_BYTES)).unwrap();
}

#[test]
fn three_laps_are_read_back_and_each_successor_knows_where_it_is() {
    for (grown_at, kept) in [
        (None, SMALL_BYTES),
        (Some(5), RING_BYTES),
        (Some(3_000_000), RING_BYTES),
    ] {
        let (memfd, pipe) = (memfd(), pipe());
        let mut ring = match grown_at {
            None => Ring::open(memfd.as_fd()).unwrap(),
            Some(after) => grown(after, &memfd, &pipe),
        };
        let layout = ring.layout();
        assert_eq!(layout == Layout::Small, grown_at.is_none());
        let mut end = ring.end();
        while end < 3 * RING_BYTES + 5 {
            let before = end;
            end = feed(&mut ring, &memfd, &pipe, 300_007);
            check(&memfd, layout, before, end);
            ring = Ring::open(memfd.as_fd()).unwrap();
            assert_eq!((ring.end(), ring.layout()), (end, layout));
        }
        // What is one lap behind is still there.
        assert_eq!(layout.oldest(end), end - kept);
        assert_eq!(layout.end_max(end), end + kept);
        check(&memfd, layout, end - kept, end);
        assert!(ring.fill(memfd.as_fd(), pipe.0.as_fd(), 1).is_err());
        drop(pipe.1);
        let nothing = ring.fill(memfd.as_fd(), pipe.0.as_fd(), 1).unwrap();
        assert_eq!(nothing, 0, "the pipe's end");
    }
}

#[test]
fn a_death_at_any_step_of_a_wrap_is_finished_by_the_next() {
    for (steps, large) in (0..=3).flat_map(|steps| [(steps, false), (steps, true)]) {
        let (memfd, pipe) = (memfd(), pipe());
        let fd = memfd.as_fd();
        let mut ring = match large {
            true => grown(77, &memfd, &pipe),
            false => Ring::open(fd).unwrap(),
        };
        let (from, len, words_at) = ring.layout().ring();
        let begin = ring.end();
        for lap in 0..2 {
            fill_up(&mut ring, &memfd, &pipe);
            if steps > 0 {
                write_word(fd, words_at + 8, lap + 1).unwrap();
            }
            if steps > 1 {
                rustix::fs::seek(fd, SeekFrom::Start(from)).unwrap();
            }
            if steps > 2 {
                write_word(fd, words_at, lap + 1).unwrap();
            }
            // Here it is killed.
            ring = Ring::open(fd).unwrap();
            assert_eq!(ring.end(), begin + (lap + 1) * len, "{steps} steps");
            check(&memfd, ring.layout(), begin + lap * len, ring.end());
            feed(&mut ring, &memfd, &pipe, 5);
            check(&memfd, ring.layout(), ring.end() - len, ring.end());
        }
    }
}

#[test]
fn a_death_at_any_step_of_growing_is_finished_by_the_next() {
    let after = [1, 70_000, SMALL_BYTES, SMALL_BYTES + 1, 3 * SMALL_BYTES];
    for (steps, after) in (0..=2).flat_map(|steps| after.map(|after| (steps, after))) {
        let (memfd, pipe) = (memfd(), pipe());
        let fd = memfd.as_fd();
        let mut ring = Ring::open(fd).unwrap();
        while ring.end() < after {
            let left = after - ring.end();
            feed(&mut ring, &memfd, &pipe, left.min(1 << 20) as usize);
        }
        if steps > 0 {
            write_word(fd, GROWN_AT, after).unwrap();
        }
        if steps > 1 {
            rustix::fs::seek(fd, SeekFrom::Start(SMALL_BYTES)).unwrap();
        }
        // Here it is killed.
        ring = Ring::open(fd).unwrap();
        assert_eq!(ring.end(), after, "{steps} steps");
        ring.grow(fd).unwrap();
        let layout = ring.layout();
        assert_eq!(layout, Layout::Grown(after));
        // Whoever reads by what was true before finds the same.
        let oldest = after.saturating_sub(SMALL_BYTES);
        check(&memfd, Layout::Small, oldest, after);
        assert_eq!(layout.end_max(oldest), after + RING_BYTES);
        while ring.end() < after + RING_BYTES {
            let left = after + RING_BYTES - ring.end();
            feed(&mut ring, &memfd, &pipe, left.min(1 << 20) as usize);
        }
        assert_eq!(layout.oldest(ring.end()), oldest);
        check(&memfd, layout, oldest, ring.end());
        feed(&mut ring, &memfd, &pipe, 1);
        assert_eq!(layout.oldest(ring.end()), after + 1);
        check(&memfd, layout, after + 1, ring.end());
    }
}

#[test]
fn a_stream_of_an_older_gate_goes_on_as_it_is() {
    for (end, expected) in [
        (0, Layout::Small),
        (SMALL_BYTES, Layout::Small),
        (SMALL_BYTES + 1, Layout::Single),
        (RING_BYTES - 1, Layout::Single),
        (3 * RING_BYTES + 7, Layout::Single),
    ] {
        let (memfd, pipe) = (memfd(), pipe());
        single(&memfd, end);
        let mut ring = Ring::open(memfd.as_fd()).unwrap();
        assert_eq!((ring.end(), ring.layout()), (end, expected));
        let oldest = expected.oldest(end);
        check(&memfd, expected, oldest, end);
        for _ in 0..12 {
            feed(&mut ring, &memfd, &pipe, 1 << 20);
            ring = Ring::open(memfd.as_fd()).unwrap();
            assert_eq!(ring.layout(), expected);
            check(&memfd, expected, expected.oldest(ring.end()), ring.end());
        }
        ring.grow(memfd.as_fd()).unwrap();
        assert_eq!(ring.layout() == Layout::Single, expected == Layout::Single);
    }
}

#[test]
fn what_is_no_ring_is_refused() {
    for (position, lap, intent, grown) in [
        (SMALL_BYTES + 1, 0, 0, 0),
        (1, 0, 1, 0),
        (SMALL_BYTES - 1, 4, 5, 0),
        (0, 4, 6, 0),
        (0, 4, 3, 0),
        (0, u64::MAX, 0, 0),
        (5, 1, 1, SMALL_BYTES + 6),
        (SMALL_BYTES + RING_BYTES + 1, 1, 1, SMALL_BYTES + 6),
    ] {
        let memfd = memfd();
        write_word(memfd.as_fd(), WORDS_AT, lap).unwrap();
        write_word(memfd.as_fd(), WORDS_AT + 8, intent).unwrap();
        write_word(memfd.as_fd(), GROWN_AT, grown).unwrap();
        rustix::fs::seek(&memfd, SeekFrom::Start(position)).unwrap();
        assert!(
            Ring::open(memfd.as_fd()).is_err(),
            "{position} {lap} {intent} {grown}"
        );
    }
    let memfd = memfd();
    rustix::io::pwrite(&memfd, b"x", WORDS_AT).unwrap();
    assert!(Ring::open(memfd.as_fd()).is_err());
}
