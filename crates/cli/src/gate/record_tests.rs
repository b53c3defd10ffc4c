//! What the record keeps, shows and drops.

use bowline_proto::outcome::Happened;

use super::*;

fn asked(number: u8, unix_ms: u64) -> Asked {
    Asked {
        job: JobId::from_bytes([number; 16]),
        user: "alice".to_owned(),
        proof: "SHA256:x".to_owned(),
        source: "127.0.0.1:1".to_owned(),
        command: "true".to_owned(),
        cwd: None,
        unix_ms,
    }
}

fn wanted(user: &str, ended: bool, count: u32) -> Wanted {
    Wanted {
        user: user.to_owned(),
        ended,
        count,
        prefix: String::new(),
    }
}

#[test]
fn a_prefix_names_the_ids_that_begin_so() {
    let dir = tempfile::tempdir().unwrap();
    let keep = Keep {
        jobs_max: 300,
        age_ms: 1 << 40,
    };
    let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
    for number in 0..=255 {
        recorder.asked(asked(number, u64::from(number)));
    }
    let fits = |prefix: &str| {
        let wanted = Wanted {
            prefix: prefix.to_owned(),
            ..wanted("alice", true, 1000)
        };
        recorder.list(wanted).blocking_recv().unwrap().len()
    };
    let whole = "ab".repeat(16);
    let longer = format!("{whole}a");
    for (prefix, count) in [
        ("", 256),
        ("a", 16),
        ("ab", 1),
        ("AB", 1),
        ("aba", 1),
        ("abc", 0),
        ("f", 16),
        ("0", 16),
        (&whole, 1),
        (&longer, 0),
        ("x", 0),
        ("é", 0),
    ] {
        assert_eq!(fits(prefix), count, "{prefix:?}");
    }
    drop(recorder);
    thread.join().unwrap();
}

#[test]
fn a_job_is_there_before_its_outcome_and_survives_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let keep = Keep {
        jobs_max: 10,
        age_ms: 1 << 40,
    };
    let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
    assert!(recorder.asked(asked(1, 5)).blocking_recv().unwrap());
    assert!(recorder.asked(asked(2, 6)).blocking_recv().unwrap());
    let exit = Exit {
        outcome: Outcome {
            outcome: Happened::Exited,
            code: Some(3),
            ..Outcome::default()
        },
        stdout: 7,
        ..Exit::default()
    };
    recorder.ended(JobId::from_bytes([1; 16]), 42, &exit);
    drop(recorder);
    thread.join().unwrap();

    let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
    let live = recorder
        .list(wanted("alice", false, 10))
        .blocking_recv()
        .unwrap();
    assert_eq!(live.len(), 1);
    assert_eq!(live[0].asked.job, JobId::from_bytes([2; 16]));
    let all = recorder
        .list(wanted("alice", true, 10))
        .blocking_recv()
        .unwrap();
    assert_eq!(all.len(), 2);
    let ended = all[1].outcome.as_ref().unwrap();
    assert_eq!((ended.outcome, ended.code), (Happened::Exited, Some(3)));
    assert_eq!(all[1].pid, 42);
    let others = recorder
        .list(wanted("bob", true, 10))
        .blocking_recv()
        .unwrap();
    assert!(others.is_empty());
    drop(recorder);
    thread.join().unwrap();
}

#[test]
fn what_never_ran_may_be_asked_for_again_and_what_ran_stays() {
    let dir = tempfile::tempdir().unwrap();
    let keep = Keep {
        jobs_max: 10,
        age_ms: 1 << 40,
    };
    let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
    let cancelled = Exit {
        outcome: Outcome::failed(Happened::Cancelled, "disconnected", "never started"),
        ..Exit::default()
    };
    for (number, pid) in [(1, 0), (2, 42)] {
        recorder.asked(asked(number, 5));
        recorder.ended(JobId::from_bytes([number; 16]), pid, &cancelled);
        recorder.asked(asked(number, 6));
    }
    let live = recorder
        .list(wanted("alice", false, 10))
        .blocking_recv()
        .unwrap();
    let live: Vec<_> = live
        .iter()
        .map(|row| (row.asked.job, row.asked.unix_ms))
        .collect();
    assert_eq!(live, [(JobId::from_bytes([1; 16]), 6)]);
    drop(recorder);
    thread.join().unwrap();
}

#[test]
fn what_nobody_knows_of_is_lost_until_it_is_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let keep = Keep {
        jobs_max: 10,
        age_ms: 1 << 40,
    };
    let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
    for number in 1..=4 {
        recorder.asked(asked(number, u64::from(number)));
    }
    let exit = |happened| Exit {
        outcome: Outcome {
            outcome: happened,
            ..Outcome::default()
        },
        ..Exit::default()
    };
    let id = |number| JobId::from_bytes([number; 16]);
    // A process that was there and was lost is not started again.
    let written = recorder.ended(id(4), 42, &exit(Happened::Lost));
    written.blocking_recv().unwrap();
    recorder.known(BTreeSet::from([id(1)]));
    recorder.asked(asked(3, 5));
    recorder.asked(asked(4, 6));
    recorder.ended(id(3), 43, &exit(Happened::Exited));
    let wanted = wanted("alice", true, 10);
    let rows = recorder.list(wanted).blocking_recv().unwrap();
    let happened = |row: Row| (row.asked.unix_ms, row.outcome.map(|it| it.outcome));
    let rows: Vec<_> = rows.into_iter().map(happened).collect();
    let expected = [
        (5, Some(Happened::Exited)),
        (4, Some(Happened::Lost)),
        (2, Some(Happened::Lost)),
        (1, None),
    ];
    assert_eq!(rows, expected);
    drop(recorder);
    thread.join().unwrap();
}

#[test]
fn only_the_latest_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let keep = Keep {
        jobs_max: 10,
        age_ms: 1 << 40,
    };
    let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
    let exit = Exit::default();
    for number in 0..=255 {
        recorder.asked(asked(number, u64::from(number)));
        recorder.ended(JobId::from_bytes([number; 16]), 1, &exit);
    }
    drop(recorder);
    thread.join().unwrap();
    let (recorder, thread) = Recorder::start(dir.path(), keep).unwrap();
    // The first batch after the start cleans what an earlier process left.
    recorder.ended(JobId::from_bytes([0; 16]), 1, &exit);
    let rows = loop {
        let rows = recorder
            .list(wanted("alice", true, 1000))
            .blocking_recv()
            .unwrap();
        if rows.len() <= 10 {
            break rows;
        }
    };
    assert_eq!(rows.len(), 10);
    assert_eq!(rows[0].asked.job, JobId::from_bytes([255; 16]));
    drop(recorder);
    thread.join().unwrap();
}
