//! A stdout that takes nothing: what is lost here is said, and is never status 0.

use std::process::{Command, Output};

use crate::server::Server;
use crate::stderr::full;

/// Runs with the disk that is always full as stdout.
fn on_a_full_disk(mut command: Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.stdout(full()).output().unwrap();
    let said = String::from_utf8_lossy(&stderr).into_owned();
    (status.code(), said)
}

#[test]
fn output_that_is_lost_here_is_said_and_is_no_success() {
    let server = Server::start();
    let target = server.target();
    let much = "head -c 10000000 /dev/zero; exit 0";
    // The job is ended, as when its reader goes; one that ends sooner keeps its status.
    let cases: [(&[&str], &str, &[i32]); 5] = [
        (&[], "echo x", &[2, 141]),
        (&[], "echo x; exit 3", &[3, 141]),
        (&[], much, &[141]),
        (&["--json"], "echo x", &[2, 141]),
        (&["--json"], "exit 0", &[2]),
    ];
    for (flags, script, statuses) in cases {
        let (code, said) = on_a_full_disk(server.run(flags, &["sh", "-c", script]));
        let expected = code.is_some_and(|code| statuses.contains(&code));
        assert!(expected, "{code:?} {flags:?} {script}: {said}");
        let sentence = "bowline: stdout cannot be written here: No space left on device";
        assert!(said.contains(sentence), "{flags:?} {script}: {said}");
        assert!(said.contains("[stdout_failed]"), "{said}");
    }
    let silent = on_a_full_disk(server.run(&[], &["true"]));
    assert_eq!(silent, (Some(0), String::new()), "nothing was lost");

    let mut detached = server.command(&["run", "--detach", &target, "--", "echo", "x"]);
    let job = detached.output().unwrap().stdout;
    let job = String::from_utf8(job).unwrap();
    let job = job.trim();
    for (args, status) in [
        (&["logs", "-f", &target, job][..], 2),
        (&["logs", &target, job], 2),
        // It leaves at once, so what becomes of the job is unknown.
        (&["attach", "--from-start", &target, job], 255),
    ] {
        let (code, said) = on_a_full_disk(server.command(args));
        assert_eq!(code, Some(status), "{args:?}: {said}");
        assert!(said.ends_with("[stdout_failed]\n"), "{args:?}: {said}");
    }
}
