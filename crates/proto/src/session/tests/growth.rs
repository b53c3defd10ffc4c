//! Windows grow where the window is what limits a stream, and nowhere else.

use super::simulation::{Pair, put_zeros};
use super::*;
use crate::limits::{WINDOW_GROWTH_PER_CONNECTION_MAX, WINDOW_INITIAL, WINDOW_MAX};

/// Runs a stream of stdout on each of `channels` channels whose readers take at
/// most `per_step` bytes a step; gives the growth of each and the bytes that came.
fn run(channels: usize, delay: u64, steps: u64, per_step: u64) -> (Vec<u64>, u64) {
    let mut pair = Pair::new(usize::MAX, delay);
    let channels: Vec<Channel> = (0..channels).map(|_| pair.start()).collect();
    let mut waiting = vec![0_u64; channels.len()];
    let mut came = 0;
    for _ in 0..steps {
        // A round of each, until windows or the outbox stop them all; then the network.
        for round in 0..1024 {
            let moved: u64 = channels
                .iter()
                .map(|&channel| put_zeros(&mut pair.server, channel, Stream::Stdout))
                .sum();
            pair.to_client.load(pair.server.outbox(), pair.now);
            if moved == 0 {
                break;
            }
            assert!(round < 1023, "more than any window came in one step");
        }
        pair.step(|_, _, channel, event| {
            if let Event::Data { bytes, .. } = event {
                let at = channels.iter().position(|&it| it == channel).unwrap();
                waiting[at] += bytes.len() as u64;
                came += bytes.len() as u64;
            }
        });
        for (&channel, waiting) in channels.iter().zip(&mut waiting) {
            let len = per_step.min(*waiting);
            if len > 0 {
                *waiting -= len;
                pair.client.consumed(channel, Stream::Stdout, len);
            }
        }
    }
    let growth = |&channel: &Channel| {
        let flow = pair.client.receiving(channel, Stream::Stdout).unwrap();
        flow.growth()
    };
    (channels.iter().map(growth).collect(), came)
}

#[test]
fn a_fast_reader_on_a_long_path_gets_the_largest_window() {
    let (growth, _) = run(1, 40, 800, u64::MAX);
    assert_eq!(growth, [WINDOW_MAX - WINDOW_INITIAL]);
}

#[test]
fn a_slow_reader_on_a_short_path_keeps_the_first_window() {
    let (growth, came) = run(1, 0, 2_000, 3_000);
    assert_eq!(growth, [0]);
    assert!(came >= 2_000 * 3_000, "and it never runs dry: {came}");
}

#[test]
fn a_window_stops_growing_when_it_fills_the_path() {
    // 100,000 bytes a step over 2 × 10 steps: 2 MB are under way.
    let (growth, came) = run(1, 10, 600, 100_000);
    assert!(growth[0] + WINDOW_INITIAL >= 1 << 20, "{growth:?}");
    assert!(growth[0] + WINDOW_INITIAL <= 8 << 20, "{growth:?}");
    assert!(came >= 50_000_000, "{came}");
}

#[test]
fn all_windows_together_stay_in_the_budget() {
    let (growth, _) = run(6, 40, 500, u64::MAX);
    let sum: u64 = growth.iter().sum();
    assert_eq!(sum, WINDOW_GROWTH_PER_CONNECTION_MAX, "{growth:?}");
    assert!(growth.iter().all(|&it| it <= WINDOW_MAX - WINDOW_INITIAL));
}
