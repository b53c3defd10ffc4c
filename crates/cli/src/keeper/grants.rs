//! Who may start jobs: the tokens that were given to authenticated connections.
//!
//! A token is 128 random bits and holds for one connection of one gate, until
//! the connection or the gate is gone. The table is bounded by the
//! connections that there may be.

use std::collections::HashMap;
use std::rc::Rc;

use super::policy::Decision;
use crate::ipc::GrantToken;

/// The grants of the present gate.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    by_token: HashMap<GrantToken, Entry>,
    by_connection: HashMap<u64, GrantToken>,
}

#[derive(Debug)]
struct Entry {
    connection: u64,
    decision: Rc<Decision>,
}

/// No token could be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrantError {
    /// The gate says that it has more connections than it may have.
    #[error("more grants than connections are permitted")]
    Full,
    /// The system gave no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

impl Grants {
    /// Gives a token for the connection; an earlier one of it ends.
    ///
    /// # Errors
    /// [`GrantError`].
    pub(crate) fn give(
        &mut self,
        connection: u64,
        decision: Decision,
        grants_max: usize,
    ) -> Result<GrantToken, GrantError> {
        self.disconnected(connection);
        if self.by_token.len() >= grants_max {
            return Err(GrantError::Full);
        }
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| GrantError::Random)?;
        let token = GrantToken(bytes);
        let decision = Rc::new(decision);
        let entry = Entry {
            connection,
            decision,
        };
        self.by_token.insert(token, entry);
        self.by_connection.insert(connection, token);
        Ok(token)
    }

    /// What was decided for the token, if it is of this connection.
    pub(crate) fn check(&self, token: GrantToken, connection: u64) -> Option<Rc<Decision>> {
        let entry = self.by_token.get(&token)?;
        (entry.connection == connection).then(|| Rc::clone(&entry.decision))
    }

    /// Whether nobody is let in at present.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_token.is_empty()
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&mut self, connection: u64) {
        if let Some(token) = self.by_connection.remove(&connection) {
            self.by_token.remove(&token);
        }
    }

    /// The gate is gone, and all its connections.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::Grant;
    use crate::keeper::policy::Account;

    fn decision() -> Decision {
        Decision {
            account: Account {
                name: "u".to_owned(),
                uid: 1,
                gid: 1,
                groups: vec![1],
                home: "/".into(),
                shell: "/bin/sh".into(),
            },
            proof: "peer".to_owned(),
            grant: Grant::default(),
            forced_command: None,
            environment: Vec::new(),
            server_mac: None,
        }
    }

    #[test]
    fn a_token_holds_for_its_connection_while_it_lasts() {
        let mut grants = Grants::default();
        let one = grants.give(1, decision(), 2).unwrap();
        let two = grants.give(2, decision(), 2).unwrap();
        assert_ne!(one, two);
        assert!(matches!(
            grants.give(3, decision(), 2),
            Err(GrantError::Full)
        ));
        assert!(grants.check(one, 1).is_some());
        assert!(grants.check(one, 2).is_none());
        let again = grants.give(1, decision(), 2).unwrap();
        assert!(grants.check(one, 1).is_none());
        assert!(grants.check(again, 1).is_some());
        grants.disconnected(1);
        assert!(grants.check(again, 1).is_none());
        assert!(grants.check(two, 2).is_some());
        assert!(!grants.is_empty());
        grants.clear();
        assert!(grants.is_empty());
        assert!(grants.check(two, 2).is_none());
    }
}
