//! upper, stamp, greet, chat, show and time: stock clients of bowline's servers.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;

use super::{LONG, Serving, client, client_output, plain, said, stock, to_end};

const TCP: &str = "tcp://127.0.0.1:0";
const UDP: &str = "udp://127.0.0.1:0";

#[test]
fn upper_serves_stock_clients_over_tcp_and_udp() {
    let server = Serving::bowline(&["upper", "--listen", TCP, "--listen", UDP]);
    let said = stock(
        "client_line.py",
        server.port(),
        &[],
        "hello\n\nGrüße 你好\n",
    );
    assert_eq!(said, "HELLO\nGRüßE 你好\n");
    let udp = server.addresses[1]
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(stock("client_udp.py", udp, &[], "abc\n\nd\n"), "ABC\n\nD\n");
}

#[test]
fn upper_gives_every_byte_back_in_order_however_it_is_cut() {
    let server = Serving::bowline(&["upper", "--listen", TCP]);
    let bytes: Vec<u8> = (0..300_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut stream = server.connect();
    let mut writer = stream.try_clone().unwrap();
    let to_send = bytes.clone();
    let sender = std::thread::spawn(move || {
        for part in to_send.chunks(777) {
            writer.write_all(part).unwrap();
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let back = to_end(&mut stream);
    sender.join().unwrap();
    assert!(back == bytes.to_ascii_uppercase());
}

#[test]
fn the_largest_datagrams_come_back() {
    let server = Serving::bowline(&["upper", "--listen", UDP]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket.connect(("127.0.0.1", server.port())).unwrap();
    let datagram = vec![b'a'; 65_507];
    socket.send(&datagram).unwrap();
    let mut back = vec![0; 65_536];
    assert_eq!(socket.recv(&mut back).unwrap(), datagram.len());
    assert!(back[..datagram.len()].iter().all(|byte| *byte == b'A'));
}

#[test]
fn upper_is_served_on_unix_sockets_too() {
    let folder = tempfile::tempdir().unwrap();
    let stream = format!("unix:{}/s", folder.path().display());
    let datagrams = format!("unixgram:{}/d", folder.path().display());
    let name = format!("unix:@bowline-test-{}", std::process::id());
    let words = [
        "upper", "--listen", &stream, "--listen", &datagrams, "--listen", &name,
    ];
    let mut server = Serving::bowline(&words);
    assert_eq!(
        server.addresses,
        [&stream, &name, &datagrams].map(String::clone),
        "those of datagrams after the others"
    );
    for address in [&stream, &datagrams, &name] {
        assert_eq!(
            client(&["upper", address], "abc\nd\n"),
            "ABC\nD\n",
            "{address}"
        );
    }
    assert_eq!(server.end(15), Some(0));
    assert!(!folder.path().join("s").exists() && !folder.path().join("d").exists());
    assert!(UnixStream::connect(folder.path().join("s")).is_err());
}

#[test]
fn stamp_is_ctime_and_no_character_is_broken() {
    let server = Serving::bowline(&["stamp", "--listen", TCP]);
    let said = stock("client_line.py", server.port(), &[], "你好\n");
    let (stamp, text) = said.trim_end().split_once("】 ").unwrap();
    assert_eq!(text, "你好");
    let stamp = stamp.strip_prefix("【").unwrap();
    // Python's own reading of ctime's form.
    let read = std::process::Command::new("python3")
        .args([
            "-c",
            "import sys, time; t = time.strptime(sys.argv[1]); print(time.asctime(t))",
            stamp,
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(read.stdout).unwrap().trim_end(), stamp);
    let mut stream = server.connect();
    stream.write_all(b"a\xe4\xbd").unwrap();
    let mut bytes = [0; 1024];
    let len = stream.read(&mut bytes).unwrap();
    let first = String::from_utf8(bytes[..len].to_vec()).unwrap();
    assert!(first.ends_with("】 a"), "{first:?}");
    stream.write_all(b"\xa0b").unwrap();
    let len = stream.read(&mut bytes).unwrap();
    let second = String::from_utf8(bytes[..len].to_vec()).unwrap();
    assert!(second.ends_with("】 你b"), "{second:?}");
}

#[test]
fn greet_shows_one_message_sends_its_text_and_closes() {
    let mut server = Serving::bowline(&["greet", "--text", "nice to meet you", "--listen", TCP]);
    let said = stock("client_greet.py", server.port(), &[], "");
    assert_eq!(said, "server said: nice to meet you\nthen b''\n");
    let shown = server.line();
    assert!(
        shown.starts_with("127.0.0.1:") && shown.ends_with(": hello"),
        "{shown}"
    );
}

#[test]
fn chat_answers_whoever_has_waited_longest() {
    let mut server = Serving::bowline(&["chat", "--listen", TCP]);
    let mut first = server.connect();
    first.write_all("from the first".as_bytes()).unwrap();
    assert!(server.line().ends_with(": from the first"));
    let mut second = server.connect();
    second.write_all("from the second".as_bytes()).unwrap();
    assert!(server.line().ends_with(": from the second"));
    // One who says something and goes is asked no reply for.
    let mut third = server.connect();
    third.write_all(b"and gone").unwrap();
    assert!(server.line().ends_with(": and gone"));
    drop(third);
    let mut bytes = [0; 64];
    server.type_line("for the first");
    let len = first.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"for the first");
    server.type_line("for the second");
    let len = second.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"for the second");
    first.write_all(b"again").unwrap();
    assert!(server.line().ends_with(": again"));
    // An empty line ends that client; the others go on.
    server.type_line("");
    assert_eq!(first.read(&mut bytes).unwrap(), 0);
    second.write_all(b"still here").unwrap();
    assert!(server.line().ends_with(": still here"));
    server.type_line("good");
    let len = second.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"good");
    assert_eq!(server.end(2), Some(0));
}

#[test]
fn chat_serves_a_stock_client() {
    let mut server = Serving::bowline(&["chat", "--listen", TCP]);
    server.type_line("你好");
    server.type_line("bye");
    let said = stock("client_line.py", server.port(), &[], "hi\nsee you\n");
    assert_eq!(said, "你好\nbye\n");
}

#[test]
fn show_tells_size_and_sender_of_each_read() {
    let folder = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/s", folder.path().display());
    let words = ["show", "--listen", TCP, "--listen", &unix, "--listen", UDP];
    let mut server = Serving::bowline(&words);
    let [tcp, unix, udp] = &server.addresses.clone()[..] else {
        panic!("{:?}", server.addresses);
    };
    client(&["show", tcp], "hello\n");
    let shown = server.line();
    assert!(
        shown.starts_with("127.0.0.1:") && shown.ends_with(": 5 bytes: hello"),
        "{shown}"
    );
    client(&["show", udp], "a\tb\n");
    assert!(server.line().ends_with(": 3 bytes: a\\tb"));
    client(&["show", unix], "x\n");
    let shown = server.line();
    assert!(
        shown.starts_with("unix:") && shown.ends_with(": 1 byte: x"),
        "{shown}"
    );
}

#[test]
fn time_fills_in_formats_as_python_would() {
    let server = Serving::bowline(&["time", "--listen", UDP]);
    let said = stock(
        "client_udp.py",
        server.port(),
        &[],
        "%Y\n%Z %z\n100%%\n%q 时间\n\n",
    );
    let lines: Vec<&str> = said.lines().collect();
    let date = |format: &str| {
        let output = std::process::Command::new("date")
            .arg(format)
            .env("LC_ALL", "C")
            .output();
        String::from_utf8(output.unwrap().stdout)
            .unwrap()
            .trim_end()
            .to_owned()
    };
    // A year may end between the two, but not twice.
    assert!(
        lines[0] == date("+%Y")
            || lines[0].parse::<u32>().unwrap() + 1 == date("+%Y").parse::<u32>().unwrap()
    );
    assert_eq!(lines[1], date("+%Z %z"));
    assert_eq!(lines[2..4], ["100%", "%q 时间"]);
    assert_eq!(lines[4].len(), "2026-11-08-07:05:03".len());
}

#[test]
fn a_file_starts_several_services() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plain.toml");
    std::fs::write(
        &file,
        "[[upper]]\nlisten = [\"tcp://127.0.0.1:0\"]\n\n[[greet]]\nlisten = [\"tcp://127.0.0.1:0\"]\n\
         text = \"hi\"\nidle_timeout = \"1h\"\n",
    )
    .unwrap();
    let mut command = plain(folder.path());
    command.arg("serve").arg("--config").arg(&file);
    let mut server = Serving::start(command, 2);
    assert_eq!(client(&["upper", &server.addresses[0]], "abc\n"), "ABC\n");
    let output = client_output(&["greet", &server.addresses[1]], "hello\n");
    assert_eq!(said(output), "hi\n");
    assert_eq!(server.end(15), Some(0));
    std::fs::write(
        &file,
        "[[upper]]\nlisten = [\"tcp://127.0.0.1:0\"]\ntxt = 1\n",
    )
    .unwrap();
    let mut command = plain(folder.path());
    let output = command
        .arg("serve")
        .arg("--config")
        .arg(&file)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(
        errors.contains("plain.toml:3: ") && errors.contains("`text`"),
        "{errors}"
    );
}

#[test]
fn a_server_may_be_restarted_under_its_clients() {
    let mut server = Serving::bowline(&["upper", "--listen", TCP]);
    let port = server.port();
    let mut idle = server.connect();
    idle.write_all(b"a").unwrap();
    let mut bytes = [0; 16];
    assert_eq!(idle.read(&mut bytes).unwrap(), 1);
    assert_eq!(server.end(15), Some(0));
    assert_eq!(idle.read(&mut bytes).unwrap(), 0, "the client is told");
    drop(server);
    let again = format!("tcp://127.0.0.1:{port}");
    let server = Serving::bowline(&["upper", "--listen", &again]);
    assert_eq!(client(&["upper", &server.addresses[0]], "abc\n"), "ABC\n");
}

#[test]
fn resets_disturb_nobody() {
    let server = Serving::bowline(&["upper", "--listen", TCP]);
    let mut other = server.connect();
    for _ in 0..20 {
        let mut stream = server.connect();
        stream.write_all(&[b'x'; 4096]).unwrap();
        let linger = Some(std::time::Duration::ZERO);
        rustix::net::sockopt::set_socket_linger(&stream, linger).unwrap();
        drop(stream);
        other.write_all(b"a").unwrap();
        let mut bytes = [0; 16];
        assert_eq!(other.read(&mut bytes).unwrap(), 1);
    }
}
