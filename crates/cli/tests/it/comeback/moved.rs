//! A host whose name stands for another address when it is back.

use std::ffi::OsStr;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::faults::way::Way;
use crate::piped::Piped;
use crate::server::{Server, is_root};

/// The names that one client knows. It has a mount namespace of its own (mount_namespaces(7)),
/// in which this file is `/etc/hosts`.
struct Names(PathBuf);

impl Names {
    fn new(server: &Server, text: &str) -> Names {
        let path = server.dir().join("hosts");
        std::fs::write(&path, text).unwrap();
        Names(path)
    }

    /// Writes over what is there: another file would not be the one that is mounted, and one
    /// that is cut short first would know nothing for a moment.
    fn write_over(&self, text: &str) {
        assert_eq!(std::fs::metadata(&self.0).unwrap().len(), text.len() as u64);
        let file = std::fs::File::options().write(true).open(&self.0);
        file.unwrap().write_all_at(text.as_bytes(), 0).unwrap();
    }

    /// The command, for which these are all the names there are.
    fn known_to(&self, server: &Server, client: &Command) -> Command {
        let mut command = Command::new("unshare");
        server.client(&mut command);
        command.arg("--mount");
        if !is_root() {
            command.args(["--user", "--map-current-user", "--keep-caps"]);
        }
        command.args(["sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
        command.arg(&self.0).arg(client.get_program());
        command.args(client.get_args().collect::<Vec<&OsStr>>());
        command
    }
}

#[test]
fn a_job_goes_on_at_the_address_that_its_host_has_by_now() {
    let server = Server::start();
    let port = server.port().unwrap();
    let way = Way::from(&format!("127.0.0.2:{port}"), port);
    let names = Names::new(&server, "127.0.0.2 wanderer\n");
    let target = format!("wanderer:{port}");
    let script = "read x; seq 300000; echo $x; read y; echo $y; exit 5";
    let run = [
        "run", "--grace", "60s", "--trust", "new", &target, "--", "sh", "-c", script,
    ];
    let mut client = Piped::start(names.known_to(&server, &server.command(&run)));
    client.says_next("pinned its host key");
    client.send("one\n");
    // In the middle of the output, most of which fits nowhere on the way to the test.
    assert!(way.until_moved(200_000));
    // Nobody listens there any more.
    drop(way);
    client.says_next("the connection is lost");
    names.write_over("127.0.0.1 wanderer\n");
    client.send("two\n");
    for number in 1..=300_000 {
        client.hears(&format!("{number}\n"));
    }
    client.hears("one\n");
    client.hears("two\n");
    client.says_next("connected again after");
    let (status, out, err) = client.end();
    assert_eq!((status.code(), out.as_str()), (Some(5), ""), "{err}");
}
