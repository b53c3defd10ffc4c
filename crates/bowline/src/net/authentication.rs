//! What stands between a connection and the service.

use std::future::Future;

use super::connection::Connection;
use super::service::ServiceError;

/// A step that a peer must take before the service sees the connection.
///
/// It is bounded by [`Limits::authentication_time`](super::Limits::authentication_time)
/// as a whole. What the peer has sent beyond the step belongs to the service.
pub trait Authentication: Send + Sync + 'static {
    /// Lets the peer prove itself.
    ///
    /// # Errors
    /// Any error closes the connection without a word; for a wrong proof it is
    /// [`ServiceError::NotAuthenticated`].
    fn authenticate(
        &self,
        connection: &mut Connection,
    ) -> impl Future<Output = Result<(), ServiceError>> + Send;

    /// Whether there is anything to prove at all.
    fn is_needed(&self) -> bool {
        true
    }
}

/// No authentication.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anyone;

impl Authentication for Anyone {
    async fn authenticate(&self, _: &mut Connection) -> Result<(), ServiceError> {
        Ok(())
    }

    fn is_needed(&self) -> bool {
        false
    }
}

/// `None` is no authentication: for programs whose users decide.
impl<A: Authentication> Authentication for Option<A> {
    async fn authenticate(&self, connection: &mut Connection) -> Result<(), ServiceError> {
        match self {
            Some(authentication) => authentication.authenticate(connection).await,
            None => Ok(()),
        }
    }

    fn is_needed(&self) -> bool {
        self.as_ref().is_some_and(Authentication::is_needed)
    }
}
