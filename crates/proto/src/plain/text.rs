//! Text in a stream of bytes: where its last whole character ends.

/// How many bytes of `bytes` come before a UTF-8 sequence that is only begun at their
/// end: all of them where the last character is whole, or where they are not UTF-8
/// at all, since then there is nothing to keep together. At most three are left over.
pub fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_a_begun_sequence_is_left_over() {
        assert_eq!(whole_characters(b""), 0);
        assert_eq!(whole_characters(b"abc"), 3);
        assert_eq!(whole_characters("a你".as_bytes()), 4);
        assert_eq!(whole_characters(b"a\xe4\xbd"), 1);
        assert_eq!(whole_characters(b"\xf0\x9f\x92"), 0);
        // A lone continuation, a surrogate, GBK: no UTF-8.
        assert_eq!(whole_characters(b"a\x80"), 2);
        assert_eq!(whole_characters(b"\xed\xa0"), 2);
        assert_eq!(whole_characters(b"\xc4\xe3"), 2);
    }

    proptest! {
        #[test]
        fn any_cut_of_text_leaves_less_than_a_character(text in ".{0,40}", cut in 0_usize..200) {
            let cut = cut.min(text.len());
            let whole = whole_characters(&text.as_bytes()[..cut]);
            prop_assert!(text.is_char_boundary(whole));
            prop_assert!(cut - whole < 4);
        }
    }
}
