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

fn check(memfd: &OwnedFd, from: u64, end: u64) {
    let mut at = from;
    let mut space = vec![0; 60_000];
    while at < end {
        let want = space.len().min((end - at) as usize);
        let len = read(memfd.as_fd(), at, &mut space[..want]).unwrap();
        assert!(len > 0);
        assert!(space[..len] == coded(at, len), "at {at}");
        at += len as u64;
    }
}

#[test]
fn three_laps_are_read_back_and_each_successor_knows_where_it_is() {
    let (memfd, pipe) = (memfd(), pipe());
    let mut ring = Ring::open(memfd.as_fd()).unwrap();
    let mut end = 0;
    while end < 3 * RING_BYTES + 5 {
        let before = end;
        end = feed(&mut ring, &memfd, &pipe, 300_007);
        check(&memfd, before, end);
        ring = Ring::open(memfd.as_fd()).unwrap();
        assert_eq!(ring.end(), end);
    }
    // What is one lap behind is still there.
    check(&memfd, end - RING_BYTES, end);
    assert!(ring.fill(memfd.as_fd(), pipe.0.as_fd(), 1).is_err());
    drop(pipe.1);
    let nothing = ring.fill(memfd.as_fd(), pipe.0.as_fd(), 1).unwrap();
    assert_eq!(nothing, 0, "the pipe's end");
}

#[test]
fn a_death_at_any_step_of_a_wrap_is_finished_by_the_next() {
    for steps in 0..=3 {
        let (memfd, pipe) = (memfd(), pipe());
        let fd = memfd.as_fd();
        let mut ring = Ring::open(fd).unwrap();
        for lap in 0..2 {
            while ring.position < RING_BYTES {
                let left = RING_BYTES - ring.position;
                feed(&mut ring, &memfd, &pipe, left.min(1 << 20) as usize);
            }
            if steps > 0 {
                write_word(fd, 1, lap + 1).unwrap();
            }
            if steps > 1 {
                rustix::fs::seek(fd, SeekFrom::Start(0)).unwrap();
            }
            if steps > 2 {
                write_word(fd, 0, lap + 1).unwrap();
            }
            // Here it is killed.
            ring = Ring::open(fd).unwrap();
            assert_eq!(ring.end(), (lap + 1) * RING_BYTES, "{steps} steps");
            check(&memfd, lap * RING_BYTES, ring.end());
            feed(&mut ring, &memfd, &pipe, 5);
            check(&memfd, ring.end() - RING_BYTES, ring.end());
        }
    }
}

#[test]
fn what_is_no_ring_is_refused() {
    for (position, lap, intent) in [
        (RING_BYTES + 1, 0, 0),
        (1, 0, 1),
        (RING_BYTES - 1, 4, 5),
        (0, 4, 6),
        (0, 4, 3),
        (0, u64::MAX, 0),
    ] {
        let memfd = memfd();
        write_word(memfd.as_fd(), 0, lap).unwrap();
        write_word(memfd.as_fd(), 1, intent).unwrap();
        rustix::fs::seek(&memfd, SeekFrom::Start(position)).unwrap();
        assert!(
            Ring::open(memfd.as_fd()).is_err(),
            "{position} {lap} {intent}"
        );
    }
    let memfd = memfd();
    rustix::io::pwrite(&memfd, b"x", WORDS_AT).unwrap();
    assert!(Ring::open(memfd.as_fd()).is_err());
}
