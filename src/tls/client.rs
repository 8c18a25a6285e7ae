use std::{io, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Connects to servers with a certificate of an authority that browsers trust, or of one that was
/// added.
///
/// Its provider is its own: it neither needs nor changes that of the process.
#[derive(Clone)]
pub(crate) struct Client(Option<TlsConnector>);

impl Client {
    /// Trusts the certificates in `more`, too. One that rustls cannot read is skipped.
    pub(crate) fn new(more: &[Vec<u8>]) -> Self {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let more = more.iter().map(|der| CertificateDer::from(der.as_slice()).into_owned());
        roots.add_parsable_certificates(more);
        let builder = ClientConfig::builder_with_provider(Arc::new(provider()));
        // Fails only for a provider without a cipher suite of TLS 1.2 or 1.3.
        let builder = builder.with_safe_default_protocol_versions().ok();
        let config = builder.map(|it| it.with_root_certificates(roots).with_no_client_auth());
        Self(config.map(|config| TlsConnector::from(Arc::new(config))))
    }

    /// The certificates in a PEM file, as DER. `None` if there is none, or one is malformed.
    pub(crate) fn certificates(pem: &[u8]) -> Option<Vec<Vec<u8>>> {
        let certificates: Vec<_> =
            CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
        let is_valid =
            |it: &CertificateDer<'static>| RootCertStore::empty().add(it.clone()).is_ok();
        let all_are = !certificates.is_empty() && certificates.iter().all(is_valid);
        all_are.then(|| certificates.iter().map(|it| it.to_vec()).collect())
    }

    /// TLS over `stream` with the server of this name or address.
    pub(crate) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let unusable = || io::Error::other("no cipher suite");
        self.0.as_ref().ok_or_else(unusable)?.connect(name, stream).await
    }
}

/// As for the database: `ring`, unless only the other one is chosen.
fn provider() -> CryptoProvider {
    #[cfg(all(feature = "tls-rustls-aws-lc-rs", not(feature = "tls-rustls-ring")))]
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(not(all(feature = "tls-rustls-aws-lc-rs", not(feature = "tls-rustls-ring"))))]
    let provider = rustls::crypto::ring::default_provider();
    provider
}
