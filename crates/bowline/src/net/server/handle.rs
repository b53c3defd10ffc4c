//! Watching a server and stopping it, from anywhere in the program.

use std::sync::Arc;

use crate::net::admission::Admission;
use crate::net::endpoint::Endpoint;
use crate::net::patience::Stop;

/// A server as the rest of the program sees it; its clones are the same server.
#[derive(Clone, Debug)]
pub struct ServerHandle {
    pub(super) endpoints: Arc<[Endpoint]>,
    pub(super) admission: Arc<Admission>,
    pub(super) stop: Stop,
}

impl ServerHandle {
    /// Where it listens: with the port that the kernel chose where 0 was asked
    /// for, and each address of a name that has several.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// How many connections are open now, those not let in yet included. A
    /// datagram server has none.
    pub fn connections(&self) -> usize {
        self.admission.connections()
    }

    /// Has the server stop: nobody more comes in, readers that wait between two
    /// messages find the end, and what is still under way when the time for
    /// stopping is over is dropped. [`StreamServer::serve`](super::StreamServer::serve) returns then.
    pub fn stop(&self) {
        self.stop.stop();
    }

    /// Whether it was told to stop.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_stopping()
    }
}

/// How a server stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Connections or answers that were dropped because their time was over.
    pub cut_off: usize,
}
