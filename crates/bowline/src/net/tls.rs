//! TLS 1.3 as bowline uses it: one ALPN name, no tickets, no early data, and a
//! host key in a self-signed certificate instead of an authority.
//!
//! The server's key may be elsewhere: [`HostSigner`] is asked for each
//! handshake's signature (CertificateVerify, RFC 8446, section 4.4.3). The
//! client accepts any certificate of an Ed25519 key here and only learns the
//! key; [`crate::client`] decides about it before it says anything.

use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bowline_proto::limits::PROTOCOL;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureAlgorithm,
    SignatureScheme,
};

/// The start of the SubjectPublicKeyInfo of an Ed25519 key (RFC 8410, section 4);
/// the 32 bytes of the key follow.
const ED25519_SPKI_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// Whoever holds the host key.
pub trait HostSigner: Debug + Send + Sync {
    /// Signs with Ed25519 (RFC 8032). May block for as long as a local process
    /// takes to answer.
    ///
    /// # Errors
    /// Where the key's holder does not answer; the handshake fails.
    fn sign(&self, message: &[u8]) -> io::Result<Vec<u8>>;
}

fn crypto() -> Arc<CryptoProvider> {
    let mut crypto = provider::default_provider();
    // All of TLS 1.3's suites are fine; the fastest in hardware goes first.
    crypto.cipher_suites = vec![
        provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
        provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
        provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    crypto.kx_groups = vec![
        provider::kx_group::X25519MLKEM768,
        provider::kx_group::X25519,
        provider::kx_group::SECP256R1,
    ];
    Arc::new(crypto)
}

/// The configuration of a server that shows `certificate`, DER of a self-signed
/// certificate for the key that `signer` holds.
///
/// # Errors
/// Where the provider does not offer TLS 1.3, which would be a defect of the build.
pub fn server_config(
    certificate: Vec<u8>,
    signer: Arc<dyn HostSigner>,
) -> Result<Arc<ServerConfig>, Error> {
    let key = CertifiedKey::new(
        vec![CertificateDer::from(certificate)],
        Arc::new(RemoteKey(signer)),
    );
    let mut config = ServerConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![PROTOCOL.as_bytes().to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_half_rtt_data = true;
    Ok(Arc::new(config))
}

#[derive(Clone, Debug)]
struct RemoteKey(Arc<dyn HostSigner>);

impl SigningKey for RemoteKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered
            .contains(&SignatureScheme::ED25519)
            .then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for RemoteKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.0
            .sign(message)
            .map_err(|error| Error::General(format!("the host key's holder: {error}")))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// Makes the self-signed certificate for a host key; `sign` is asked once.
///
/// # Errors
/// What `sign` failed with, in rcgen's words.
pub fn self_signed(public: [u8; 32], signer: Arc<dyn HostSigner>) -> Result<Vec<u8>, rcgen::Error> {
    struct Remote {
        public: [u8; 32],
        signer: Arc<dyn HostSigner>,
    }
    impl rcgen::PublicKeyData for Remote {
        fn der_bytes(&self) -> &[u8] {
            &self.public
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            &rcgen::PKCS_ED25519
        }
    }
    impl rcgen::SigningKey for Remote {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
            self.signer
                .sign(message)
                .map_err(|_| rcgen::Error::RemoteKeyError)
        }
    }
    let mut params = rcgen::CertificateParams::new(vec!["bowline".to_owned()])?;
    let mut name = rcgen::DistinguishedName::new();
    name.push(rcgen::DnType::CommonName, "bowline host key");
    params.distinguished_name = name;
    let certificate = params.self_signed(&Remote { public, signer })?;
    Ok(certificate.der().to_vec())
}

/// The host key that a handshake showed, once it is over.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeenKey(Arc<Mutex<Option<[u8; 32]>>>);

impl SeenKey {
    pub(crate) fn take(&self) -> Option<[u8; 32]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The configuration of one client connection, and where its host key will be.
///
/// # Errors
/// As [`server_config`].
pub(crate) fn client_config() -> Result<(Arc<ClientConfig>, SeenKey), Error> {
    let crypto = crypto();
    let seen = SeenKey::default();
    let verifier = Arc::new(KeyOnly {
        seen: seen.clone(),
        crypto: crypto.clone(),
    });
    let mut config = ClientConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.as_bytes().to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    // The name decides nothing; not sending it tells the network less.
    config.enable_sni = false;
    Ok((Arc::new(config), seen))
}

/// Takes any certificate of an Ed25519 key, remembers the key, and has the
/// handshake prove that the peer holds it.
#[derive(Debug)]
struct KeyOnly {
    seen: SeenKey,
    crypto: Arc<CryptoProvider>,
}

impl ServerCertVerifier for KeyOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = webpki::EndEntityCert::try_from(end_entity)
            .map_err(|_| CertificateError::BadEncoding)?;
        let spki = certificate.subject_public_key_info();
        let key = spki
            .as_ref()
            .strip_prefix(&ED25519_SPKI_PREFIX)
            .and_then(|key| <[u8; 32]>::try_from(key).ok())
            .ok_or(CertificateError::BadEncoding)?;
        *self.seen.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
