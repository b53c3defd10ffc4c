//! The network between a client and a gate: lines that delay, cut, stall and swallow.

use std::collections::{BTreeMap, VecDeque};

use crate::random::Random;

/// Bytes on their way in one direction at which the sender's socket is full.
const IN_FLIGHT_MAX: usize = 200_000;

/// An end of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Client = 0,
    Server = 1,
}

impl End {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// What comes to one end.
#[derive(Debug, Default)]
struct Way {
    transit: VecDeque<(u64, Vec<u8>)>,
    flying: usize,
    arrived: Vec<u8>,
    /// The other end has closed; this one sees it then, behind all that was sent.
    closed_at: Option<u64>,
    /// Nothing comes any more, and nobody is told.
    swallowed: bool,
}

/// A TCP connection.
#[derive(Debug)]
pub(crate) struct Line {
    delay: u64,
    /// Nothing arrives before: the path is silent, and TCP brings everything later.
    stalled_until: u64,
    /// The client may use it from then on.
    pub(crate) established_at: u64,
    /// Some gate has accepted it.
    pub(crate) is_taken: bool,
    ways: [Way; 2],
    closed: [bool; 2],
    /// Both ends were told that it is no more.
    reset: bool,
    /// The server gives up on a line that swallows what it sends.
    server_notices_at: Option<u64>,
}

impl Line {
    fn new(now: u64, delay: u64) -> Self {
        Self {
            delay,
            stalled_until: 0,
            established_at: now + 2 * delay,
            is_taken: false,
            ways: [Way::default(), Way::default()],
            closed: [false; 2],
            reset: false,
            server_notices_at: None,
        }
    }

    /// Whether the server finds it in its queue.
    pub(crate) fn is_acceptable(&self, now: u64) -> bool {
        !self.reset
            && self.arrives_at(self.established_at) <= now
            && !self.way(End::Server).swallowed
    }

    fn way(&self, to: End) -> &Way {
        &self.ways[to as usize]
    }

    fn way_mut(&mut self, to: End) -> &mut Way {
        &mut self.ways[to as usize]
    }

    fn arrives_at(&self, due: u64) -> u64 {
        due.max(self.stalled_until)
    }

    pub(crate) fn has_room(&self, from: End) -> bool {
        self.way(from.other()).flying < IN_FLIGHT_MAX
    }

    pub(crate) fn send(&mut self, from: End, now: u64, bytes: &[u8]) {
        let due = now + self.delay;
        let closed = self.reset || self.closed[from as usize];
        let way = self.way_mut(from.other());
        if closed || bytes.is_empty() {
            return;
        }
        // What is swallowed fills the sender's buffer all the same.
        way.flying += bytes.len();
        if !way.swallowed {
            way.transit.push_back((due, bytes.to_vec()));
        }
    }

    /// One end closes, or its process has died.
    pub(crate) fn close(&mut self, end: End, now: u64) {
        if std::mem::replace(&mut self.closed[end as usize], true) {
            return;
        }
        let due = now + self.delay;
        self.way_mut(end.other()).closed_at = Some(due);
    }

    /// What has come to an end.
    pub(crate) fn arrived(&mut self, to: End) -> &mut Vec<u8> {
        &mut self.way_mut(to).arrived
    }

    /// Whether an end knows that nothing more comes.
    pub(crate) fn is_over(&self, to: End, now: u64) -> bool {
        let way = self.way(to);
        let told = way.closed_at.is_some_and(|at| self.arrives_at(at) <= now);
        let all = way.transit.is_empty() && !way.swallowed;
        let noticed = to == End::Server && self.server_notices_at.is_some_and(|at| at <= now);
        self.reset || noticed || (told && all)
    }

    fn tick(&mut self, now: u64, random: &mut Random) -> bool {
        let stalled = self.stalled_until;
        let mut moved = false;
        for way in &mut self.ways {
            // Now and then only a few bytes, so that every place is cut at some time.
            let mut most = match random.below(4) {
                0 => 1 + random.size(40),
                _ => 1 + random.size(150_000),
            };
            while most > 0
                && let Some((due, bytes)) = way.transit.front_mut()
                && (*due).max(stalled) <= now
            {
                let len = most.min(bytes.len());
                way.arrived.extend(bytes.drain(..len));
                way.flying -= len;
                most -= len;
                moved = true;
                if bytes.is_empty() {
                    way.transit.pop_front();
                }
            }
        }
        moved
    }

    fn next_due(&self) -> Option<u64> {
        let transit = self
            .ways
            .iter()
            .filter_map(|way| Some(way.transit.front()?.0));
        let closed = self.ways.iter().filter_map(|way| way.closed_at);
        let dues = transit.chain(closed).chain([self.established_at]);
        dues.map(|due| self.arrives_at(due))
            .chain(self.server_notices_at)
            .min()
    }
}

/// How a line is hurt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// Both ends are told at once, and what was on its way is lost.
    Reset,
    /// Nothing comes to this end any more.
    Swallow(End),
    /// Nothing comes to either.
    SwallowBoth,
    /// Everything comes, so many milliseconds later.
    Stall(u64),
}

/// All lines.
#[derive(Debug, Default)]
pub(crate) struct Network {
    lines: BTreeMap<u64, Line>,
    next: u64,
    /// No line works before: neither those that are nor new ones.
    down_until: u64,
}

impl Network {
    /// Asks for a line. It may be one on which nothing ever comes.
    pub(crate) fn connect(&mut self, now: u64, random: &mut Random) -> u64 {
        let id = self.next;
        self.next += 1;
        let mut line = Line::new(now, random.pick(&[0, 1, 7, 40]));
        if now < self.down_until {
            line.ways.iter_mut().for_each(|way| way.swallowed = true);
            line.established_at = u64::MAX;
        }
        self.lines.insert(id, line);
        id
    }

    pub(crate) fn line(&mut self, id: u64) -> &mut Line {
        self.lines
            .get_mut(&id)
            .expect("lines are never removed while an end holds them")
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.lines.keys().copied().collect()
    }

    pub(crate) fn cut(&mut self, id: u64, now: u64, cut: Cut, random: &mut Random) {
        let line = self.line(id);
        match cut {
            Cut::Reset => {
                line.reset = true;
                for way in &mut line.ways {
                    way.transit.clear();
                    // A reset also takes what had come and was not read yet.
                    if random.one_in(2) {
                        way.arrived.clear();
                    }
                }
            }
            Cut::Stall(ms) => line.stalled_until = now + ms,
            Cut::Swallow(_) | Cut::SwallowBoth => {
                line.server_notices_at = Some(now + 1_000 + random.below(60_000));
                for (at, way) in line.ways.iter_mut().enumerate() {
                    if !matches!(cut, Cut::Swallow(end) if end as usize != at) {
                        way.swallowed = true;
                        way.transit.clear();
                    }
                }
            }
        }
    }

    /// An outage of everything, such as of a laptop that sleeps.
    pub(crate) fn go_down(&mut self, now: u64, ms: u64, random: &mut Random) {
        self.down_until = now + ms;
        for id in self.ids() {
            self.cut(id, now, Cut::SwallowBoth, random);
        }
    }

    pub(crate) fn tick(&mut self, now: u64, random: &mut Random) -> bool {
        self.lines.retain(|_, line| line.closed != [true; 2]);
        let mut moved = false;
        for line in self.lines.values_mut() {
            moved |= line.tick(now, random);
        }
        moved
    }

    pub(crate) fn next_due(&self, now: u64) -> Option<u64> {
        let dues = self.lines.values().filter_map(Line::next_due);
        dues.filter(|&due| due > now && due < u64::MAX).min()
    }
}
