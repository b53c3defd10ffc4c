//! What the keeper signs with the host key: TLS handshakes, and nothing else.
//!
//! The gate reads the network, so it may come to be somebody else's; and the
//! host key may be sshd's too. A signature over anything but a server's
//! CertificateVerify of TLS 1.3 is therefore refused: no SSH key exchange, no
//! SSHSIG and no certificate can be made with the gate's help.

/// The context of a server's CertificateVerify (RFC 8446, section 4.4.3).
const CONTEXT: &[u8] = b"TLS 1.3, server CertificateVerify\0";
/// The spaces in front of it.
const PAD_BYTES: usize = 64;
/// The transcript hashes of the suites that there are, in bytes.
const HASH_BYTES: [usize; 2] = [32, 48];

/// Whether `message` is what a server signs in a TLS 1.3 handshake.
pub(crate) fn is_certificate_verify(message: &[u8]) -> bool {
    let Some((pad, rest)) = message.split_at_checked(PAD_BYTES) else {
        return false;
    };
    let hash = rest.strip_prefix(CONTEXT);
    pad.iter().all(|&byte| byte == b' ')
        && hash.is_some_and(|hash| HASH_BYTES.contains(&hash.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_handshakes_are_signed() {
        let message = |context: &[u8], hash: usize| [&[b' '; 64], context, &vec![7; hash]].concat();
        assert!(is_certificate_verify(&message(CONTEXT, 32)));
        assert!(is_certificate_verify(&message(CONTEXT, 48)));
        assert!(!is_certificate_verify(&message(CONTEXT, 33)));
        assert!(!is_certificate_verify(&message(CONTEXT, 0)));
        assert!(!is_certificate_verify(&message(CONTEXT, 48)[1..]));
        let client = b"TLS 1.3, client CertificateVerify\0";
        assert!(!is_certificate_verify(&message(client, 32)));
        assert!(!is_certificate_verify(b"SSHSIG"));
        assert!(!is_certificate_verify(b""));
    }
}
