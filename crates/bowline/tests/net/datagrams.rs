//! Datagram services: one datagram, one answer, and slow ones hold nobody up.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bowline::net::{
    Answer, DATAGRAM_BYTES_MAX, DatagramService, DatagramSocket, Endpoint, Limits, ListenError,
    Peer, Rate, ServerBuilder, ServerHandle, ServiceError, Stopped,
};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use crate::{PATIENCE, endpoint, soon, unique};

struct Running {
    handle: ServerHandle,
    task: JoinSet<Stopped>,
}

impl Running {
    async fn new(builder: ServerBuilder, service: impl DatagramService) -> Self {
        let server = builder.datagram(service).await.unwrap();
        let handle = server.handle();
        let mut task = JoinSet::new();
        task.spawn(server.serve());
        Self { handle, task }
    }

    async fn client(&self) -> DatagramSocket {
        connect(&self.handle.endpoints()[0]).await
    }

    async fn stop(mut self) -> Stopped {
        self.handle.stop();
        soon(self.task.join_next()).await.unwrap().unwrap()
    }
}

async fn connect(at: &Endpoint) -> DatagramSocket {
    soon(DatagramSocket::connect(at)).await.unwrap()
}

fn udp() -> ServerBuilder {
    ServerBuilder::new().listen(endpoint("udp://127.0.0.1:0"))
}

async fn ask(client: &DatagramSocket, request: &[u8]) -> Vec<u8> {
    soon(client.send(request)).await.unwrap();
    hear(client).await
}

async fn hear(client: &DatagramSocket) -> Vec<u8> {
    let mut reply = Vec::new();
    soon(client.receive(&mut reply)).await.unwrap();
    reply
}

/// Upper-cases; `wait` waits for a permit, `panic` panics, `quiet` gets no answer.
struct Upper {
    gate: Arc<Semaphore>,
    began: Arc<Notify>,
    errors: Arc<Mutex<Vec<String>>>,
}

impl Default for Upper {
    fn default() -> Self {
        Self {
            gate: Arc::new(Semaphore::new(0)),
            began: Arc::default(),
            errors: Arc::default(),
        }
    }
}

impl DatagramService for Upper {
    async fn answer(
        &self,
        request: &[u8],
        _: &Peer,
        reply: &mut Vec<u8>,
    ) -> Result<Answer, ServiceError> {
        match request {
            b"wait" => {
                self.began.notify_one();
                let _permit = self.gate.acquire().await;
            }
            b"panic" => panic!("on purpose"),
            b"wait and panic" => {
                tokio::task::yield_now().await;
                panic!("later");
            }
            b"quiet" => return Ok(Answer::Nothing),
            b"fail" => return Err(ServiceError::failed("as asked")),
            _ => {}
        }
        reply.extend(request.iter().map(u8::to_ascii_uppercase));
        Ok(Answer::Reply)
    }

    fn verify_request(&self, request: &[u8], _: &Peer) -> bool {
        request != b"unwanted"
    }

    fn handle_error(&self, _: &Peer, error: &ServiceError) {
        self.errors.lock().unwrap().push(error.to_string());
    }
}

#[tokio::test]
async fn datagrams_of_every_length_come_back_over_every_kind_of_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let builder = udp()
        .listen(endpoint(&format!("unixgram:{}", path.display())))
        .listen(endpoint(&format!("unixgram:{}", unique("datagrams"))));
    let server = Running::new(builder, Upper::default()).await;
    for at in server.handle.endpoints() {
        let client = connect(at).await;
        for len in [0, 1, 1472, DATAGRAM_BYTES_MAX] {
            let request = vec![b'a'; len];
            assert!(ask(&client, &request).await == vec![b'A'; len], "{len}");
        }
    }
    assert_eq!(server.stop().await.cut_off, 0);
    assert!(!path.exists());
}

#[tokio::test]
async fn only_what_is_to_be_answered_is() {
    let errors = Arc::new(Mutex::new(Vec::new()));
    let service = Upper {
        errors: errors.clone(),
        ..Upper::default()
    };
    let limits = Limits {
        message_bytes_max: 20,
        ..Limits::default()
    };
    let server = Running::new(udp().limits(limits), service).await;
    let client = server.client().await;
    let longest = [b'x'; 20];
    for request in [&b"quiet"[..], b"unwanted", b"fail", b"panic", &[b'x'; 21]] {
        soon(client.send(request)).await.unwrap();
    }
    soon(client.send(b"wait and panic")).await.unwrap();
    assert_eq!(ask(&client, &longest).await, [b'X'; 20]);
    server.stop().await;
    assert_eq!(
        *errors.lock().unwrap(),
        [
            "the service failed",
            "the service panicked: on purpose",
            "a message is over the limit of 20 bytes",
            "the service panicked: later",
        ]
    );
}

#[tokio::test]
async fn a_slow_answer_holds_up_no_other_and_the_slow_ones_are_bounded() {
    let service = Upper::default();
    let (gate, began) = (service.gate.clone(), service.began.clone());
    let limits = Limits {
        datagrams_in_flight_max: 3,
        ..Limits::default()
    };
    let builder = udp().limits(limits).stop_within(PATIENCE);
    let server = Running::new(builder, service).await;
    let slow = server.client().await;
    let quick = server.client().await;
    for _ in 0..2 {
        soon(slow.send(b"wait")).await.unwrap();
        soon(began.notified()).await;
    }
    assert_eq!(ask(&quick, b"quick").await, b"QUICK");
    // With the third nothing more is taken, and with its end the rest is.
    soon(slow.send(b"wait")).await.unwrap();
    soon(began.notified()).await;
    soon(quick.send(b"later")).await.unwrap();
    gate.add_permits(3);
    assert_eq!(hear(&quick).await, b"LATER");
    for _ in 0..3 {
        assert_eq!(hear(&slow).await, b"WAIT");
    }
    assert_eq!(server.stop().await.cut_off, 0);
}

#[tokio::test]
async fn a_stop_lets_answers_end_or_cuts_them_off() {
    for permits in [0, 1] {
        let service = Upper::default();
        let (gate, began) = (service.gate.clone(), service.began.clone());
        let within = if permits == 0 {
            Duration::from_millis(1)
        } else {
            PATIENCE
        };
        let server = Running::new(udp().stop_within(within), service).await;
        let client = server.client().await;
        soon(client.send(b"wait")).await.unwrap();
        soon(began.notified()).await;
        server.handle.stop();
        gate.add_permits(permits);
        assert_eq!(server.stop().await.cut_off, 1 - permits);
        if permits == 1 {
            assert_eq!(hear(&client).await, b"WAIT");
        }
    }
}

#[tokio::test]
async fn a_source_over_its_rate_is_not_answered_and_others_are() {
    let limits = Limits {
        // So slow that none comes back within the test.
        datagram_rate: Some(Rate {
            per_second: 0,
            burst: 3,
        }),
        ..Limits::default()
    };
    let server = Running::new(udp().limits(limits), Upper::default()).await;
    let at = server.handle.endpoints()[0].to_string();
    let at = at.strip_prefix("udp://").unwrap();
    let from = async |source: &str| {
        let socket = tokio::net::UdpSocket::bind((source, 0)).await.unwrap();
        socket.connect(at).await.unwrap();
        DatagramSocket::Udp(socket)
    };
    // Another port is the same source.
    for number in 0..3 {
        let client = from("127.0.0.1").await;
        assert_eq!(ask(&client, b"x").await, b"X", "{number}");
    }
    let flooding = from("127.0.0.1").await;
    for _ in 0..100 {
        soon(flooding.send(b"flood")).await.unwrap();
    }
    let other = from("127.0.0.2").await;
    assert_eq!(ask(&other, b"y").await, b"Y");
    let DatagramSocket::Udp(flooding) = flooding else {
        panic!("it is UDP");
    };
    assert!(flooding.try_recv(&mut [0; 10]).is_err());
}

#[tokio::test]
async fn one_without_a_name_is_not_answered_and_does_no_harm() {
    let name = unique("nameless");
    let builder = ServerBuilder::new().listen(endpoint(&format!("unixgram:{name}")));
    let server = Running::new(builder, Upper::default()).await;
    let nameless = tokio::net::UnixDatagram::unbound().unwrap();
    let address = socket2::SockAddr::unix(name.replacen('@', "\0", 1)).unwrap();
    let socket = socket2::SockRef::from(&nameless);
    socket.connect(&address).unwrap();
    soon(nameless.send(b"x")).await.unwrap();
    let client = server.client().await;
    assert_eq!(ask(&client, b"y").await, b"Y");
}

#[tokio::test]
async fn one_who_takes_no_answers_loses_them_and_the_server_does_not_wait_for_him() {
    let name = unique("deaf");
    let builder = ServerBuilder::new().listen(endpoint(&format!("unixgram:{name}")));
    let limits = Limits {
        datagrams_in_flight_max: 1,
        ..Limits::default()
    };
    let server = Running::new(builder.limits(limits), Upper::default()).await;
    let (deaf, client) = (server.client().await, server.client().await);
    // More answers than fit into any buffer: each request is taken all the same.
    for _ in 0..2000 {
        soon(deaf.send(b"x")).await.unwrap();
    }
    // His unread answers may lie in the server's own send buffer for as long as he is there.
    drop(deaf);
    assert_eq!(ask(&client, b"y").await, b"Y");
}

#[tokio::test]
async fn a_datagram_service_listens_on_nothing_else() {
    let builder = ServerBuilder::new().listen(endpoint("tcp://127.0.0.1:0"));
    let refused = builder.datagram(Upper::default()).await;
    assert!(matches!(refused, Err(ListenError::Kind(_))));
}

/// Asks until there is an answer: what comes in a flood may be dropped by the kernel.
async fn ask_again_and_again(client: &DatagramSocket, request: &[u8]) -> Vec<u8> {
    soon(async {
        let mut reply = Vec::new();
        loop {
            client.send(request).await.unwrap();
            let within = Duration::from_millis(200);
            let heard = tokio::time::timeout(within, client.receive(&mut reply)).await;
            if heard.is_ok_and(|heard| heard.is_ok()) {
                return reply;
            }
        }
    })
    .await
}

/// Sends a datagram whose source port is 0, which no client has and nobody can be
/// answered at. Only who may open raw sockets can.
fn from_port_zero(port: u16) {
    use socket2::{Domain, Protocol, Socket, Type};
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP));
    let Ok(raw) = raw else { return };
    let payload = b"forged";
    let len = u16::try_from(8 + payload.len()).unwrap();
    // RFC 768: source port, destination port, length, no checksum.
    let header = [0, port, len, 0].map(u16::to_be_bytes).concat();
    let to = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    raw.send_to(&[&header, &payload[..]].concat(), &to.into())
        .unwrap();
}

#[tokio::test]
async fn a_flood_from_odd_ports_leaves_the_others_answered() {
    let service = Upper::default();
    let errors = service.errors.clone();
    let server = Running::new(udp(), service).await;
    let at = server.handle.endpoints()[0].to_string();
    let at = at.strip_prefix("udp://").unwrap();
    let port = at.rsplit(':').next().unwrap().parse().unwrap();
    let other = server.client().await;
    assert_eq!(ask(&other, b"before").await, b"BEFORE");
    for _ in 0..20 {
        from_port_zero(port);
        // Those of other services want privileges; the rest are as many clients.
        for source in [1, 7, 19, 53, 123, 1023].into_iter().chain([0; 100]) {
            if let Ok(socket) = std::net::UdpSocket::bind(("127.0.0.3", source)) {
                socket.send_to(b"flood", at).unwrap();
            }
        }
        // Those sockets are gone already: the answers reach nobody.
        assert_eq!(ask_again_and_again(&other, b"during").await, b"DURING");
    }
    let errors = errors.lock().unwrap();
    let of_system = "an operation of the system failed";
    assert!(errors.iter().all(|error| error == of_system), "{errors:?}");
}
