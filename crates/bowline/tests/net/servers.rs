//! A server's life: its hooks, its stop, its addresses.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bowline::net::{
    Connection, ListenError, Peer, ServerBuilder, ServiceError, StreamService, TimedOut,
};
use tokio::sync::{Notify, Semaphore};

use crate::{PATIENCE, Running, Upper, closed, endpoint, exchange, soon, tcp, unique};

#[tokio::test]
async fn a_stop_ends_idle_connections_and_lets_what_is_under_way_end() {
    struct Slow(Arc<Notify>, Arc<Semaphore>);
    impl StreamService for Slow {
        async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
            while let Some(bytes) = connection.read().await? {
                self.0.notify_one();
                let _permit = self.1.acquire().await;
                connection.send(&bytes).await?;
            }
            Ok(())
        }
    }
    let (began, gate) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let builder = tcp().stop_within(PATIENCE);
    let mut server = Running::stream(builder, Slow(began.clone(), gate.clone())).await;
    let (mut idle, mut busy) = (server.client().await, server.client().await);
    soon(busy.send(b"work")).await.unwrap();
    soon(began.notified()).await;
    server.handle.stop();
    assert!(closed(&mut idle).await);
    let refused = soon(Connection::connect(server.at())).await;
    assert!(refused.is_err(), "a stopping server lets nobody in");
    gate.add_permits(1);
    let mut reply = [0; 4];
    soon(busy.reader.read_exact(&mut reply)).await.unwrap();
    assert_eq!(&reply, b"work");
    drop(busy);
    let stopped = soon(server.task.join_next()).await.unwrap().unwrap();
    assert_eq!(stopped.cut_off, 0);
}

#[tokio::test]
async fn what_does_not_end_in_time_is_dropped() {
    struct Stuck(Arc<Notify>);
    impl StreamService for Stuck {
        async fn serve(&self, _: &mut Connection) -> Result<(), ServiceError> {
            self.0.notify_one();
            std::future::pending().await
        }
    }
    let began = Arc::new(Notify::new());
    let builder = tcp().stop_within(Duration::from_millis(1));
    let server = Running::stream(builder, Stuck(began.clone())).await;
    let mut client = server.client().await;
    soon(began.notified()).await;
    let handle = server.handle.clone();
    assert_eq!(handle.connections(), 1);
    assert_eq!(server.stop().await.cut_off, 1);
    assert!(closed(&mut client).await);
    assert_eq!(handle.connections(), 0);
}

/// What a server told its service.
#[derive(Default)]
struct Heard {
    errors: Mutex<Vec<String>>,
    times: Mutex<Vec<(bool, TimedOut)>>,
    told: Notify,
}

struct Listening(Arc<Heard>);

impl StreamService for Listening {
    async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        match connection.read().await?.as_deref() {
            Some(b"panic") => panic!("on purpose"),
            Some(b"fail") => Err(ServiceError::failed("as asked")),
            Some(other) => connection.send(other).await,
            None => Ok(()),
        }
    }

    fn handle_error(&self, _: &Peer, error: &ServiceError) {
        self.0.errors.lock().unwrap().push(error.to_string());
        self.0.told.notify_one();
    }

    fn handle_timeout(&self, peer: Option<&Peer>, time: TimedOut) {
        let mut times = self.0.times.lock().unwrap();
        times.push((peer.is_some(), time));
        self.0.told.notify_one();
    }
}

#[tokio::test]
async fn errors_and_panics_are_heard_and_end_one_connection() {
    let heard = Arc::new(Heard::default());
    let server = Running::stream(tcp(), Listening(heard.clone())).await;
    let mut other = server.client().await;
    for word in ["panic", "fail"] {
        let mut client = server.client().await;
        soon(client.send(word.as_bytes())).await.unwrap();
        assert!(closed(&mut client).await, "{word}");
        soon(heard.told.notified()).await;
    }
    assert_eq!(exchange(&mut other, b"here").await, b"here");
    assert_eq!(
        *heard.errors.lock().unwrap(),
        ["the service panicked: on purpose", "the service failed"]
    );
}

#[tokio::test]
async fn a_service_hears_that_nobody_came() {
    let heard = Arc::new(Heard::default());
    let time = Duration::from_millis(5);
    let server = Running::stream(tcp().timeout(time), Listening(heard.clone())).await;
    for _ in 0..2 {
        soon(heard.told.notified()).await;
    }
    assert_eq!(
        heard.times.lock().unwrap()[..2],
        [(false, TimedOut::NobodyCame(time)); 2]
    );
    let mut client = server.client().await;
    assert_eq!(exchange(&mut client, b"here").await, b"here");
}

#[tokio::test]
async fn a_service_chooses_its_peers() {
    struct Nobody;
    impl StreamService for Nobody {
        async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
            connection.send(b"hello").await
        }
        fn verify_request(&self, peer: &Peer) -> bool {
            !matches!(peer, Peer::Ip(_))
        }
    }
    let builder = tcp().listen(endpoint(&format!("unix:{}", unique("chosen"))));
    let server = Running::stream(builder, Nobody).await;
    let mut refused = server.client().await;
    assert!(closed(&mut refused).await);
    let unix = &server.handle.endpoints()[1];
    let mut client = soon(Connection::connect(unix)).await.unwrap();
    let said = soon(client.read()).await.unwrap();
    assert_eq!(said.as_deref(), Some(&b"hello"[..]));
}

#[tokio::test]
async fn actions_run_beside_the_connections_until_the_stop() {
    struct Acting(Arc<Notify>, Arc<()>);
    impl StreamService for Acting {
        async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
            Upper.serve(connection).await
        }
        async fn service_actions(&self) {
            let _held = self.1.clone();
            self.0.notify_one();
            std::future::pending().await
        }
    }
    let (acting, held) = (Arc::new(Notify::new()), Arc::new(()));
    let server = Running::stream(tcp(), Acting(acting.clone(), held.clone())).await;
    soon(acting.notified()).await;
    let mut client = server.client().await;
    assert_eq!(exchange(&mut client, b"x").await, b"X");
    assert_eq!(Arc::strong_count(&held), 3);
    server.stop().await;
    assert_eq!(Arc::strong_count(&held), 1);
}

#[tokio::test]
async fn a_name_with_several_addresses_has_one_port() {
    let server = Running::stream(
        ServerBuilder::new().listen(endpoint("tcp://localhost:0")),
        Upper,
    )
    .await;
    for at in server.handle.endpoints().to_vec() {
        let port = at.to_string().rsplit(':').next().unwrap().to_owned();
        let first = server.at().to_string();
        assert!(first.ends_with(&format!(":{port}")) && port != "0");
        let mut client = soon(Connection::connect(&at)).await.unwrap();
        assert_eq!(exchange(&mut client, b"x").await, b"X");
    }
}

#[tokio::test]
async fn a_port_can_be_taken_again_at_once() {
    let server = Running::stream(tcp(), Upper).await;
    let at = server.at().clone();
    let mut client = server.client().await;
    assert_eq!(exchange(&mut client, b"x").await, b"X");
    // The server closes first, so the old connection stays in TIME_WAIT.
    server.stop().await;
    assert!(closed(&mut client).await);
    drop(client);
    let again = Running::stream(ServerBuilder::new().listen(at), Upper).await;
    let mut client = again.client().await;
    assert_eq!(exchange(&mut client, b"y").await, b"Y");
}

#[tokio::test]
async fn servers_say_why_they_do_not_listen() {
    let server = Running::stream(tcp(), Upper).await;
    let again = ServerBuilder::new()
        .listen(server.at().clone())
        .stream(Upper)
        .await;
    match again.unwrap_err() {
        ListenError::Open { source, .. } => {
            assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
        }
        other => panic!("{other}"),
    }
    let udp = ServerBuilder::new().listen(endpoint("udp://127.0.0.1:0"));
    assert!(matches!(udp.stream(Upper).await, Err(ListenError::Kind(_))));
    assert!(matches!(
        ServerBuilder::new().stream(Upper).await,
        Err(ListenError::Nowhere)
    ));
}

#[tokio::test]
async fn the_socket_of_a_dead_server_is_replaced_and_no_other_file() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let at = || ServerBuilder::new().listen(endpoint(&format!("unix:{}", path.display())));
    // A socket without anybody behind it.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = Running::stream(at().unix_mode(0o600), Upper).await;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // One that lives is left alone.
    assert!(at().stream(Upper).await.is_err());
    let mut client = server.client().await;
    assert_eq!(exchange(&mut client, b"x").await, b"X");
    server.stop().await;
    assert!(!path.exists());
    std::fs::write(&path, "a file").unwrap();
    assert!(at().stream(Upper).await.is_err());
    assert!(!std::fs::metadata(&path).unwrap().file_type().is_socket());
}
