//! A client: a real session and the library's own parts that bring it back, and a model of the loop
//! of `bowline run` around them.

use std::time::Duration;

use bowline::client::{Beat, Failure, Pulse, Reconnect, Unacked};
use bowline_proto::auth::ProofJson;
use bowline_proto::frame::Stream;
use bowline_proto::id::Channel;
use bowline_proto::limits::{MINOR, PROTOCOL};
use bowline_proto::message::{
    Attach, AttachFrom, Auth, Bye, Exit, Forget, Hello, OnDisconnect, Ping, Start, Started,
};
use bowline_proto::outcome::{Happened, Outcome};
use bowline_proto::session::{Event, SendFlow, Session, Step};

use crate::keeper::{Plan, byte_at};
use crate::network::{End, Line, Network};
use crate::random::Random;
use crate::world::{Defect, Violation, ensure};

/// How long a path may be silent, in milliseconds.
const SILENCE: u64 = 4_000;
/// How long a connection may take to come about.
const CONNECT: u64 = 3_000;
const OUTPUT: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// What a client tells its user.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    /// The outcome that the server told.
    Outcome(Outcome),
    /// Nothing was run.
    Refused(String),
    /// What became of it is not known.
    Unreachable(String),
}

/// What it is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    /// `bowline run`.
    Run,
    /// `bowline logs -f`, from the oldest byte that is kept.
    Watch,
}

#[derive(Debug)]
enum State {
    Waiting { until: u64 },
    Dialling { line: u64, until: u64 },
    Up(Box<Up>),
    Over,
}

/// A line that stands.
#[derive(Debug)]
struct Up {
    line: u64,
    session: Session,
    channel: Option<Channel>,
    answered: bool,
    pulse: Pulse,
    beat_at: u64,
    heard: u64,
    since: u64,
}

/// A client, over all of its lines.
#[derive(Debug)]
pub(crate) struct Client {
    plan: Plan,
    defect: Defect,
    pub(crate) errand: Errand,
    state: State,
    reconnect: Reconnect,
    asked: bool,
    started: bool,
    stdin: Unacked,
    stdin_read: u64,
    /// Where each stream began, how much came of it, and how much of that is written.
    began: [Option<u64>; 2],
    received: [u64; 2],
    written: [u64; 2],
    ended: [bool; 2],
    exit: Option<Exit>,
    pub(crate) told: Option<Told>,
    /// Lines that were lost in mid-transfer.
    pub(crate) lost: u64,
    /// Of these, lines on which it had asked and was not answered: what it asked there may arrive yet, behind
    /// what it asks later, and take its place.
    may_displace: u64,
    displaced: bool,
}

fn time(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn ms(time: Duration) -> u64 {
    // Rounded up: a wait of part of a millisecond is none of nothing.
    u64::try_from(time.as_micros().div_ceil(1_000)).unwrap()
}

impl Client {
    pub(crate) fn new(plan: &Plan, errand: Errand, now: u64, defect: Defect) -> Self {
        Self {
            plan: plan.clone(),
            defect,
            errand,
            state: State::Waiting { until: now },
            reconnect: Reconnect::new(time(now), time(plan.grace)),
            asked: false,
            started: errand == Errand::Watch,
            stdin: Unacked::default(),
            stdin_read: 0,
            began: [None; 2],
            received: [0; 2],
            written: [0; 2],
            ended: [false; 2],
            exit: None,
            told: None,
            lost: 0,
            may_displace: 0,
            displaced: false,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Its bytes of each stream: where they began and where they ended.
    pub(crate) fn came(&self) -> [(u64, u64); 2] {
        [0, 1].map(|at| (self.began[at].unwrap_or(0), self.written[at]))
    }

    /// Its process is killed.
    pub(crate) fn die(&mut self, now: u64, network: &mut Network) {
        if let State::Up(up) = &self.state {
            network.line(up.line).close(End::Client, now);
        }
        if let State::Dialling { line, .. } = self.state {
            network.line(line).close(End::Client, now);
        }
        self.state = State::Over;
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        match &self.state {
            State::Waiting { until } | State::Dialling { until, .. } => Some(*until),
            State::Up(up) => Some(up.beat_at),
            State::Over => None,
        }
    }

    /// The line that it is on.
    pub(crate) fn line(&self) -> Option<u64> {
        match &self.state {
            State::Up(up) => Some(up.line),
            _ => None,
        }
    }

    /// Does what there is to do. Says whether that was anything.
    pub(crate) fn turn(
        &mut self,
        now: u64,
        network: &mut Network,
        random: &mut Random,
    ) -> Result<bool, Violation> {
        match &mut self.state {
            State::Over => Ok(false),
            State::Waiting { until } if *until > now => Ok(false),
            State::Waiting { .. } => {
                let line = network.connect(now, random);
                self.state = State::Dialling {
                    line,
                    until: now + CONNECT,
                };
                Ok(true)
            }
            &mut State::Dialling { line, until } => {
                let wire = network.line(line);
                if wire.established_at <= now {
                    self.state = State::Up(Box::new(Up::new(line, now)));
                } else if until <= now {
                    wire.close(End::Client, now);
                    self.failed(now, Failure::Unanswered, random);
                } else {
                    return Ok(false);
                }
                Ok(true)
            }
            State::Up(_) => self.talk(now, network, random),
        }
    }

    fn failed(&mut self, now: u64, failure: Failure, random: &mut Random) {
        match self.reconnect.failed(time(now), failure, random.number()) {
            Some(pause) => {
                self.state = State::Waiting {
                    until: now + ms(pause),
                };
            }
            None => self.tell(Told::Unreachable("grace".to_owned())),
        }
    }

    fn tell(&mut self, told: Told) {
        self.told = Some(told);
        self.state = State::Over;
    }

    // ---- on a line ------------------------------------------------------------

    fn talk(
        &mut self,
        now: u64,
        network: &mut Network,
        random: &mut Random,
    ) -> Result<bool, Violation> {
        let State::Up(mut up) = std::mem::replace(&mut self.state, State::Over) else {
            return Ok(false);
        };
        let line = network.line(up.line);
        let over = line.is_over(End::Client, now);
        let mut moved = self.hear(&mut up, line.arrived(End::Client), now)?;
        if self.told.is_some() {
            line.close(End::Client, now);
            return Ok(true);
        }
        moved |= self.ask(&mut up)?;
        moved |= self.send_stdin(&mut up, random);
        moved |= self.write(&mut up, random);
        if let Some(exit) = self.exit.take_if(|_| self.received == self.written) {
            up.session.forget(&Forget {
                job: Some(self.plan.id()),
            });
            up.session.bye(&Bye::default());
            up.flush(line, now);
            line.close(End::Client, now);
            self.tell(Told::Outcome(exit.outcome));
            return Ok(true);
        }
        let silent = up.is_silent(now) || std::mem::take(&mut self.displaced);
        moved |= up.flush(line, now);
        if !(silent || over && line.arrived(End::Client).is_empty()) {
            self.state = State::Up(up);
            return Ok(moved);
        }
        line.close(End::Client, now);
        self.lose(&up, now, random);
        Ok(true)
    }

    fn lose(&mut self, up: &Up, now: u64, random: &mut Random) {
        if self.defect == Defect::UnknownIsSuccess && self.ended == [true; 2] {
            return self.tell(Told::Outcome(Outcome {
                outcome: Happened::Exited,
                code: Some(0),
                ..Outcome::default()
            }));
        }
        self.lost += u64::from(self.asked);
        self.may_displace += u64::from(up.channel.is_some() && !up.answered);
        // An outcome that was not taken to its end is asked for again.
        self.exit = None;
        if up.session.is_granted() {
            let pause = self.reconnect.lost(time(now), random.number());
            self.state = State::Waiting {
                until: now + ms(pause),
            };
        } else {
            self.failed(now, Failure::Unanswered, random);
        }
        // A line that lasted for no time must not be taken up in no time.
        if let (State::Waiting { until }, true) = (&mut self.state, up.since == now) {
            *until += 1;
        }
    }

    /// Asks for the job, once the server has said what it can do.
    fn ask(&mut self, up: &mut Up) -> Result<bool, Violation> {
        if up.channel.is_some() || up.session.minor() == 0 {
            return Ok(false);
        }
        let asked = match self.started {
            false => {
                self.asked = true;
                self.stdin_goes_on_at(0)?;
                let start = Start {
                    job: Some(self.plan.id()),
                    args: 1,
                    bytes: 2,
                    on_disconnect: OnDisconnect::Keep,
                    grace_ms: Some(self.plan.grace),
                    ..Start::default()
                };
                up.session.start(&start, b"x\0")
            }
            true => up.session.attach(&self.attach()),
        };
        up.channel = Some(asked.map_err(|error| Violation(error.to_string()))?);
        Ok(true)
    }

    fn attach(&self) -> Attach {
        let [stdout, stderr] = match self.defect {
            // It believes that what it wrote is what came.
            Defect::ResumesAtTheWrongByte => self.received.map(|received| Some(received / 2)),
            _ => self.received.map(Some),
        };
        let fresh = self.began == [None; 2] && self.errand == Errand::Watch;
        Attach {
            job: Some(self.plan.id()),
            stdout,
            stderr,
            from: if fresh {
                AttachFrom::Start
            } else {
                AttachFrom::Offset
            },
            stdin: self.errand == Errand::Run,
            since_ms: None,
        }
    }

    fn stdin_goes_on_at(&mut self, offset: u64) -> Result<(), Violation> {
        let lost = |error: bowline::client::InputLost| Violation(error.to_string());
        self.stdin.go_on_at(offset).map_err(lost)
    }

    fn hear(&mut self, up: &mut Up, input: &mut Vec<u8>, now: u64) -> Result<bool, Violation> {
        let mut at = 0;
        while self.told.is_none() && !up.session.outbox().control_is_full() {
            let step = up.session.next(&input[at..]);
            let step = step.map_err(|error| Violation(format!("the client hears: {error}")))?;
            match step {
                Step::NeedMore => break,
                Step::Taken(len) => at += len,
                Step::Event(len, channel, event) => {
                    at += len;
                    let acked = up.channel.filter(|_| matches!(event, Event::Window(_)));
                    up.answered |= matches!(event, Event::Started(_));
                    if let Event::Granted(_) = event {
                        self.reconnect.connected(time(now));
                    }
                    self.happened(channel, event)?;
                    if let Some(channel) = acked {
                        let acked = up
                            .session
                            .sending(channel, Stream::Stdin)
                            .map_or(0, SendFlow::acked);
                        self.stdin.acked(acked);
                    }
                }
            }
        }
        up.heard += at as u64;
        input.drain(..at);
        Ok(at > 0)
    }

    fn happened(&mut self, channel: Channel, event: Event<'_>) -> Result<(), Violation> {
        match event {
            Event::Started(started) => self.has_started(&started)?,
            Event::Data { stream, bytes, end } => {
                let at = stream as usize - 1;
                self.began[at].get_or_insert(self.received[at]);
                for (byte, offset) in bytes.iter().zip(self.received[at]..) {
                    let right = byte_at(self.plan.number, stream, offset);
                    ensure!(
                        *byte == right,
                        "the client gets a wrong byte at {offset} of {stream:?}"
                    );
                }
                self.received[at] += bytes.len() as u64;
                self.ended[at] |= end;
            }
            Event::Exit(exit) => {
                let whole = self.received == [exit.stdout, exit.stderr];
                ensure!(whole || self.exit.is_none(), "two outcomes");
                let ran = !matches!(
                    exit.outcome.outcome,
                    Happened::NotStarted | Happened::Refused
                );
                ensure!(whole || !ran, "an outcome ahead of its output");
                self.exit = Some(exit);
            }
            Event::Refused(refused)
                if refused.code == "attached_elsewhere" && self.may_displace > 0 =>
            {
                self.may_displace -= 1;
                self.displaced = true;
            }
            Event::Refused(refused) if channel != Channel::CONNECTION => {
                // One that answers a second start, or an attach, says nothing of the first.
                let unknown =
                    self.started || self.lost > 0 && self.defect != Defect::RefusedIsBelieved;
                self.tell(match unknown {
                    true => Told::Unreachable(refused.code),
                    false => Told::Refused(refused.code),
                });
            }
            Event::Gap(_) => return Err(Violation("a gap".to_owned())),
            _ => {}
        }
        Ok(())
    }

    fn has_started(&mut self, started: &Started) -> Result<(), Violation> {
        for (at, began) in [started.stdout, started.stderr].into_iter().enumerate() {
            let Some(began) = began else { continue };
            if self.errand == Errand::Watch && began > self.received[at] {
                // Who only watches is told of what nobody kept for it while its line was broken.
                self.began[at].get_or_insert(began);
                (self.received[at], self.written[at]) = (began, began);
            }
            ensure!(
                began >= self.received[at],
                "{began} comes again, of {}",
                self.received[at]
            );
            if began > self.received[at] {
                // It came back when its time was over, and others had read on.
                self.tell(Told::Unreachable("output_lost".to_owned()));
                return Ok(());
            }
        }
        if self.started && self.errand == Errand::Run && !started.stdin_closed {
            self.stdin_goes_on_at(started.stdin)?;
        }
        self.started = true;
        Ok(())
    }

    fn send_stdin(&mut self, up: &mut Up, random: &mut Random) -> bool {
        let Some(channel) = up.channel.filter(|_| self.errand == Errand::Run) else {
            return false;
        };
        let (mut moved, number, length) = (false, self.plan.number, self.plan.stdin);
        for _ in 0..4 {
            if up.session.room(channel, Stream::Stdin) == 0 {
                break;
            }
            let (stdin, read) = (&mut self.stdin, &mut self.stdin_read);
            let most = 1 + random.size(70_000);
            let put = up.session.put_with(channel, Stream::Stdin, |space| {
                let most = most.min(space.len());
                let space = &mut space[..most];
                let len = match stdin.has_again() {
                    true => stdin.again(space),
                    false => {
                        let len = space.len().min(usize::try_from(length - *read).unwrap());
                        for (place, offset) in space[..len].iter_mut().zip(*read..) {
                            *place = byte_at(number, Stream::Stdin, offset);
                        }
                        stdin.sent(&space[..len]);
                        *read += len as u64;
                        len
                    }
                };
                Ok::<_, std::convert::Infallible>((len, *read == length && !stdin.has_again()))
            });
            let Ok((len, end)) = put else { break };
            moved |= len > 0 || end;
            if end || len == 0 {
                break;
            }
        }
        moved
    }

    /// Its own stdout and stderr take something.
    fn write(&mut self, up: &mut Up, random: &mut Random) -> bool {
        let Some(channel) = up.channel else {
            return false;
        };
        let mut moved = false;
        for (at, stream) in OUTPUT.into_iter().enumerate() {
            let most = 1 + random.below(150_000);
            let len = (self.received[at] - self.written[at]).min(most);
            self.written[at] += len;
            if len > 0 {
                up.session.consumed(channel, stream, len);
                moved = true;
            }
        }
        moved
    }
}

impl Up {
    fn new(line: u64, now: u64) -> Self {
        let hello = Hello {
            protocol: PROTOCOL.to_owned(),
            minor: MINOR,
            ..Hello::default()
        };
        let mut session = Session::client(&hello);
        session.authenticate(&Auth {
            user: "alice".to_owned(),
            proofs: vec![ProofJson::Peer],
        });
        Self {
            line,
            session,
            channel: None,
            answered: false,
            pulse: Pulse::default(),
            beat_at: now + ms(Pulse::interval(time(SILENCE))),
            heard: 0,
            since: now,
        }
    }

    /// Whether nobody is at the other end any more.
    fn is_silent(&mut self, now: u64) -> bool {
        if now < self.beat_at {
            return false;
        }
        self.beat_at = now + ms(Pulse::interval(time(SILENCE)));
        match self.pulse.beat(self.heard) {
            Beat::Silent => true,
            Beat::Ping => {
                if self.session.is_granted() {
                    self.session.ping(&Ping { id: now });
                }
                false
            }
        }
    }

    fn flush(&mut self, line: &mut Line, now: u64) -> bool {
        let outbox = self.session.outbox();
        let moved = !outbox.is_empty() && line.has_room(End::Client);
        if moved {
            line.send(End::Client, now, outbox.control());
            line.send(End::Client, now, outbox.bulk());
            outbox.control_sent();
            outbox.bulk_sent();
        }
        moved
    }
}
