//! What became of each entry: seen in the messages that pass, whichever side is here.
//!
//! Messages enter; lines of JSON, sentences on stderr and the totals leave. Names are escaped before they
//! reach a terminal.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use bowline_proto::copy::{Entry, Hash, Message, Node, name::shown};
use serde::Serialize;

use super::progress::Progress;

/// A sentence of the other side is cut here.
const TEXT_BYTES_MAX: usize = 1024;

/// How it is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    pub(super) json: bool,
    /// Name what is done, one a line.
    pub(super) names: bool,
    pub(super) quiet: bool,
}

/// What was done in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Totals {
    pub(super) copied: u64,
    pub(super) unchanged: u64,
    pub(super) removed: u64,
    pub(super) failed: u64,
    /// Of the files that are there now.
    pub(super) bytes: u64,
    /// File data that was sent.
    pub(super) sent_bytes: u64,
}

/// A record of one entry, as JSON.
#[derive(Debug, Default, Serialize)]
struct Record<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    /// Where the path is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    changed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// An entry that is under way.
#[derive(Debug)]
struct Item {
    path: Vec<u8>,
    kind: &'static str,
    bytes: Option<u64>,
    hash: Option<Hash>,
    changed: bool,
    /// Of the blocks that are there already, but that the last may be shorter.
    block_bytes: u64,
    /// What the sender said of it.
    aborted: Option<(String, String)>,
}

/// What is known of a copy.
pub(super) struct Ledger {
    manner: Manner,
    state: Mutex<State>,
}

struct State {
    folders: Vec<Vec<u8>>,
    next: u64,
    items: HashMap<u64, Item>,
    /// The file whose content passes.
    current: Option<(u64, u64)>,
    /// Paths that earlier attempts have told of, and whether they had failed: another one after a
    /// break does not tell the same again.
    earlier: HashMap<u64, bool>,
    /// And those of this attempt.
    told: HashMap<u64, bool>,
    keys: RandomState,
    totals: Totals,
    /// What there is to do and what is settled, with what earlier groups of sources had.
    known: Extent,
    settled: Extent,
    /// What earlier groups had.
    before: Extent,
    progress: Progress,
    /// Why stdout takes no more records.
    unwritten: Option<io::Error>,
}

/// So much work.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    entries: u64,
    bytes: u64,
}

impl Extent {
    fn add(&mut self, bytes: u64) {
        self.entries = self.entries.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl Ledger {
    pub(super) fn new(manner: Manner, progress: Progress) -> Self {
        Self {
            manner,
            state: Mutex::new(State {
                folders: Vec::new(),
                next: 0,
                items: HashMap::new(),
                current: None,
                earlier: HashMap::new(),
                told: HashMap::new(),
                keys: RandomState::new(),
                totals: Totals::default(),
                known: Extent::default(),
                settled: Extent::default(),
                before: Extent::default(),
                progress,
                unwritten: None,
            }),
        }
    }

    /// Other sources follow: what they have has nothing to do with what was told before.
    pub(super) fn begin_group(&self) {
        let mut state = self.lock();
        state.earlier.clear();
        state.told.clear();
        state.before = state.settled;
    }

    /// Another attempt begins: its entries are numbered anew.
    pub(super) fn begin(&self) {
        let mut state = self.lock();
        state.folders.clear();
        state.next = 0;
        state.items.clear();
        state.current = None;
        let told = std::mem::take(&mut state.told);
        state.earlier.extend(told);
        (state.known, state.settled) = (state.before, state.before);
    }

    /// Why not all records could be written.
    pub(super) fn unwritten(&self) -> Option<io::Error> {
        self.lock().unwritten.take()
    }

    pub(super) fn totals(&self) -> Totals {
        self.lock().totals
    }

    /// Takes the display off the terminal.
    pub(super) fn end(&self) {
        self.lock().progress.end();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees a message pass.
    pub(super) fn see(&self, message: &Message<'_>) {
        let mut state = self.lock();
        match message {
            Message::Entry(entry) => state.entry(entry),
            Message::FolderEnd { .. } => _ = state.folders.pop(),
            Message::Begin { id, from } => state.content(*id, *from),
            Message::Data(bytes) => state.data(bytes.len() as u64),
            Message::Hole(len) => state.passed(*len),
            Message::Want {
                id,
                blocks: Some(layout),
                ..
            } => {
                if let Some(item) = state.items.get_mut(id) {
                    item.block_bytes = layout.block() as u64;
                }
            }
            Message::Blocks { count, .. } => {
                let current = state.current.and_then(|(id, _)| state.items.get(&id));
                let block = current.map_or(0, |item| item.block_bytes);
                state.passed(count.saturating_mul(block));
            }
            Message::Finish { hash, changed } => {
                if let Some((id, _)) = state.current {
                    state.hashed(id, hash, *changed);
                }
            }
            Message::Small {
                id,
                hash,
                changed,
                bytes,
            } => {
                state.data(bytes.len() as u64);
                state.hashed(*id, hash, *changed);
            }
            Message::Abort { id, code, text } => {
                let said = (readable(code), readable(text));
                if let Some(item) = state.items.get_mut(id) {
                    item.aborted = Some(said);
                }
            }
            Message::Skip { first, count } => {
                // What is not under way was never sent: a lie of a peer costs no time.
                let end = first.saturating_add(*count).min(state.next);
                for id in *first..end {
                    self.settle(&mut state, id, "unchanged", None);
                }
            }
            Message::Done { id, code: [], .. } => self.settle(&mut state, *id, "copied", None),
            Message::Done { id, code, text } => {
                let failure = (readable(code), readable(text));
                self.settle(&mut state, *id, "failed", Some(failure));
            }
            Message::Problem { path, code, text } => {
                let failure = (readable(code), readable(text));
                let item = Item::of(path.to_vec());
                self.tell(&mut state, &item, "failed", Some(failure));
            }
            Message::Removed { path } => {
                let item = Item::of(path.to_vec());
                self.tell(&mut state, &item, "removed", None);
            }
            _ => {}
        }
    }

    fn settle(
        &self,
        state: &mut State,
        id: u64,
        action: &'static str,
        failure: Option<(String, String)>,
    ) {
        let Some(mut item) = state.items.remove(&id) else {
            return;
        };
        if state.current.is_some_and(|(current, _)| current == id) {
            state.current = None;
        }
        state.settled.add(item.bytes.unwrap_or(0));
        let failure = match (failure, item.aborted.take()) {
            (Some(_), Some(aborted)) => Some(aborted),
            (failure, _) => failure,
        };
        self.tell(state, &item, action, failure);
    }

    fn tell(
        &self,
        state: &mut State,
        item: &Item,
        action: &'static str,
        failure: Option<(String, String)>,
    ) {
        let changed = failure.is_none() && item.changed;
        let failed = failure.is_some() || changed;
        let key = state.keys.hash_one(&item.path);
        *state.told.entry(key).or_default() |= failed;
        state.show(&item.path);
        let totals = &mut state.totals;
        match state.earlier.remove(&key) {
            Some(before) if before == failed => return,
            Some(true) => totals.failed = totals.failed.saturating_sub(1),
            _ => {}
        }
        match action {
            _ if failed => totals.failed += 1,
            "removed" => totals.removed += 1,
            "unchanged" => totals.unchanged += 1,
            _ => totals.copied += 1,
        }
        if failure.is_none() {
            totals.bytes = totals.bytes.saturating_add(item.bytes.unwrap_or(0));
        }
        if self.manner.json {
            if let Err(error) = record(item, action, failure.as_ref()) {
                state.unwritten.get_or_insert(error);
            }
        } else if self.manner.names && failure.is_none() && action != "unchanged" {
            state
                .progress
                .line(&format!("{action} {}", shown(&item.path)));
        }
        if self.manner.quiet {
            return;
        }
        if let Some((code, text)) = failure {
            let said = format!("bowline: {}: {text} [{code}]", shown(&item.path));
            state.progress.complain(&said);
        } else if changed {
            let said = format!(
                "bowline: {}: it changed while it was read [changed_while_read]",
                shown(&item.path)
            );
            state.progress.complain(&said);
        }
    }
}

impl Item {
    fn of(path: Vec<u8>) -> Self {
        Self {
            path,
            kind: "",
            bytes: None,
            hash: None,
            changed: false,
            block_bytes: 0,
            aborted: None,
        }
    }
}

impl State {
    fn entry(&mut self, entry: &Entry<'_>) {
        let mut path = self.folders.last().cloned().unwrap_or_default();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(entry.name);
        let (kind, bytes) = match entry.node {
            Node::Regular { size, .. } => ("file", Some(size)),
            Node::Stream => ("file", None),
            Node::Folder => ("folder", None),
            Node::Symlink(_) => ("symlink", None),
            Node::HardLink(_) => ("hardlink", None),
        };
        if entry.node == Node::Folder {
            self.folders.push(path.clone());
        }
        let item = Item {
            kind,
            bytes,
            ..Item::of(path)
        };
        self.known.add(bytes.unwrap_or(0));
        self.items.insert(self.next, item);
        self.next += 1;
        self.progress.length(self.known.bytes, self.known.entries);
    }

    fn content(&mut self, id: u64, from: u64) {
        self.current = Some((id, from));
        if let Some(item) = self.items.get(&id) {
            self.progress.count(self.settled.entries);
            self.progress.file(&item.path);
        }
    }

    fn data(&mut self, len: u64) {
        self.totals.sent_bytes = self.totals.sent_bytes.saturating_add(len);
        self.passed(len);
    }

    fn passed(&mut self, len: u64) {
        if let Some((_, passed)) = &mut self.current {
            *passed = passed.saturating_add(len);
            let so_far = self.settled.bytes.saturating_add(*passed);
            self.progress.position(so_far);
        }
    }

    fn hashed(&mut self, id: u64, hash: &Hash, changed: bool) {
        if let Some(item) = self.items.get_mut(&id) {
            item.hash = Some(*hash);
            item.changed = changed;
        }
    }

    fn show(&mut self, path: &[u8]) {
        let settled = self.settled;
        self.progress.settled(settled.entries, settled.bytes, path);
    }
}

/// Writes the record of an entry. A reader that has read enough is no error.
fn record(item: &Item, action: &'static str, failure: Option<&(String, String)>) -> io::Result<()> {
    let path = std::str::from_utf8(&item.path).ok();
    let base64 = || base64::engine::general_purpose::STANDARD.encode(&item.path);
    let record = Record {
        path,
        path_base64: path.is_none().then(base64),
        kind: (!item.kind.is_empty()).then_some(item.kind),
        action,
        bytes: item.bytes,
        blake3: item.hash.filter(|_| failure.is_none()).map(hex::encode),
        changed: item.changed,
        error: failure.map(|(code, _)| code.clone()),
        message: failure.map(|(_, text)| text.clone()),
    };
    let mut line = serde_json::to_vec(&record).unwrap_or_default();
    line.push(b'\n');
    match io::stdout().write_all(&line) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// A text of the other side for a person.
fn readable(text: &[u8]) -> String {
    shown(text.get(..TEXT_BYTES_MAX).unwrap_or(text))
}
