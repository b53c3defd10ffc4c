//! Two sessions over a network that cuts the bytes anywhere, with programs and
//! readers of any speed: everything arrives whole and in order, outcomes come
//! last, and nobody waits for ever.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::limits::{
    BULK_OUT_PAUSE, CONTROL_OUT_PAUSE, PAYLOAD_BYTES_MAX, PRELUDE_BYTES,
    WINDOW_GROWTH_PER_CONNECTION_MAX, WINDOW_INITIAL,
};
use crate::message::{Exit, Ping, Refused, Signal, Started};
use crate::outcome::{Happened, Outcome};

/// A run that takes more steps than this is stuck.
const STEPS_MAX: u64 = 400_000;

/// The byte of a stream at an offset: tells streams, jobs and places apart.
fn byte_at(job: u64, stream: Stream, offset: u64) -> u8 {
    let mixed = offset
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(job * 31 + stream as u64 * 7);
    (mixed >> 29) as u8
}

fn fill(job: u64, stream: Stream, offset: u64, space: &mut [u8]) {
    for (place, offset) in space.iter_mut().zip(offset..) {
        *place = byte_at(job, stream, offset);
    }
}

fn check(job: u64, stream: Stream, offset: u64, bytes: &[u8]) {
    for (&byte, offset) in bytes.iter().zip(offset..) {
        assert_eq!(
            byte,
            byte_at(job, stream, offset),
            "job {job} {stream:?} {offset}"
        );
    }
}

/// Bytes on their way in one direction.
pub(super) struct Link {
    room: usize,
    delay: u64,
    transit: VecDeque<(u64, Vec<u8>)>,
    waiting: usize,
    pub(super) input: Vec<u8>,
}

impl Link {
    pub(super) fn new(room: usize, delay: u64) -> Self {
        Self {
            room,
            delay,
            transit: VecDeque::new(),
            waiting: 0,
            input: Vec::new(),
        }
    }

    /// Takes what is in the outbox, control first, as long as there is room.
    pub(super) fn load(&mut self, outbox: &mut Outbox, now: u64) {
        while self.waiting < self.room && !outbox.is_empty() {
            let bytes = if outbox.control().is_empty() {
                let bytes = outbox.bulk().to_vec();
                outbox.bulk_sent();
                bytes
            } else {
                let bytes = outbox.control().to_vec();
                outbox.control_sent();
                bytes
            };
            self.waiting += bytes.len();
            self.transit.push_back((now + self.delay, bytes));
        }
    }

    /// Delivers at most `most` bytes of what is due.
    pub(super) fn deliver(&mut self, now: u64, mut most: usize) {
        while most > 0 {
            let Some((due, bytes)) = self.transit.front_mut() else {
                return;
            };
            if *due > now {
                return;
            }
            let len = most.min(bytes.len());
            self.input.extend_from_slice(&bytes[..len]);
            self.waiting -= len;
            most -= len;
            bytes.drain(..len);
            if bytes.is_empty() {
                self.transit.pop_front();
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.transit.is_empty()
    }
}

/// Something that makes or takes bytes at its own speed: now and then, some.
#[derive(Clone, Debug)]
struct Pace {
    /// It acts once in so many steps.
    every: u64,
    /// And then on so many bytes at most.
    bytes: u64,
}

impl Pace {
    fn random(random: &mut Random) -> Self {
        match random.below(4) {
            0 => Self {
                every: 1,
                bytes: u64::MAX,
            },
            1 => Self {
                every: 1 + random.below(20),
                bytes: 300 + random.below(2_000),
            },
            2 => Self {
                every: 1 + random.below(4),
                bytes: 1 + random.below(60_000),
            },
            _ => Self {
                every: 1 + random.below(60),
                bytes: 100_000 + random.below(400_000),
            },
        }
    }

    /// How many bytes it moves in this step.
    fn turn(&self, random: &mut Random) -> u64 {
        if random.one_in(self.every) {
            self.bytes
        } else {
            0
        }
    }
}

/// What a job does, known to both sides of the test.
#[derive(Clone, Debug)]
struct Plan {
    job: u64,
    /// Bytes of stdin, stdout, stderr.
    lengths: [u64; 3],
    source: [Pace; 3],
    sink: [Pace; 3],
    start_bytes: usize,
    /// The program ends when so much of its stdin has come, whatever else is on its way.
    stdin_read: u64,
    /// The server refuses it.
    refused: bool,
    null_stdin: bool,
}

impl Plan {
    fn random(job: u64, random: &mut Random) -> Self {
        let length = |random: &mut Random| match random.below(5) {
            0 => 0,
            1 => random.below(20),
            2 => random.below(3_000),
            3 => random.below(2 * WINDOW_INITIAL),
            _ => random.below(900_000),
        };
        let pace = Pace::random;
        let lengths = [length(random), length(random), length(random)];
        let stdin_read = if random.one_in(4) {
            random.below(lengths[0] + 1)
        } else {
            lengths[0]
        };
        let start_bytes = match random.below(8) {
            0 => 1 + random.size(200_000),
            1 => PAYLOAD_BYTES_MAX * (1 + random.size(2)),
            _ => 1 + random.size(200),
        };
        let null_stdin = random.one_in(8);
        Self {
            job,
            lengths: if null_stdin {
                [0, lengths[1], lengths[2]]
            } else {
                lengths
            },
            source: [pace(random), pace(random), pace(random)],
            sink: [pace(random), pace(random), pace(random)],
            start_bytes: start_bytes.max(8),
            stdin_read: if null_stdin { 0 } else { stdin_read },
            refused: random.one_in(10),
            null_stdin,
        }
    }

    fn start(&self) -> (Start, Vec<u8>) {
        let (start, mut payload) = start_of(self.start_bytes);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.job.to_le_bytes());
        payload[0] = b'a' + (self.job % 26) as u8;
        let start = Start {
            job: Some(JobId::from_bytes(id)),
            null_stdin: self.null_stdin,
            ..start
        };
        (start, payload)
    }
}

/// The client's view of a job.
struct Asked {
    plan: Plan,
    /// stdout and stderr that came, and that was read.
    came: [u64; 2],
    read: [u64; 2],
    ended: [bool; 2],
    exited: bool,
}

/// The server's view of a job.
struct Running {
    plan: Plan,
    started: bool,
    stdin_came: u64,
    stdin_read: u64,
    stdin_ended: bool,
    /// A signal came.
    signals: u64,
}

struct World {
    random: Random,
    now: u64,
    client: Session,
    handshake: Option<ServerHandshake>,
    server: Option<Session>,
    to_server: Link,
    to_client: Link,
    /// The most bytes of one delivery.
    cut: usize,
    plans: VecDeque<Plan>,
    all: BTreeMap<u64, Plan>,
    at_once: usize,
    asked: BTreeMap<u32, Asked>,
    running: BTreeMap<u32, Running>,
    done: usize,
    late_stdin: u64,
    grew: bool,
    signals: u64,
    pings: u64,
    pongs: u64,
}

const OUTPUT: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let jobs = 1 + random.below(8);
        let plans: VecDeque<Plan> = (0..jobs)
            .map(|job| Plan::random(job, &mut random))
            .collect();
        let link = |random: &mut Random| {
            let room = [2_000, 60_000, 400_000][random.size(3)];
            let delay = [0, 1, 30][random.size(3)];
            Link::new(room, delay)
        };
        let mut client = Session::client(&hello());
        client.authenticate(&auth());
        Self {
            now: 0,
            client,
            handshake: Some(ServerHandshake::new(&hello())),
            server: None,
            to_server: link(&mut random),
            to_client: link(&mut random),
            cut: [7_000, 50_000, 200_000][random.size(3)],
            all: plans.iter().map(|plan| (plan.job, plan.clone())).collect(),
            plans,
            at_once: 1 + random.size(4),
            asked: BTreeMap::new(),
            running: BTreeMap::new(),
            done: 0,
            late_stdin: 0,
            grew: false,
            signals: 0,
            pings: 0,
            pongs: 0,
            random,
        }
    }

    fn run(mut self) -> Self {
        while self.done < self.all.len() || self.pongs < self.pings {
            self.now += 1;
            assert!(
                self.now < STEPS_MAX,
                "stuck: {} of {} jobs are done",
                self.done,
                self.all.len()
            );
            self.client_acts();
            self.server_acts();
            self.network();
            self.hear_as_server();
            self.hear_as_client();
            self.bounds();
        }
        assert_eq!(self.client.channels(), 0);
        self
    }

    fn network(&mut self) {
        self.to_server.load(self.client.outbox(), self.now);
        if let Some(handshake) = &mut self.handshake {
            self.to_client.load(handshake.outbox(), self.now);
        }
        if let Some(server) = &mut self.server {
            self.to_client.load(server.outbox(), self.now);
        }
        for link in [&mut self.to_server, &mut self.to_client] {
            // Now and then single bytes, so that every place is cut at some time.
            let most = match self.random.below(4) {
                0 => 1 + self.random.size(3),
                _ => 1 + self.random.size(self.cut),
            };
            link.deliver(self.now, most);
        }
    }

    // ---- the client ---------------------------------------------------------

    fn client_acts(&mut self) {
        while self.asked.len() < self.at_once
            && let Some(plan) = self.plans.pop_front()
        {
            let (start, payload) = plan.start();
            let channel = self.client.start(&start, &payload).unwrap();
            let fresh = Asked {
                plan,
                came: [0; 2],
                read: [0; 2],
                ended: [false; 2],
                exited: false,
            };
            assert!(self.asked.insert(channel.0, fresh).is_none());
        }
        if self.random.one_in(200) {
            self.client.ping(&Ping { id: self.pings });
            self.pings += 1;
        }
        for (&channel, asked) in &mut self.asked {
            let channel = Channel(channel);
            send(
                &mut self.client,
                &mut self.random,
                channel,
                Stream::Stdin,
                &asked.plan,
            );
            if self.random.one_in(300) {
                let signal = Signal {
                    signal: 10,
                    ..Signal::default()
                };
                self.client.signal(channel, &signal);
                self.signals += 1;
            }
            for (at, stream) in OUTPUT.into_iter().enumerate() {
                let turn = asked.plan.sink[at + 1].turn(&mut self.random);
                let len = turn.min(asked.came[at] - asked.read[at]);
                if len > 0 {
                    asked.read[at] += len;
                    self.client.consumed(channel, stream, len);
                }
            }
        }
        let client = &mut self.client;
        let done = &mut self.done;
        self.asked.retain(|&channel, asked| {
            let finished = asked.exited && asked.came == asked.read;
            if finished {
                assert!(client.close(Channel(channel)));
                *done += 1;
            }
            !finished
        });
    }

    fn hear_as_client(&mut self) {
        let mut at = 0;
        loop {
            if self.client.outbox().control_is_full() {
                break;
            }
            let input = &self.to_client.input[at..];
            let (len, channel, event) = match self.client.next(input).unwrap() {
                Step::NeedMore => break,
                Step::Taken(len) => {
                    at += len;
                    continue;
                }
                Step::Event(len, channel, event) => (len, channel, event),
            };
            at += len;
            match event {
                Event::Hello(_) | Event::Granted(_) | Event::Window(_) => {}
                Event::Pong(pong) => {
                    assert_eq!(pong.id, self.pongs);
                    self.pongs += 1;
                }
                Event::Started(_) => assert!(self.asked.contains_key(&channel.0)),
                Event::Data { stream, bytes, end } => {
                    let asked = self.asked.get_mut(&channel.0).unwrap();
                    let at = stream as usize - 1;
                    assert!(!asked.exited && !asked.ended[at]);
                    check(asked.plan.job, stream, asked.came[at], bytes);
                    asked.came[at] += bytes.len() as u64;
                    asked.ended[at] = end;
                }
                Event::Exit(exit) => {
                    let asked = self.asked.get_mut(&channel.0).unwrap();
                    assert!(!asked.plan.refused && !asked.exited);
                    assert_eq!([exit.stdout, exit.stderr], asked.came);
                    assert_eq!(asked.came[..], asked.plan.lengths[1..]);
                    assert_eq!(asked.ended, [true; 2]);
                    assert!(exit.stdin >= asked.plan.stdin_read);
                    assert_eq!(exit.outcome.code, Some(asked.plan.job as i32));
                    asked.exited = true;
                }
                Event::Refused(_) => {
                    let asked = self.asked.get_mut(&channel.0).unwrap();
                    assert!(asked.plan.refused && !asked.exited);
                    asked.exited = true;
                }
                other => panic!("{other:?}"),
            }
        }
        self.to_client.input.drain(..at);
    }

    // ---- the server ---------------------------------------------------------

    fn hear_as_server(&mut self) {
        if let Some(handshake) = &mut self.handshake {
            let (len, event) = handshake.next(&self.to_server.input).unwrap();
            self.to_server.input.drain(..len);
            let deciding = event == ServerEvent::NeedMore && self.now > 50;
            if deciding && self.random.one_in(3) {
                // Nothing behind `auth` is taken until it is decided.
                let (len, _) = handshake.next(&self.to_server.input).unwrap();
                assert_eq!(len, 0);
                if let Some(handshake) = self.handshake.take_if(|it| it.is_deciding()) {
                    self.server = Some(handshake.granted(&Granted::default(), &()));
                }
            }
            return;
        }
        let Some(server) = &mut self.server else {
            return;
        };
        let mut at = 0;
        loop {
            if server.outbox().control_is_full() {
                break;
            }
            let (len, channel, event) = match server.next(&self.to_server.input[at..]).unwrap() {
                Step::NeedMore => break,
                Step::Taken(len) => {
                    // A part of a start, or something for a job that has ended.
                    if self.to_server.input[at] == Kind::Stdin as u8 {
                        self.late_stdin += 1;
                    }
                    at += len;
                    continue;
                }
                Step::Event(len, channel, event) => (len, channel, event),
            };
            at += len;
            match event {
                Event::Start(start, payload) => {
                    let mut job = [0; 8];
                    job.copy_from_slice(&start.job.unwrap().as_bytes()[..8]);
                    let plan = self.all[&u64::from_le_bytes(job)].clone();
                    assert_eq!(plan.start(), (start, payload));
                    let fresh = Running {
                        plan,
                        started: false,
                        stdin_came: 0,
                        stdin_read: 0,
                        stdin_ended: false,
                        signals: 0,
                    };
                    assert!(self.running.insert(channel.0, fresh).is_none());
                }
                Event::Data { stream, bytes, end } => {
                    let job = self.running.get_mut(&channel.0).unwrap();
                    assert_eq!(stream, Stream::Stdin);
                    assert!(!job.stdin_ended && !job.plan.null_stdin);
                    check(job.plan.job, stream, job.stdin_came, bytes);
                    job.stdin_came += bytes.len() as u64;
                    job.stdin_ended = end;
                }
                Event::Signal(_) => self.running.get_mut(&channel.0).unwrap().signals += 1,
                Event::Window(_) | Event::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
        self.to_server.input.drain(..at);
    }

    fn server_acts(&mut self) {
        let Some(server) = &mut self.server else {
            return;
        };
        let random = &mut self.random;
        self.running.retain(|&channel, job| {
            let channel = Channel(channel);
            if !job.started {
                if random.one_in(5) {
                    return true;
                }
                if job.plan.refused {
                    server.refuse(channel, &refused());
                    return false;
                }
                server.started(channel, &Started::default());
                job.started = true;
            }
            for stream in OUTPUT {
                send(server, random, channel, stream, &job.plan);
            }
            let turn = job.plan.sink[0].turn(random);
            let len = turn.min(job.stdin_came - job.stdin_read);
            if len > 0 {
                job.stdin_read += len;
                server.consumed(channel, Stream::Stdin, len);
            }
            let reads_on = job.stdin_read < job.plan.stdin_read;
            let end = |stream| {
                let flow = server.sending(channel, stream)?;
                flow.ended().then(|| flow.sent())
            };
            let (Some(stdout), Some(stderr), false) =
                (end(Stream::Stdout), end(Stream::Stderr), reads_on)
            else {
                return true;
            };
            let exit = Exit {
                outcome: Outcome {
                    outcome: Happened::Exited,
                    code: Some(job.plan.job as i32),
                    ..Outcome::default()
                },
                stdin: job.stdin_read,
                stdout,
                stderr,
            };
            server.exit(channel, &exit);
            false
        });
    }

    // ---- what must hold at every step ---------------------------------------

    fn bounds(&mut self) {
        for (channel, asked) in &self.asked {
            for (at, stream) in OUTPUT.into_iter().enumerate() {
                let flow = self.client.receiving(Channel(*channel), stream).unwrap();
                let window = WINDOW_INITIAL + flow.growth();
                assert_eq!(flow.backlog(), asked.came[at] - asked.read[at]);
                assert!(flow.backlog() <= window, "{} of {window}", flow.backlog());
                self.grew |= flow.growth() > 0;
            }
        }
        for (channel, job) in &self.running {
            let server = self.server.as_ref().unwrap();
            let flow = server.receiving(Channel(*channel), Stream::Stdin).unwrap();
            assert!(job.stdin_came - job.stdin_read <= WINDOW_INITIAL + flow.growth());
        }
        for session in [Some(&mut self.client), self.server.as_mut()]
            .into_iter()
            .flatten()
        {
            let grown: u64 = session.channels.values().map(|it| it.growth()).sum();
            assert_eq!(
                grown + session.growth_budget,
                WINDOW_GROWTH_PER_CONNECTION_MAX
            );
            // Data stops at the pause, but for one frame; ends and outcomes come on top.
            let few = 8 * 1024;
            let bulk = BULK_OUT_PAUSE + PRELUDE_BYTES + PAYLOAD_BYTES_MAX + few;
            assert!(session.outbox().bulk().len() < bulk);
            let starts: usize = self.all.values().map(|plan| plan.start_bytes + 1024).sum();
            assert!(session.outbox().control().len() < CONTROL_OUT_PAUSE + starts);
        }
    }
}

fn refused() -> Refused {
    Refused {
        code: "too_many_jobs".to_owned(),
        message: "Try later.".to_owned(),
    }
}

/// Puts the next bytes of a stream, as much as its source has now.
fn send(session: &mut Session, random: &mut Random, channel: Channel, stream: Stream, plan: &Plan) {
    let length = plan.lengths[stream as usize];
    let mut turn = plan.source[stream as usize].turn(random);
    while turn > 0 {
        let Some(flow) = session.sending(channel, stream) else {
            return;
        };
        let (sent, room) = (flow.sent(), session.room(channel, stream));
        if flow.ended() {
            return;
        }
        if sent == length && random.one_in(2) {
            session.put_end(channel, stream).unwrap();
            return;
        }
        if room == 0 {
            return;
        }
        let put = session.put_with(channel, stream, |space| {
            assert_eq!(space.len(), room);
            let len = (space.len() as u64).min(turn).min(length - sent) as usize;
            fill(plan.job, stream, sent, &mut space[..len]);
            // The rest is not ours to send: it must not arrive.
            space[len..].fill(0xee);
            Ok::<_, std::convert::Infallible>((len, sent + len as u64 == length))
        });
        let (len, _) = put.unwrap();
        turn -= len as u64;
    }
}

#[test]
fn everything_arrives_whole_and_in_order() {
    let (mut late, mut grew, mut signals) = (0, 0, 0);
    let seeds = seeds(150);
    for &seed in &seeds {
        eprintln!("seed {seed}");
        let world = World::new(seed).run();
        late += world.late_stdin;
        grew += u64::from(world.grew);
        signals += world.signals;
    }
    // The seeds must have met what they are here for.
    if seeds.len() > 1 {
        assert!(late > 0, "no stdin came after its job's end");
        assert!(grew > 0, "no window grew");
        assert!(signals > 0, "nothing was signalled");
    }
}

/// A pair that has shaken hands, with links that are never full.
pub(super) struct Pair {
    pub(super) client: Session,
    pub(super) server: Session,
    pub(super) to_server: Link,
    pub(super) to_client: Link,
    pub(super) now: u64,
}

impl Pair {
    pub(super) fn new(room: usize, delay: u64) -> Self {
        Self {
            client: client(),
            server: server(),
            to_server: Link::new(room, delay),
            to_client: Link::new(room, delay),
            now: 0,
        }
    }

    /// One step of the network in both directions; what is heard goes to `hear`.
    pub(super) fn step(&mut self, mut hear: impl FnMut(Role, &mut Session, Channel, Event<'_>)) {
        self.now += 1;
        self.to_server.load(self.client.outbox(), self.now);
        self.to_client.load(self.server.outbox(), self.now);
        for (role, session, link) in [
            (Role::Server, &mut self.server, &mut self.to_server),
            (Role::Client, &mut self.client, &mut self.to_client),
        ] {
            link.deliver(self.now, usize::MAX);
            let input = std::mem::take(&mut link.input);
            let mut at = 0;
            while !session.outbox().control_is_full() {
                match session.next(&input[at..]).unwrap() {
                    Step::NeedMore => break,
                    Step::Taken(len) => at += len,
                    Step::Event(len, channel, event) => {
                        hear(role, session, channel, event);
                        at += len;
                    }
                }
            }
            link.input = input[at..].to_vec();
        }
    }

    pub(super) fn is_idle(&mut self) -> bool {
        self.to_server.is_idle()
            && self.to_client.is_idle()
            && self.client.outbox().is_empty()
            && self.server.outbox().is_empty()
    }

    /// Starts a job on both sides.
    pub(super) fn start(&mut self) -> Channel {
        let (start, payload) = start_of(5);
        let channel = self.client.start(&start, &payload).unwrap();
        let first = self.now;
        while self.client.channels[&channel.0].stage != super::super::channel::Stage::Running {
            assert!(self.now < first + 1_000, "the start is never answered");
            self.step(|role, session, channel, event| {
                if role == Role::Server && matches!(event, Event::Start(..)) {
                    session.started(channel, &Started::default());
                }
            });
        }
        channel
    }
}

/// Puts zeros as long as there is room; gives how many.
pub(super) fn put_zeros(session: &mut Session, channel: Channel, stream: Stream) -> u64 {
    let put = session.put_with(channel, stream, |space| {
        Ok::<_, std::convert::Infallible>((space.len(), false))
    });
    put.unwrap().0 as u64
}

#[test]
fn a_reader_that_stops_for_ever_stops_nobody_else() {
    let mut pair = Pair::new(100_000, 1);
    let (stuck, other) = (pair.start(), pair.start());
    let wanted = 20 * WINDOW_INITIAL;
    let mut came = BTreeMap::new();
    let mut pongs = 0;
    for _ in 0..20_000 {
        for (channel, stream) in [
            (stuck, Stream::Stdout),
            (stuck, Stream::Stderr),
            (other, Stream::Stdout),
        ] {
            if pair.server.room(channel, stream) > 0 {
                put_zeros(&mut pair.server, channel, stream);
            }
        }
        if pair.client.room(stuck, Stream::Stdin) > 0 {
            put_zeros(&mut pair.client, stuck, Stream::Stdin);
        }
        pair.client.ping(&Ping { id: 1 });
        pair.step(|role, session, channel, event| match event {
            Event::Data { stream, bytes, .. } => {
                let len = bytes.len() as u64;
                *came.entry((channel, stream)).or_insert(0) += len;
                // Neither the stdout of one job nor its stdin is ever read.
                if (channel, stream) != (stuck, Stream::Stdout) && stream != Stream::Stdin {
                    session.consumed(channel, stream, len);
                }
            }
            Event::Pong(_) => pongs += 1,
            _ => assert!(role == Role::Server || matches!(event, Event::Window(_))),
        });
        if came.get(&(other, Stream::Stdout)) > Some(&wanted)
            && came.get(&(stuck, Stream::Stderr)) > Some(&wanted)
        {
            break;
        }
    }
    assert!(came[&(other, Stream::Stdout)] > wanted);
    assert!(came[&(stuck, Stream::Stderr)] > wanted);
    assert_eq!(came[&(stuck, Stream::Stdout)], WINDOW_INITIAL);
    assert_eq!(came[&(stuck, Stream::Stdin)], WINDOW_INITIAL);
    assert!(pongs > 10);
}

#[test]
fn control_waits_behind_little_data() {
    let mut pair = Pair::new(1, 1);
    let channel = pair.start();
    // As much data as the outbox takes is waiting.
    while pair.client.room(channel, Stream::Stdin) > 0 {
        put_zeros(&mut pair.client, channel, Stream::Stdin);
    }
    let signal = Signal {
        signal: 2,
        ..Signal::default()
    };
    pair.client.signal(channel, &signal);
    let mut heard = Vec::new();
    while !pair.is_idle() {
        pair.step(|role, _, _, event| {
            if role == Role::Server {
                heard.push(matches!(event, Event::Signal(_)));
            }
        });
    }
    assert_eq!(heard.iter().position(|&signal| signal), Some(0));
    assert!(heard.len() > 2, "there was data to overtake");
}

#[test]
fn stdin_goes_in_the_flight_of_its_start() {
    // One flight: hello, auth, start and the whole of stdin, before any answer.
    let mut client = Session::client(&hello());
    client.authenticate(&auth());
    let (start, payload) = start_of(300_000);
    let channel = client.start(&start, &payload).unwrap();
    client
        .put_with(channel, Stream::Stdin, |space| {
            space[..3].copy_from_slice(b"abc");
            Ok::<_, ()>((3, true))
        })
        .unwrap();
    let outbox = client.outbox();
    let flight = [outbox.control(), outbox.bulk()].concat();
    let mut handshake = ServerHandshake::new(&hello());
    let mut at = 0;
    for _ in 0..2 {
        at += handshake.next(&flight[at..]).unwrap().0;
    }
    assert_eq!(handshake.next(&flight[at..]).unwrap().0, 0);
    let mut server = handshake.granted(&Granted::default(), &());
    let mut events = Vec::new();
    while at < flight.len() {
        match server.next(&flight[at..]).unwrap() {
            Step::NeedMore => panic!("the flight is whole"),
            Step::Taken(len) => at += len,
            Step::Event(len, at_channel, event) => {
                assert_eq!(at_channel, channel);
                events.push(format!("{event:?}").chars().take(5).collect::<String>());
                at += len;
            }
        }
    }
    assert_eq!(events, ["Start", "Data "]);
}

#[test]
fn a_channel_can_be_used_again_after_its_exit() {
    let mut server = server();
    let mut client = client();
    for round in 0..3 {
        client.next_channel = 7;
        let (start, payload) = start_of(5);
        assert_eq!(client.start(&start, &payload).unwrap(), Channel(7));
        client.outbox().control_sent();
        assert!(matches!(
            server.next(&start_frame(7)),
            Ok(Step::Event(_, Channel(7), Event::Start(..)))
        ));
        // The flows are fresh: all of the first window is there again.
        let first = data(Stream::Stdin, 7, &[0; 1000]);
        for _ in 0..WINDOW_INITIAL / 1000 {
            assert!(matches!(
                server.next(&first),
                Ok(Step::Event(_, _, Event::Data { .. }))
            ));
        }
        server.exit(Channel(7), &Exit::default());
        // Input that was on its way is ignored, whatever its window says.
        for _ in 0..2 * WINDOW_INITIAL / 1000 {
            assert!(matches!(server.next(&first), Ok(Step::Taken(_))));
        }
        let late = frame(Kind::Stdin, Flags::END, 7, b"", b"");
        assert!(matches!(server.next(&late), Ok(Step::Taken(_))));
        let exit = message(7, &Exit::default());
        assert!(matches!(
            client.next(&exit),
            Ok(Step::Event(_, Channel(7), Event::Exit(_)))
        ));
        assert!(client.close(Channel(7)), "round {round}");
        assert!(!client.close(Channel(7)));
        server.outbox().bulk_sent();
    }
}
