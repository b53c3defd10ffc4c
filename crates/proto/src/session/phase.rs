//! Who may say what: the table of kinds that each side may send in each phase.
//! Anything else is an error that ends the connection.

use crate::frame::Kind;

/// Which side this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The side that connected and asks for jobs.
    Client,
    /// The side that runs them.
    Server,
}

/// Kinds that a client may send once it is authenticated.
pub(super) const fn client_may_send(kind: Kind) -> bool {
    match kind {
        Kind::Stdin
        | Kind::Start
        | Kind::Attach
        | Kind::Signal
        | Kind::Resize
        | Kind::Window
        | Kind::Forget
        | Kind::List
        | Kind::Ping
        | Kind::Pong
        | Kind::Bye => true,
        Kind::Stdout
        | Kind::Stderr
        | Kind::Hello
        | Kind::Auth
        | Kind::Granted
        | Kind::Refused
        | Kind::Started
        | Kind::Exit
        | Kind::Jobs
        | Kind::Gap => false,
    }
}

/// Kinds that a server may send, before and after it has granted.
pub(super) const fn server_may_send(kind: Kind, granted: bool) -> bool {
    match kind {
        Kind::Granted => !granted,
        Kind::Refused | Kind::Bye => true,
        Kind::Stdout
        | Kind::Stderr
        | Kind::Started
        | Kind::Window
        | Kind::Exit
        | Kind::Jobs
        | Kind::Gap
        | Kind::Ping
        | Kind::Pong => granted,
        Kind::Stdin
        | Kind::Hello
        | Kind::Auth
        | Kind::Start
        | Kind::Attach
        | Kind::Signal
        | Kind::Resize
        | Kind::Forget
        | Kind::List => false,
    }
}
