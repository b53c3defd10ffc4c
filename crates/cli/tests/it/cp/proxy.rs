//! A line between a client and its server that counts what passes and can be cut.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::Bench;

/// Passes connections on, counts their bytes, and cuts them.
pub(super) struct Proxy {
    pub(super) port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    bytes: Mutex<u64>,
    more: Condvar,
    open: Mutex<Vec<TcpStream>>,
    ended: AtomicBool,
}

impl Proxy {
    pub(super) fn start(to: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let inside = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if inside.ended.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", to)))
                else {
                    continue;
                };
                let twins = [client.try_clone().unwrap(), server.try_clone().unwrap()];
                inside.open.lock().unwrap().extend(twins);
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                for (from, into) in [(client, server), back] {
                    let shared = inside.clone();
                    std::thread::spawn(move || carry(from, into, &shared));
                }
            }
        });
        Proxy { port, shared }
    }

    /// Has the clients know the server behind it.
    pub(super) fn pin(&self, bench: &Bench) {
        let known = bench.server.home().join(".config/bowline/known_hosts");
        let line = fs::read_to_string(&known).unwrap();
        let own = bench.server.port().unwrap().to_string();
        fs::write(&known, line.replace(&own, &self.port.to_string())).unwrap();
    }

    /// What has passed, in both directions.
    pub(super) fn bytes(&self) -> u64 {
        *self.shared.bytes.lock().unwrap()
    }

    pub(super) fn cut(&self) {
        for stream in self.shared.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Waits until so many bytes more have passed; false if the client has ended before.
    pub(super) fn wait(&self, more: u64, client: &mut Child) -> bool {
        let mut bytes = self.shared.bytes.lock().unwrap();
        let wanted = *bytes + more;
        while *bytes < wanted {
            if client.try_wait().unwrap().is_some() {
                return false;
            }
            let waited = self
                .shared
                .more
                .wait_timeout(bytes, Duration::from_millis(50));
            bytes = waited.unwrap().0;
        }
        true
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.cut();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn carry(mut from: TcpStream, mut into: TcpStream, shared: &Shared) {
    let mut buffer = [0; 16 * 1024];
    loop {
        let len = from.read(&mut buffer).unwrap_or(0);
        *shared.bytes.lock().unwrap() += len as u64;
        shared.more.notify_all();
        if len == 0 || into.write_all(&buffer[..len]).is_err() {
            let _ = into.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
}
