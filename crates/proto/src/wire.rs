//! Taking bytes apart: the one file that slices what a peer sent.
//!
//! Every function takes a slice and gives back what it found and the rest, or
//! `None` where there is not enough; nothing here can panic.

/// The first `N` bytes and the rest.
pub(crate) fn array<const N: usize>(input: &[u8]) -> Option<([u8; N], &[u8])> {
    let (head, rest) = input.split_first_chunk::<N>()?;
    Some((*head, rest))
}

/// The first `len` bytes and the rest.
pub(crate) fn bytes(input: &[u8], len: usize) -> Option<(&[u8], &[u8])> {
    input.split_at_checked(len)
}

/// The next NUL-terminated string, without its NUL, and the rest.
pub(crate) fn c_string(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = input.iter().position(|&byte| byte == 0)?;
    let (head, rest) = input.split_at_checked(end)?;
    Some((head, rest.get(1..)?))
}

/// Exactly `count` NUL-terminated strings at the start of `input`, and the rest.
pub(crate) fn c_strings(mut input: &[u8], count: usize) -> Option<(Vec<&[u8]>, &[u8])> {
    // Each string takes at least its NUL, so `count` is bounded before anything is allocated.
    if count > input.len() {
        return None;
    }
    let mut strings = Vec::with_capacity(count);
    for _ in 0..count {
        let (string, rest) = c_string(input)?;
        strings.push(string);
        input = rest;
    }
    Some((strings, input))
}

/// The beginning of a text, at most `bytes_max` bytes of it and no half character.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("knöpfe", 3), "kn");
        assert_eq!(cut("knöpfe", 4), "knö");
        assert_eq!(cut("knöpfe", 100), "knöpfe");
        assert_eq!(cut("ö", 1), "");
        assert_eq!(cut("", 0), "");
    }

    #[test]
    fn strings_are_counted_before_they_are_allocated() {
        assert_eq!(
            c_strings(b"a\0\0b\0rest", 3),
            Some((vec![&b"a"[..], b"", b"b"], &b"rest"[..]))
        );
        assert_eq!(c_strings(b"a\0", usize::MAX), None);
        assert_eq!(c_strings(b"a", 1), None);
        assert_eq!(c_strings(b"", 0), Some((vec![], &b""[..])));
    }
}
