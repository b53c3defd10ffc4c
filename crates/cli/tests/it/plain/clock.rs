//! NTP with real programs: chronyd and ntpdig ask bowline, bowline asks chronyd. Nothing
//! sets the clock.

use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use bowline_proto::plain::ntp::{self, Packet};

use super::{LONG, Serving, said, wait_until};
use crate::server::signal_process;

const UDP: &str = "udp://127.0.0.1:0";

/// chronyd lies where only root's PATH leads.
fn chronyd() -> Command {
    let places = ["/usr/sbin/chronyd", "/usr/bin/chronyd", "/sbin/chronyd"];
    let place = places.iter().find(|place| Path::new(place).exists());
    Command::new(place.expect("chronyd, of the package chrony"))
}

fn ask(port: u16, more: &[&str]) -> Output {
    Command::new(crate::server::bowline())
        .args(["time", &format!("127.0.0.1:{port}")])
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn chronyd_takes_its_time_from_bowline() {
    let server = Serving::bowline(&["time", "--listen", UDP, "--local-stratum", "8"]);
    let output = chronyd()
        .args(["-Q", "-U", "-t", "60", "-f", "/dev/null"])
        .arg(format!("server 127.0.0.1 port {} iburst", server.port()))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("System clock wrong by"), "{told}");
}

#[test]
fn ntpdig_takes_its_time_from_bowline() {
    let server = Serving::bowline(&["time", "--listen", UDP, "--local-stratum", "8"]);
    // It has no option for the port, so its own text is run with another default.
    let script = "import sys\n\
                  path, port = sys.argv[1], sys.argv[2]\n\
                  text = open(path).read()\n\
                  assert text.count('port=123') == 1\n\
                  sys.argv = [path] + sys.argv[3:]\n\
                  exec(compile(text.replace('port=123', 'port=' + port), path, 'exec'))\n";
    let output = Command::new("/usr/bin/python3")
        .args(["-c", script, "/usr/bin/ntpdig", &server.port().to_string()])
        .args(["-j", "-t", "60", "127.0.0.1"])
        .output()
        .unwrap();
    let told: serde_json::Value = serde_json::from_str(&said(output)).unwrap();
    assert_eq!(told["stratum"], 8, "{told}");
    assert_eq!(told["leap"], "no-leap");
    assert!(told["offset"].as_f64().unwrap().abs() < 60.0, "{told}");
}

/// A chronyd that serves this machine's clock on loopback and sets nothing.
struct Chronyd {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Chronyd {
    fn start(port: u16, lines: &str) -> Chronyd {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("chrony.conf");
        let folder = dir.path().display();
        let text = format!(
            "port {port}\nbindaddress 127.0.0.1\ncmdport 0\nbindcmdaddress /\npidfile {folder}/pid\n\
             allow 127.0.0.1\n{lines}\n"
        );
        std::fs::write(&conf, text).unwrap();
        let child = chronyd()
            .args(["-d", "-x", "-U", "-f"])
            .arg(&conf)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Chronyd {
            child: child.unwrap(),
            _folder: dir,
        }
    }
}

impl Drop for Chronyd {
    fn drop(&mut self) {
        signal_process(self.child.id(), 15);
        let _ = self.child.wait();
    }
}

/// A port that nobody has at this moment.
fn free_port() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

#[test]
fn bowline_asks_chronyd() {
    let port = free_port();
    let _chronyd = Chronyd::start(port, "local stratum 7");
    let mut output = None;
    wait_until("chronyd answers", || {
        let asked = ask(port, &["--json", "--count", "1", "--wait", "1s"]);
        let answered = asked.status.success();
        output = Some(asked);
        answered
    });
    let told: serde_json::Value = serde_json::from_str(&said(output.unwrap())).unwrap();
    assert_eq!(told["stratum"], 7, "{told}");
    // Both clocks are this machine's: the truth is 0, and lies within the uncertainty.
    let figure = |name: &str| told[name].as_f64().unwrap();
    assert!(
        figure("offset_s").abs() <= figure("uncertainty_s"),
        "{told}"
    );
    assert!(figure("delay_s") > 0.0 && figure("uncertainty_s") >= figure("delay_s") / 2.0);
    let words = said(ask(port, &["--count", "2"]));
    assert!(
        words.contains("stratum 7") && words.contains("of 2 answers to 2 requests"),
        "{words}"
    );
}

#[test]
fn a_server_that_is_not_synchronised_is_not_believed() {
    let port = free_port();
    let _chronyd = Chronyd::start(port, "");
    let mut errors = String::new();
    wait_until("chronyd says that it knows no time", || {
        let asked = ask(port, &["--count", "1", "--wait", "1s"]);
        assert!(!asked.status.success());
        errors = String::from_utf8_lossy(&asked.stderr).into_owned();
        errors.contains("[not_synchronised]")
    });
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    let asked = ask(port, &["--count", "1", "--wait", "200ms"]);
    assert_eq!(asked.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&asked.stderr).contains("[no_answer]"));
}

#[test]
fn nothing_but_clients_is_answered_and_never_with_more() {
    let server = Serving::bowline(&["time", "--listen", UDP]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket.connect(("127.0.0.1", server.port())).unwrap();
    let request = Packet::request(7);
    for mode in [0, 1, 2, 4, 5, 6, 7] {
        socket.send(&Packet { mode, ..request }.encode()).unwrap();
    }
    // Longer requests get the same answer, and what is no packet and holds a NUL none.
    socket.send(&[b'%', 0, b'Y']).unwrap();
    let long = [&Packet::request(8).encode()[..], &[0; 500]].concat();
    socket.send(&long).unwrap();
    let mut bytes = [0; 1024];
    let len = socket.recv(&mut bytes).unwrap();
    assert_eq!(
        len,
        ntp::PACKET_BYTES,
        "the first answer is to the only client"
    );
    let answer = Packet::decode(&bytes[..len]).unwrap();
    assert_eq!((answer.mode, answer.origin.0), (4, 8));
}
