//! Client, gate and keeper on one clock and a network that does as it likes: no line, gate, keeper or client
//! that fails makes an outcome wrong, a byte missing or a job run twice.
//!
//! The sessions are real ones, and so is what brings the client back ([`Reconnect`](bowline::client::Reconnect),
//! [`Pulse`](bowline::client::Pulse), [`Unacked`](bowline::client::Unacked)); keeper, gate and the kernel between them are
//! models, one operation for each that may be the last. What they do with real processes is tested by
//! `cli/tests/it/faults`.
//!
//! `BOWLINE_SEED=n` runs one seed alone, and `BOWLINE_SEEDS=n` so many.

mod client;
mod gate;
mod keeper;
mod network;
mod random;
mod world;

use world::{Defect, Tally, Violation, Weather, World};

/// Runs all seeds, or the one that is asked for.
fn run(count: u64, weather: Weather) -> Tally {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let seeds = match number("BOWLINE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("BOWLINE_SEEDS").unwrap_or(count),
    };
    let mut sum = Tally::default();
    for seed in seeds {
        match World::new(seed, weather, Defect::None).run() {
            Ok(tally) => sum.add(&tally),
            Err(Violation(what)) => panic!("{weather:?}, BOWLINE_SEED={seed}: {what}"),
        }
    }
    eprintln!("{weather:?}: {sum:?}");
    sum
}

#[test]
fn whoever_comes_back_in_time_gets_everything() {
    let sum = run(1_500, Weather::Mild);
    if std::env::var_os("BOWLINE_SEED").is_none() {
        assert!(sum.resumed > 1_000 && sum.gates > 1_000, "{sum:?}");
    }
}

#[test]
fn nobody_is_told_what_is_not_so() {
    let sum = run(2_000, Weather::Harsh);
    if std::env::var_os("BOWLINE_SEED").is_none() {
        // The seeds must have met what they are here for.
        let met = [
            sum.keepers,
            sum.clients,
            sum.unreachable,
            sum.lost,
            sum.cancelled,
            sum.own,
        ];
        assert!(met.into_iter().all(|times| times > 50), "{sum:?}");
    }
}

/// Each of these is a program that loses, repeats or lies. A simulation that does not notice is none.
#[test]
fn every_defect_is_found() {
    for defect in [
        Defect::AcknowledgesEarly,
        Defect::SentIsArrived,
        Defect::StartsTwice,
        Defect::ResumesAtTheWrongByte,
        Defect::UnknownIsSuccess,
        Defect::RefusedIsBelieved,
    ] {
        let runs = (0..10_000).flat_map(|seed| [(seed, Weather::Mild), (seed, Weather::Harsh)]);
        let found = runs.into_iter().find_map(|(seed, weather)| {
            let violation = World::new(seed, weather, defect).run().err()?;
            Some((seed, violation))
        });
        let (seed, Violation(what)) =
            found.unwrap_or_else(|| panic!("{defect:?} is never noticed"));
        eprintln!("{defect:?}, seed {seed}: {what}");
    }
}
