//! One connection, with the channel that the job is on.

use std::time::Duration;

use bowline::client::{ClientError, Connection, Happening};
use bowline_proto::frame::Stream;
use bowline_proto::id::{Channel, JobId};
use bowline_proto::message::{Resize, Signal};
use bowline_proto::session::PutError;

use crate::cmd::keepalive::Keepalive;

/// How long one who leaves waits for the line to take the last word, and for ssh, where that
/// carries it, to pass it on and to end.
const LEAVE_TIME: Duration = Duration::from_secs(1);
/// The same at the end of the job, when nobody wants to be gone.
const END_TIME: Duration = Duration::from_secs(10);

/// A line, from the moment at which the job was asked for on it.
#[derive(Debug)]
pub(in crate::cmd) struct Line {
    connection: Connection,
    channel: Channel,
    /// The job was asked for by `attach`, not by `start`.
    pub(super) attached: bool,
    /// The job is somebody else's, who may want it after us.
    pub(super) guest: bool,
    /// The job outlives this line.
    pub(super) kept: bool,
    /// The server has said `started`.
    pub(super) answered: bool,
    keepalive: Keepalive,
}

impl Line {
    pub(super) fn new(connection: Connection, channel: Channel, silence: Duration) -> Self {
        Self {
            connection,
            channel,
            attached: false,
            guest: false,
            kept: false,
            answered: false,
            keepalive: Keepalive::new(silence),
        }
    }

    /// What the server says next of the job, or of the connection.
    ///
    /// # Errors
    /// [`ClientError`]; also where nothing at all was heard for too long.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self) -> Result<Happening, ClientError> {
        self.keepalive.next(&mut self.connection).await
    }

    pub(super) fn is_of(&self, channel: Channel) -> bool {
        self.channel == channel
    }

    /// Whether the server has let us in.
    pub(super) fn is_granted(&self) -> bool {
        self.connection.is_granted()
    }

    pub(super) fn consumed(&mut self, stream: Stream, len: u64) {
        self.connection.consumed(self.channel, stream, len);
    }

    pub(super) fn consumed_so_far(&self, stream: Stream) -> Option<u64> {
        self.connection.consumed_so_far(self.channel, stream)
    }

    /// How many bytes of stdin may be put now.
    pub(super) fn room(&self) -> usize {
        self.connection.room(self.channel)
    }

    pub(super) fn put_with<E>(
        &mut self,
        fill: impl FnOnce(&mut [u8]) -> Result<(usize, bool), E>,
    ) -> Result<(usize, bool), PutError<E>> {
        self.connection.put_with(self.channel, fill)
    }

    /// Before which offset of stdin everything has reached the program's pipe.
    pub(super) fn stdin_acked(&self) -> Option<u64> {
        let offsets = self.connection.stdin_offsets(self.channel);
        offsets.map(|(acked, _)| acked)
    }

    pub(super) fn stdin_is_closed(&self) -> bool {
        self.connection.stdin_is_closed(self.channel)
    }

    /// Sends a signal; gives the number of the `pong` that says that it has come.
    pub(super) fn signal(&mut self, signal: i32) -> u64 {
        let signal = Signal {
            signal,
            tree: false,
            job: None,
        };
        self.connection.signal(self.channel, &signal);
        self.keepalive.ping(&mut self.connection)
    }

    /// Ends the whole tree.
    pub(super) fn end_tree(&mut self, signal: i32) {
        let signal = Signal {
            signal,
            tree: true,
            job: None,
        };
        self.connection.signal(self.channel, &signal);
    }

    pub(super) fn resize(&mut self, size: &Resize) {
        self.connection.resize(self.channel, size);
    }

    /// The outcome has come.
    pub(super) fn close(&mut self) {
        self.connection.close(self.channel);
    }

    /// Leaves: at the job's end, or before, in a hurry. Of a job that is ours nothing needs to be kept then;
    /// a `bye` would say that of any.
    pub(super) async fn leave(mut self, job: JobId, at_its_end: bool) {
        if !self.guest {
            if self.kept {
                self.connection.forget(job);
            }
            self.connection.bye();
        }
        let time = match at_its_end {
            true => END_TIME,
            false => LEAVE_TIME,
        };
        // A line that is dead is not waited for: what it is not told, the server finds out.
        let _ = tokio::time::timeout(time, self.connection.leave()).await;
    }
}
