//! Faults in mid-transfer, with real processes: the gate or the client is killed, the line is cut or
//! frozen, at random moments of a position-coded stream in both directions.
//!
//! Nothing may be lost, repeated or out of place; no job may start twice, see an
//! end of its input that nobody sent, or have an outcome that it did not have.
//! The client comes back each time, and another attaches for one that was killed, so every job
//! comes to its own end.
//!
//! `tools/faults --faults N --seed N --megabytes N` runs more of it.

mod client;
mod coded;
pub(crate) mod way;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread::Scope;

use serde_json::Value;

use self::client::{Client, Ended, Errand, Input};
use self::coded::Reader;
use self::way::Way;
use crate::server::{Server, signal_process};

const KILL: i32 = 9;
const STOP: i32 = 19;
/// What the program ends with when all of its input was right.
const ALL_RIGHT: i32 = 7;

/// xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % end
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    KillGate,
    /// The gate hangs, and is killed.
    StopGate,
    /// Another client attaches to the job.
    KillClient,
    Cut,
    Reset,
    /// The line is silent for a while and goes on.
    Freeze,
    FreezeAndCut,
    /// The line is silent for so long that the client takes another, and then goes on.
    Silence,
}

const FAULTS: [Fault; 8] = [
    Fault::KillClient,
    Fault::KillGate,
    Fault::StopGate,
    Fault::Cut,
    Fault::Reset,
    Fault::Freeze,
    Fault::FreezeAndCut,
    Fault::Silence,
];
/// No job has more of them.
const FAULTS_A_JOB_MAX: u64 = 8;
/// How often a client is displaced by what one that was killed had asked for.
const DISPLACED_MAX: u32 = 8;

impl Fault {
    /// Says whether there was something to strike.
    fn strike(self, way: &Way, server: &Server) -> bool {
        match self {
            Fault::KillGate => gates(server, &[KILL]),
            Fault::StopGate => gates(server, &[STOP, KILL]),
            Fault::KillClient => false,
            Fault::Cut => way.cut(false),
            Fault::Reset => way.cut(true),
            Fault::Freeze => {
                let held = way.freeze();
                way.thaw();
                held
            }
            Fault::FreezeAndCut => {
                let held = way.freeze();
                way.cut(true);
                way.thaw();
                held
            }
            Fault::Silence => {
                let before = way.connections();
                let held = way.freeze();
                way.until_connected(before);
                way.thaw();
                held
            }
        }
    }
}

/// Signals the gate that there is now; there may be none just then.
fn gates(server: &Server, signals: &[i32]) -> bool {
    let children = server.children();
    let mut gates = children.iter().filter(|(_, line)| line.contains(" gate "));
    let gate = gates.next();
    for signal in signals {
        gate.inspect(|(gate, _)| signal_process(*gate, *signal));
    }
    gate.is_some()
}

/// What a run came to.
#[derive(Debug, Default)]
struct Tally {
    /// Faults that struck something while output was still to come.
    landed: u64,
    /// The same of each kind.
    kinds: BTreeMap<Fault, u64>,
    /// Jobs that came to their own end, with all that they wrote.
    whole: u64,
    /// Clients that left because of what one that was killed had asked for, and were followed by another.
    displaced: u64,
    /// What came out of the clients, each byte once; as much went in.
    bytes: u64,
}

/// How a client is called; a broken one stands around the real one.
type Clients<'a> = &'a (dyn Fn(&Errand<'_>) -> Command + 'a);

/// One job with its faults.
struct Strike<'a> {
    server: &'a Server,
    clients: Clients<'a>,
    way: &'a Way,
    faults: Vec<(u64, Fault)>,
    input: Input,
}

impl Strike<'_> {
    /// Strikes the clients of the job, one after another, and gives how the last one ended.
    fn strike<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        (argv, reader): (&[String], Reader),
        tally: &mut Tally,
    ) -> Result<Ended, String> {
        let came = reader.came();
        let came = || came.load(Ordering::SeqCst);
        let command = (self.clients)(&Errand::Run(argv));
        let mut client = Client::begin(scope, command, (reader, self.input), (true, self.way));
        for (behind, fault) in &self.faults {
            if !self.way.until_moved(self.way.moved() + behind) {
                break;
            }
            let struck = match fault {
                // Before its first output it may not have been started.
                Fault::KillClient if came() == 0 => false,
                Fault::KillClient => {
                    client = self.next(scope, client.kill())?;
                    true
                }
                fault => fault.strike(self.way, self.server) && !client.is_read(),
            };
            if struck && came() < self.input.words * 8 {
                tally.landed += 1;
                *tally.kinds.entry(*fault).or_default() += 1;
            }
        }
        let mut ended = client.end();
        for _ in 0..DISPLACED_MAX {
            let killed = self
                .faults
                .iter()
                .any(|(_, fault)| *fault == Fault::KillClient);
            if !killed || !ended.said.contains("[attached_elsewhere]") {
                break;
            }
            tally.displaced += 1;
            ended = self.next(scope, ended)?.end();
        }
        Ok(ended)
    }

    /// Another client for one that is over.
    fn next<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        ended: Ended,
    ) -> Result<Client<'scope>, String> {
        if let Err(at) = ended.output {
            return Err(format!("output is wrong at {at}; {}", ended.said));
        }
        let command = (self.clients)(&Errand::Attach(&latest(self.server)));
        self.way.taken_over();
        let streams = (ended.reader, self.input);
        Ok(Client::begin(scope, command, streams, (false, self.way)))
    }
}

/// The job that was asked for last.
fn latest(server: &Server) -> String {
    let mut jobs = server.command(&["jobs", "--all", "--json", "-n", "1", &server.target()]);
    let done = jobs.output().unwrap();
    let job: Value = serde_json::from_slice(&done.stdout).unwrap();
    job["job"].as_str().unwrap().to_owned()
}

/// Runs one job with some faults. An error is what must never happen.
fn strike(
    (server, clients, way): (&Server, Clients<'_>, &Way),
    kinds: &[Fault],
    random: &mut Random,
    words: u64,
    tally: &mut Tally,
) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let [wrote, read] = [(); 2].map(|()| random.below(1 << 40));
    let number = 1 + random.below(FAULTS_A_JOB_MAX);
    let apart = words * 16 / number;
    let strike = Strike {
        server,
        clients,
        way,
        faults: (0..number)
            .map(|_| {
                let kind = random.below(kinds.len() as u64);
                (random.below(apart), kinds[kind as usize])
            })
            .collect(),
        input: Input { key: read, words },
    };
    let argv = coded::program(folder.path(), wrote, read, words);
    let reader = Reader::new(wrote, words);
    let wrong = |what: String| Err(format!("{:?}: {what}", strike.faults));
    let ended = std::thread::scope(|scope| strike.strike(scope, (&argv, reader), tally));
    let ended = match ended {
        Ok(ended) => ended,
        Err(why) => return wrong(why),
    };
    let said = ended.said;
    if let Err(at) = ended.output {
        return wrong(format!("output is wrong at {at}; {said}"));
    }
    let came = ended.reader.came().load(Ordering::SeqCst);
    tally.bytes += came;
    if let Some(why) = note(folder.path(), "wrong") {
        return wrong(format!("{why}; {said}"));
    }
    let starts = note(folder.path(), "started").map_or(0, |text| text.lines().count());
    if starts > 1 {
        return wrong(format!("started {starts} times; {said}"));
    }
    // A client may have been killed when it had just said that the outcome need not be kept.
    let told = came == words * 8
        && said.contains("[no_such_job]")
        && note(folder.path(), "right").is_some();
    match ended.status {
        Some(ALL_RIGHT) if came == words * 8 => tally.whole += 1,
        _ if told => tally.whole += 1,
        status => {
            return wrong(format!(
                "{status:?} with {came} bytes of {}; {said}",
                words * 8
            ));
        }
    }
    Ok(())
}

fn note(folder: &Path, name: &str) -> Option<String> {
    std::fs::read_to_string(folder.join(name)).ok()
}

/// Runs jobs until so many faults have landed.
fn strike_many(
    clients: impl Fn(&Server, &str, &Errand<'_>) -> Command,
    kinds: &[Fault],
    (faults, seed, words): (u64, u64, u64),
) -> Result<Tally, String> {
    let server = Server::start();
    // Silence is noticed fast, so that a test need not wait long for it.
    let config = server.home().join(".config/bowline/config.toml");
    std::fs::write(config, "silence = \"500ms\"\n").unwrap();
    let mut tally = Tally::default();
    let mut random = Random::new(seed);
    for attempt in 0.. {
        if tally.landed >= faults {
            break;
        }
        assert!(
            attempt < 20 * faults.max(5),
            "faults do not land: {tally:?}"
        );
        // The line is another each time, and counts anew.
        let way = Way::to(server.port().unwrap());
        let target = way.target();
        let clients = |errand: &Errand<'_>| clients(&server, &target, errand);
        strike(
            (&server, &clients, &way),
            kinds,
            &mut random,
            words,
            &mut tally,
        )
        .map_err(|why| format!("seed {seed}, job {attempt}: {why}"))?;
    }
    Ok(tally)
}

/// `bowline run` over a way, or `bowline attach`.
fn real(server: &Server, target: &str, errand: &Errand<'_>) -> Command {
    real_with(&[], server, target, errand)
}

fn real_with(flags: &[&str], server: &Server, target: &str, errand: &Errand<'_>) -> Command {
    match errand {
        Errand::Run(argv) => {
            let mut command = server.command(&["run", "--trust", "new"]);
            command.args(flags).args([target, "--"]).args(*argv);
            command
        }
        Errand::Attach(job) => {
            // What it says of the input is what that goes on by.
            let flags = [
                "attach",
                "-v",
                "--trust",
                "new",
                "--from-start",
                target,
                job,
            ];
            server.command(&flags)
        }
    }
}

/// A shell's text around the real client, whose command is its `"$@"`.
fn around(text: &str, real: &Command, server: &Server) -> Command {
    let mut command = Command::new("bash");
    server.client(&mut command);
    command.args(["-c", text, "bash"]).arg(real.get_program());
    command.args(real.get_args().map(OsStr::to_owned));
    command
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect(name))
}

#[test]
fn nothing_is_lost_repeated_or_wrong() {
    let faults = number("BOWLINE_FAULTS", 16);
    let seed = number("BOWLINE_SEED", 1);
    let words = number("BOWLINE_FAULT_MEGABYTES", 2) << 17;
    let tally =
        strike_many(real, &FAULTS, (faults, seed, words)).unwrap_or_else(|why| panic!("{why}"));
    eprintln!("seed {seed}: {tally:?}");
    assert!(tally.landed >= faults && tally.bytes > 0, "{tally:?}");
}

/// What tells a client with one defect: the faults are few, but these it must meet.
fn tells(
    clients: impl Fn(&Server, &str, &Errand<'_>) -> Command,
    (kinds, words): (&[Fault], u64),
    told: &[&str],
) {
    let Err(said) = strike_many(clients, kinds, (20, 1, words)) else {
        panic!("what should be told as {told:?} is not");
    };
    assert!(
        told.iter().any(|tell| said.contains(tell)),
        "{told:?}: {said}"
    );
}

#[test]
fn a_broken_client_is_told() {
    // Runs the job again whenever the line broke, and shows all outputs.
    let again = r#"s=255; while [ $s = 255 ]; do "$@"; s=$?; done; exit $s"#;
    // Loses eight bytes of the output.
    let loses = r#"set -o pipefail; "$@" | { head -c 65536; head -c 8 >/dev/null; cat; }"#;
    // Says that all went well whatever it was.
    let lies = r#""$@"; exit 7"#;
    // Ends the program's input where nobody did.
    let ends = r#"head -c 100000 | "$@""#;
    // One that does not come back.
    let stays = &["--on-disconnect", "kill"][..];
    for (text, flags, told) in [
        (
            again,
            stays,
            &["output is wrong", "input differs", "input ends", "started "][..],
        ),
        (loses, &[], &["output is wrong"]),
        (lies, stays, &["Some(7) with"]),
        (ends, &[], &["input ends"]),
    ] {
        let broken = |server: &Server, target: &str, errand: &Errand<'_>| {
            around(text, &real_with(flags, server, target, errand), server)
        };
        tells(broken, (&FAULTS[1..], 1 << 18), told);
    }
}

#[test]
fn one_that_attaches_in_the_wrong_place_is_told() {
    let from_now = |server: &Server, target: &str, errand: &Errand<'_>| match errand {
        Errand::Run(_) => real(server, target, errand),
        Errand::Attach(job) => {
            server.command(&["attach", "-v", "--trust", "new", "--from-now", target, job])
        }
    };
    // The rest of the output is at another place, or is there already and does not come.
    let told = ["output is wrong", "Some(7) with"];
    tells(from_now, (&[Fault::KillClient], 1 << 18), &told);
    // Loses what it read first, as one does that does not know where the input goes on.
    let skips = |server: &Server, target: &str, errand: &Errand<'_>| match errand {
        Errand::Run(_) => real(server, target, errand),
        Errand::Attach(_) => {
            let text = r#"{ head -c 8 >/dev/null; cat; } | "$@""#;
            around(text, &real(server, target, errand), server)
        }
    };
    // More than the server takes ahead of the program: else all of the input may be there already.
    let told = ["input differs", "input ends"];
    tells(skips, (&[Fault::KillClient], 1 << 22), &told);
}
