//! Services over real sockets: what a server promises, seen from its clients.

mod datagrams;
mod limits;
mod messages;
mod servers;
mod streams;

use std::future::Future;
use std::time::Duration;

use bowline::net::{
    Authentication, Connection, Endpoint, ServerBuilder, ServerHandle, ServiceError, Stopped,
    StreamService,
};
use tokio::task::JoinSet;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for what must come.
#[track_caller]
fn soon<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(value) => value,
            Err(_) => panic!("{caller}: it did not come"),
        }
    }
}

fn endpoint(text: &str) -> Endpoint {
    text.parse().unwrap()
}

/// An abstract name that no other test has.
fn unique(name: &str) -> String {
    format!("@bowline-test-{name}-{}", std::process::id())
}

/// A server that runs, and its handle.
struct Running {
    handle: ServerHandle,
    task: JoinSet<Stopped>,
}

impl Running {
    async fn stream<A: Authentication>(
        builder: ServerBuilder<A>,
        service: impl StreamService,
    ) -> Self {
        let server = builder.stream(service).await.unwrap();
        let handle = server.handle();
        let mut task = JoinSet::new();
        task.spawn(server.serve());
        Self { handle, task }
    }

    fn at(&self) -> &Endpoint {
        &self.handle.endpoints()[0]
    }

    async fn client(&self) -> Connection {
        soon(Connection::connect(self.at())).await.unwrap()
    }

    async fn stop(mut self) -> Stopped {
        self.handle.stop();
        soon(self.task.join_next()).await.unwrap().unwrap()
    }
}

fn tcp() -> ServerBuilder {
    ServerBuilder::new().listen(endpoint("tcp://127.0.0.1:0"))
}

/// Upper-cases what comes.
struct Upper;

impl StreamService for Upper {
    async fn serve(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        while let Some(mut bytes) = connection.read().await? {
            bytes.make_ascii_uppercase();
            connection.send(&bytes).await?;
        }
        Ok(())
    }
}

/// Sends and reads as many bytes back.
async fn exchange(client: &mut Connection, bytes: &[u8]) -> Vec<u8> {
    soon(client.send(bytes)).await.unwrap();
    let mut reply = vec![0; bytes.len()];
    soon(client.reader.read_exact(&mut reply)).await.unwrap();
    reply
}

/// That the server has closed the connection.
async fn closed(client: &mut Connection) -> bool {
    soon(client.read()).await.is_ok_and(|read| read.is_none())
}
