//! Receivers over TLS.

use std::sync::Arc;

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower_api_key::record::EventFilter;

use crate::{
    databases::Place,
    receiver::Log,
    servers::tls::{Authority, Certificate},
};

/// Serves over TLS, and returns the port.
async fn serve(certificate: &Certificate, log: &Log) -> u16 {
    let chain = CertificateDer::pem_slice_iter(certificate.certificate.as_bytes());
    let chain = chain.collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = log.router();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, app) = (acceptor.clone(), app.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = TowerToHyperService::new(app);
                let builder = Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn a_receiver_needs_a_certificate_for_its_name_of_an_authority_that_is_trusted() {
    let place = Place::sqlite().await;
    let (authority, other) = (Authority::new(), Authority::new());
    let log = Log::new();
    let port = serve(&authority.certificate("localhost"), &log).await;
    let wrong = serve(&authority.certificate("example.com"), &log).await;
    let trusting = |authority: &Authority| {
        let pem = std::fs::read(authority.file()).unwrap();
        place.webhooks().trust_certificates(&pem).unwrap()
    };
    let url = |port| format!("https://localhost:{port}/hooks");
    let id = place.webhooks().add(&url(port), EventFilter::all()).await.unwrap().id;
    let wrong = place.webhooks().add(&url(wrong), EventFilter::all()).await.unwrap().id;

    let untrusted = place.webhooks().test(id).await.unwrap();
    assert!(untrusted.problem.unwrap().contains("certificate"));
    let untrusted = trusting(&other).test(id).await.unwrap();
    assert!(untrusted.problem.unwrap().contains("certificate"));
    let misnamed = trusting(&authority).test(wrong).await.unwrap();
    assert!(misnamed.problem.unwrap().contains("certificate"));
    assert!(log.received().is_empty(), "nothing is sent before the handshake");

    let trusted = trusting(&authority).test(id).await.unwrap();
    assert_eq!(trusted.status, Some(204), "{trusted:?}");
    assert_eq!(log.received()[0].headers["host"], format!("localhost:{port}"));
    assert!(place.webhooks().trust_certificates(b"no certificate").is_err());
}
