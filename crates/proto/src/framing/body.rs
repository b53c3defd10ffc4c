//! The bytes of a message whose length is known, gathered as they come.

/// What of a message is here, and how much is to come.
#[derive(Clone, Debug, Default)]
pub(super) struct Body {
    bytes: Vec<u8>,
    left: usize,
}

impl Body {
    /// `len` was compared with the bound; memory is taken for what comes, not for that.
    pub(super) fn of_len(len: usize) -> Self {
        Self {
            bytes: Vec::new(),
            left: len,
        }
    }

    /// Takes what belongs to it off the front: how much that was, and the bytes
    /// once all are here.
    pub(super) fn take(&mut self, input: &[u8]) -> (usize, Option<Vec<u8>>) {
        let len = self.left.min(input.len());
        let part = input.get(..len).unwrap_or_default();
        if len == self.left && self.bytes.is_empty() {
            // It came in one piece: one allocation of the right size.
            self.left = 0;
            return (len, Some(part.to_vec()));
        }
        self.bytes.extend_from_slice(part);
        self.left -= len;
        let whole = (self.left == 0).then(|| std::mem::take(&mut self.bytes));
        (len, whole)
    }
}
