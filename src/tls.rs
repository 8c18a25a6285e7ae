//! The cryptography of rustls: the provider of the process, and connections to servers.

#[cfg(any(feature = "leaks", feature = "webhooks"))]
mod client;

#[cfg(any(feature = "leaks", feature = "webhooks"))]
pub(crate) use self::client::Client;
#[cfg(all(
    any(feature = "postgres", feature = "redis"),
    any(feature = "tls-rustls-ring", feature = "tls-rustls-aws-lc-rs")
))]
use rustls::crypto::CryptoProvider;

/// Installs the provider of the enabled feature, unless the process has one.
///
/// rustls chooses a provider only if exactly one is compiled in, and panics otherwise; any crate of
/// the program may enable a second one. `ring` takes precedence, as in sqlx.
#[cfg(all(
    any(feature = "postgres", feature = "redis"),
    any(feature = "tls-rustls-ring", feature = "tls-rustls-aws-lc-rs")
))]
pub(crate) fn install_provider() {
    if CryptoProvider::get_default().is_some() {
        return;
    }
    #[cfg(feature = "tls-rustls-ring")]
    let provider = rustls::crypto::ring::default_provider();
    #[cfg(not(feature = "tls-rustls-ring"))]
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    // Fails if another thread has installed one meanwhile, which is fine.
    let _ = provider.install_default();
}

/// The certificates that the operating system trusts, as PEM.
#[cfg(all(feature = "redis", feature = "tls-native"))]
pub(crate) fn system_roots() -> Vec<u8> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    let mut pem = String::new();
    for certificate in rustls_native_certs::load_native_certs().certs {
        // A system's store may have some that rustls cannot read.
        if rustls::RootCertStore::empty().add(certificate.clone()).is_ok() {
            pem.push_str("-----BEGIN CERTIFICATE-----\n");
            STANDARD.encode_string(&certificate, &mut pem);
            pem.push_str("\n-----END CERTIFICATE-----\n");
        }
    }
    pem.into_bytes()
}

#[cfg(all(
    test,
    feature = "tls-rustls-ring",
    feature = "tls-rustls-aws-lc-rs",
    any(feature = "postgres", feature = "redis")
))]
mod tests {
    #[test]
    fn rustls_has_a_provider_where_both_are_compiled_in() {
        super::install_provider();
        // Panics without a provider of the process.
        let _ = rustls::ClientConfig::builder();
    }
}
