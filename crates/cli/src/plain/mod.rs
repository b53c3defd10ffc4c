//! The plain services: small protocols over bare sockets that thousands of programs
//! speak. What they do is here; their flags are in `cmd/plain`.

pub(crate) mod challenge;
pub(crate) mod chat;
pub(crate) mod client;
pub(crate) mod exec;
pub(crate) mod keeper;
pub(crate) mod link;
pub(crate) mod places;
pub(crate) mod reply;
pub(crate) mod runner;
pub(crate) mod screen;
pub(crate) mod service;
pub(crate) mod shown;
pub(crate) mod time;

/// Which service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Service {
    /// Sends back what it gets, a–z as A–Z
    Upper,
    /// Sends back each message behind the time
    Stamp,
    /// Shows one message, sends a text, closes
    Greet,
    /// A person at each end
    Chat,
    /// Shows what comes in and answers nothing
    Show,
    /// Tells the time: a strftime format over UDP, and NTP
    Time,
    /// Runs each message as a command and sends its output
    Exec,
}
