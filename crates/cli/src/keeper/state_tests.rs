//! What is written stays readable: a state of each version, byte for byte.

use super::*;
use crate::ipc::{End, Exited, Source, Terms, Tree};
use crate::keeper::journal::StartRecord;

/// A state in which every field has a value of its own.
fn state() -> KeeperState {
    let id = |byte| JobId::from_bytes([byte; 16]);
    let group = |folder| CgroupState {
        folder,
        path: PathBuf::from("/cg"),
        killed: true,
        foreign: false,
    };
    let image = |byte, end| JobImage {
        start: StartRecord {
            job: id(byte),
            user: "u".to_owned(),
            uid: 1000,
            source: Source::Unix,
            connection: 3,
            unix_ms: 4,
            deadline_unix_ms: Some(5),
            fingerprint: 30,
            terms: Terms::default(),
        },
        pid: Some((6, Some(7))),
        closed: vec![crate::ipc::Stream::Stdin],
        cause: Some(Cause::TimedOut),
        end,
    };
    let end = End {
        exited: Exited::Code(8),
        cause: None,
        tree: Tree::LeftAlone,
        unix_ms: 9,
    };
    KeeperState {
        software: "1.2.3".to_owned(),
        program: PathBuf::from("/b"),
        state_dir: PathBuf::from("/s"),
        generation: 10,
        nofile: (11, 12),
        umask: 13,
        lock: 14,
        takeover: 15,
        lifeline: Some(16),
        listeners: vec![("tcp://x".to_owned(), 17)],
        socket_files: vec![SocketFile {
            path: PathBuf::from("/f"),
            device: 18,
            inode: 19,
        }],
        cgroups: CgroupsState {
            place: Some(PlaceState {
                path: PathBuf::from("/g"),
                lock: 36,
            }),
            made: 20,
            lingering: vec![group(21)],
        },
        journal: vec![image(1, None), image(2, Some(end))],
        recent: vec![(22, id(3))],
        jobs: vec![JobState {
            job: id(1),
            pid: 6,
            ours: true,
            fingerprint: 23,
            stdin: Stdin::Pipe,
            cause: Some(Cause::Cancelled(24)),
            pidfd: Some(25),
            starting: Some((26, vec![27])),
            pipes: [Some(28), None, Some(29)],
            spools: vec![(crate::ipc::Stream::Stdout, 31)],
            terminal: vec![35],
            cgroup: Some(group(30)),
            seen: vec![(31, 32)],
            timeout_ms: Some(33),
            kill_ms: Some(34),
        }],
    }
}

/// [`state`] as version 3 writes it. Where this changes, so does [`VERSION`]; the
/// old bytes stay here, with what they are to be read as.
const VERSION_3: &str = "030005312e322e33022f62022f730a0b0c0d1c1e012001077463703a2f2f782201022f66121301022f674814012a032f636701\
    0002010101010101010101010101010101010175e80701030401051e00000000010c0107010001000002020202020202020202\
    0202020202020175e80701030401051e00000000010c0107010001000100100000090116030303030303030303030303030303\
    0301010101010101010101010101010101010c01170101013001320134011b013800013a01013e0146013c032f6367010001\
    3e2001210122";

#[test]
fn what_a_release_wrote_is_read_by_the_next() {
    assert_eq!(hex::encode(state().encode().unwrap()), VERSION_3);
    let bytes = hex::decode(VERSION_3).unwrap();
    assert_eq!(KeeperState::decode(&bytes), Ok(state()));
}

#[test]
fn another_version_is_told_from_damage() {
    let mut bytes = state().encode().unwrap();
    for cut in 0..bytes.len() {
        assert_eq!(KeeperState::decode(&bytes[..cut]), Err(StateError::Damaged));
    }
    bytes[0] = 9;
    assert_eq!(KeeperState::decode(&bytes), Err(StateError::Version(9)));
}
