//! TLS of the reference: version, suites and groups as bowline's; both sides
//! show an Ed25519 certificate, and each must be the very one in the key
//! folder. Private keys enter here and leave only into rustls.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};

fn crypto() -> Arc<CryptoProvider> {
    let mut crypto = provider::default_provider();
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

/// Writes a key and a certificate for each side.
pub fn make_keys(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    for side in ["server", "client"] {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let certificate =
            rcgen::CertificateParams::new(vec![side.to_owned()])?.self_signed(&key)?;
        std::fs::write(dir.join(side).with_extension("key"), key.serialize_der())?;
        std::fs::write(dir.join(side).with_extension("crt"), certificate.der())?;
    }
    Ok(())
}

fn certificate(dir: &Path, side: &str) -> Result<CertificateDer<'static>> {
    let path = dir.join(side).with_extension("crt");
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    Ok(CertificateDer::from(bytes))
}

fn key(dir: &Path, side: &str) -> Result<PrivateKeyDer<'static>> {
    let bytes = std::fs::read(dir.join(side).with_extension("key"))?;
    PrivateKeyDer::try_from(bytes).map_err(anyhow::Error::msg)
}

pub fn server(dir: &Path) -> Result<Arc<ServerConfig>> {
    let crypto = crypto();
    let peer = Arc::new(Pinned(certificate(dir, "client")?, Arc::clone(&crypto)));
    let mut config = ServerConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(peer)
        .with_single_cert(vec![certificate(dir, "server")?], key(dir, "server")?)?;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

pub fn client(dir: &Path) -> Result<Arc<ClientConfig>> {
    let crypto = crypto();
    let peer = Arc::new(Pinned(certificate(dir, "server")?, Arc::clone(&crypto)));
    let mut config = ClientConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(peer)
        .with_client_auth_cert(vec![certificate(dir, "client")?], key(dir, "client")?)?;
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Pinned(CertificateDer<'static>, Arc<CryptoProvider>);

impl Pinned {
    fn is(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        match shown == &self.0 {
            true => Ok(()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn signed(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.1.signature_verification_algorithms,
        )
    }
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken".to_owned()))
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.is(end_entity)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.is(end_entity)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
