//! The way between a client and its server: passes bytes on, and breaks when it is told to.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// A test fails rather than wait longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the threads of a way share.
#[derive(Default)]
struct State {
    moved: u64,
    frozen: bool,
    /// Threads that hold bytes back because of the frost.
    holding: u32,
    over: bool,
    /// Nothing is passed on of the next connection, nor is it ended.
    mutes_next: bool,
    /// Whoever came over it has nothing more to say.
    done: bool,
    /// Connections that were ever made.
    connections: u64,
    /// Both sockets of each connection that was ever made, or the client's alone.
    sockets: Vec<TcpStream>,
    /// Threads that pass something on.
    passing: u32,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared(Mutex<State>, Condvar);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.1.notify_all();
    }

    #[track_caller]
    fn wait(&self, until: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let waited = self
            .1
            .wait_timeout_while(self.lock(), PATIENCE, |state| !until(state));
        let (state, waited) = waited.unwrap();
        assert!(!waited.timed_out(), "nothing moves");
        state
    }
}

/// The way to one server.
pub(crate) struct Way {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepts: Option<JoinHandle<()>>,
}

impl Way {
    pub(crate) fn to(server: u16) -> Way {
        Way::from("127.0.0.1:0", server)
    }

    /// One that begins at an address of the test's choice.
    pub(crate) fn from(address: &str, server: u16) -> Way {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepts = std::thread::spawn({
            let shared = shared.clone();
            move || {
                for client in listener.incoming() {
                    if shared.lock().over {
                        return;
                    }
                    connect(&shared, client.unwrap(), server);
                }
            }
        });
        Way {
            shared,
            address,
            accepts: Some(accepts),
        }
    }

    pub(crate) fn target(&self) -> String {
        self.address.to_string()
    }

    /// The bytes passed on so far, in both directions.
    pub(crate) fn moved(&self) -> u64 {
        self.shared.lock().moved
    }

    /// Waits until so many bytes were passed on; false where its user is done before.
    pub(crate) fn until_moved(&self, bytes: u64) -> bool {
        let state = self.shared.wait(|state| state.moved >= bytes || state.done);
        !state.done
    }

    /// Its user is done.
    pub(crate) fn done(&self) {
        self.shared.change(|state| state.done = true);
    }

    /// Another takes its user's place.
    pub(crate) fn taken_over(&self) {
        self.shared.change(|state| state.done = false);
    }

    /// Waits until somebody comes who was not here at `connections`, or nobody comes any more.
    pub(crate) fn until_connected(&self, connections: u64) {
        drop(
            self.shared
                .wait(|state| state.connections > connections || state.done),
        );
    }

    /// The connections that were made so far.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.lock().connections
    }

    /// Ends every connection: in order, or by a reset. False where there was none.
    pub(crate) fn cut(&self, reset: bool) -> bool {
        let mut state = self.shared.lock();
        let there = state.passing > 0;
        for socket in state.sockets.drain(..) {
            if reset {
                let _ = rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
            }
            let _ = socket.shutdown(Shutdown::Both);
        }
        there
    }

    /// Passes nothing on; both ends see a line on which nobody says anything. Comes back when
    /// something is held back, or nothing is left that could be: then false.
    pub(crate) fn freeze(&self) -> bool {
        self.shared.change(|state| state.frozen = true);
        let state = self
            .shared
            .wait(|state| state.holding > 0 || state.passing == 0 || state.done);
        state.holding > 0
    }

    /// Takes the next connection and passes nothing on over it, while those behind it are as ever.
    pub(crate) fn mute_next(&self) {
        self.shared.change(|state| state.mutes_next = true);
    }

    pub(crate) fn thaw(&self) {
        self.shared.change(|state| state.frozen = false);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.over = true;
            state.frozen = false;
        });
        self.cut(false);
        let _ = TcpStream::connect(self.address);
        if let Some(accepts) = self.accepts.take() {
            let _ = accepts.join();
        }
        // One that was accepted meanwhile.
        self.cut(false);
        let workers = std::mem::take(&mut self.shared.lock().workers);
        for worker in workers {
            let _ = worker.join();
        }
    }
}

fn connect(shared: &Arc<Shared>, client: TcpStream, server: u16) {
    if std::mem::take(&mut shared.lock().mutes_next) {
        return shared.change(|state| {
            state.sockets.push(client);
            state.connections += 1;
        });
    }
    // Where nobody listens the client is sent away too.
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else {
        return;
    };
    let clone = |socket: &TcpStream| socket.try_clone().unwrap();
    let ways = [
        (clone(&client), clone(&server)),
        (clone(&server), clone(&client)),
    ];
    // What waits in the kernel for an answer tells nothing about bowline.
    for socket in [&client, &server] {
        socket.set_nodelay(true).unwrap();
    }
    shared.change(|state| {
        state.sockets.extend([client, server]);
        state.connections += 1;
        state.passing += 2;
        for (from, to) in ways {
            let shared = shared.clone();
            let worker = std::thread::spawn(move || {
                pass(&shared, &from, &to);
                let _ = to.shutdown(Shutdown::Write);
                shared.change(|state| state.passing -= 1);
            });
            state.workers.push(worker);
        }
    });
}

fn pass(shared: &Shared, mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        // An end that resets is an end too.
        let len = from.read(&mut buffer).unwrap_or(0);
        if len == 0 {
            return;
        }
        if shared.lock().frozen {
            shared.change(|state| state.holding += 1);
            drop(shared.wait(|state| !state.frozen));
            shared.change(|state| state.holding -= 1);
        }
        if to.write_all(&buffer[..len]).is_err() {
            return;
        }
        shared.change(|state| state.moved += len as u64);
    }
}
