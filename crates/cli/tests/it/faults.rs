//! Faults in mid-transfer, with real processes: the gate is killed, the line is cut or
//! frozen, at random moments of a position-coded stream in both directions.
//!
//! Nothing may be lost, repeated or out of place; no job may start twice, see an
//! end of its input that nobody sent, or have an outcome that it did not have.
//! The client comes back each time, so every job comes to its own end.
//!
//! `tools/faults --faults N --seed N --megabytes N` runs more of it.

mod coded;
pub(crate) mod way;

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use self::way::Way;
use crate::server::{Server, signal_process};

const KILL: i32 = 9;
const STOP: i32 = 19;
/// What the program ends with when all of its input was right.
const ALL_RIGHT: i32 = 7;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % end
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    KillGate,
    /// The gate hangs, and is killed.
    StopGate,
    Cut,
    Reset,
    /// The line is silent for a while and goes on.
    Freeze,
    FreezeAndCut,
    /// The line is silent for so long that the client takes another, and then goes on.
    Silence,
}

const FAULTS: [Fault; 7] = [
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

impl Fault {
    fn strike(self, way: &Way, server: &Server) {
        match self {
            Fault::KillGate => gates(server, &[KILL]),
            Fault::StopGate => gates(server, &[STOP, KILL]),
            Fault::Cut => way.cut(false),
            Fault::Reset => way.cut(true),
            Fault::Freeze => {
                way.freeze();
                way.thaw();
            }
            Fault::FreezeAndCut => {
                way.freeze();
                way.cut(true);
                way.thaw();
            }
            Fault::Silence => {
                let before = way.connections();
                way.freeze();
                way.until_connected(before);
                way.thaw();
            }
        }
    }
}

/// Signals the gate that there is now; there may be none just then.
fn gates(server: &Server, signals: &[i32]) {
    let children = server.children();
    let gates = children.iter().filter(|(_, line)| line.contains(" gate "));
    for (gate, _) in gates {
        signals
            .iter()
            .for_each(|signal| signal_process(*gate, *signal));
    }
}

/// What a run came to.
#[derive(Debug, Default)]
struct Tally {
    /// Faults while bytes were still to come.
    landed: u64,
    /// Jobs that came to their own end, with all that they wrote.
    whole: u64,
    /// What came out of the client, and as much went in.
    bytes: u64,
}

/// How the client is called; a broken one stands around the real one.
type Client<'a> = &'a dyn Fn(&[String]) -> Command;

/// Runs one job with some faults. An error is what must never happen.
fn strike(
    server: &Server,
    client: Client<'_>,
    way: &Way,
    random: &mut Random,
    count: u64,
    tally: &mut Tally,
) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let [wrote, read] = [(); 2].map(|()| random.below(1 << 40));
    let faults: Vec<(u64, Fault)> = {
        let number = 1 + random.below(FAULTS_A_JOB_MAX);
        let apart = count * 16 / number;
        let fault = |random: &mut Random| FAULTS[random.below(FAULTS.len() as u64) as usize];
        (0..number)
            .map(|_| (random.below(apart), fault(random)))
            .collect()
    };
    let mut child = client(&coded::program(folder.path(), wrote, read, count))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take().unwrap();
    let output = child.stdout.take().unwrap();
    let came = std::thread::scope(|scope| {
        scope.spawn(move || coded::write(input, read, count));
        let output = scope.spawn(move || {
            let came = coded::read(output, wrote);
            way.done();
            came
        });
        for (behind, fault) in &faults {
            if !way.until_moved(way.moved() + behind) {
                break;
            }
            fault.strike(way, server);
            tally.landed += u64::from(!output.is_finished());
        }
        output.join().unwrap()
    });
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    let wrong = |what: String| Err(format!("{faults:?}: {what}; {said}"));
    let came = match came {
        Ok(came) => came,
        Err(at) => return wrong(format!("output is wrong at {at}")),
    };
    tally.bytes += came;
    if let Some(why) = note(folder.path(), "wrong") {
        return wrong(why);
    }
    let starts = note(folder.path(), "started").map_or(0, |text| text.lines().count());
    if starts > 1 {
        return wrong(format!("started {starts} times"));
    }
    match done.status.code() {
        Some(ALL_RIGHT) if came == count * 8 => tally.whole += 1,
        status => return wrong(format!("{status:?} with {came} bytes of {}", count * 8)),
    }
    Ok(())
}

fn note(folder: &Path, name: &str) -> Option<String> {
    std::fs::read_to_string(folder.join(name)).ok()
}

/// Runs jobs until so many faults have landed.
fn strike_many(
    client: impl Fn(&Server, &str, &[String]) -> Command,
    (faults, seed, count): (u64, u64, u64),
) -> Result<Tally, String> {
    let server = Server::start();
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
        let client = |argv: &[String]| client(&server, &target, argv);
        strike(&server, &client, &way, &mut random, count, &mut tally)
            .map_err(|why| format!("seed {seed}, job {attempt}: {why}"))?;
    }
    Ok(tally)
}

/// `bowline run` over a way.
fn run(server: &Server, target: &str, argv: &[String]) -> Command {
    run_with(&[], server, target, argv)
}

fn run_with(flags: &[&str], server: &Server, target: &str, argv: &[String]) -> Command {
    // Silence is noticed fast, so that a test need not wait long for it.
    let mut command = server.command(&["run", "--trust", "new", "--silence", "500ms"]);
    command.args(flags).args([target, "--"]).args(argv);
    command
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
    let faults = number("BOWLINE_FAULTS", 12);
    let seed = number("BOWLINE_SEED", 1);
    let count = number("BOWLINE_FAULT_MEGABYTES", 2) << 17;
    let tally = strike_many(run, (faults, seed, count)).unwrap_or_else(|why| panic!("{why}"));
    eprintln!("seed {seed}: {tally:?}");
    assert!(tally.landed >= faults && tally.bytes > 0, "{tally:?}");
}

/// Clients with one defect each, which the same run must tell, and how it may.
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
    for (text, flags, tells) in [
        (
            again,
            stays,
            &["output is wrong", "input differs", "input ends", "started "][..],
        ),
        (loses, &[], &["output is wrong"]),
        (lies, stays, &["Some(7) with"]),
        (ends, &[], &["input ends"]),
    ] {
        let broken = |server: &Server, target: &str, argv: &[String]| {
            around(text, &run_with(flags, server, target, argv), server)
        };
        let Err(told) = strike_many(broken, (20, 1, 1 << 18)) else {
            panic!("{text} is not told");
        };
        assert!(
            tells.iter().any(|tell| told.contains(tell)),
            "{text}: {told}"
        );
    }
}
