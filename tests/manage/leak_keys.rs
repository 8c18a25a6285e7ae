//! GitHub's public keys, fetched from a server of the test over HTTPS.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header::LOCATION};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use tower_api_key::{
    clock::ManualClock,
    leaks::{GitHubPublicKeys, PublicKey, PublicKeys as _, PublicKeysError, PublicKeysErrorKind},
};

use crate::{
    github::GitHub,
    servers::tls::Authority,
    wait::{eventually, within},
};

const DAY: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// A server that publishes public keys.
struct Publisher {
    authority: Authority,
    address: SocketAddr,
    state: Arc<State>,
    _server: AbortOnDrop,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Default)]
struct State {
    answer: Mutex<(u16, Vec<u8>)>,
    requests: AtomicUsize,
    authorization: Mutex<Option<String>>,
    is_held: watch::Sender<bool>,
    arrived: Notify,
}

impl Publisher {
    async fn start() -> Self {
        let authority = Authority::new();
        let certificate = authority.certificate("localhost");
        let chain = CertificateDer::from_pem_slice(certificate.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::<State>::default());
        let served = Arc::clone(&state);
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&served));
                connections.spawn(async move {
                    // A client that does not trust the certificate hangs up.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = service_fn(|request| State::answer(Arc::clone(&state), request));
                    let _ =
                        http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        Self { authority, address, state, _server: AbortOnDrop(server) }
    }

    fn publish(&self, github: &GitHub) {
        self.answer(200, github.published().to_string().into_bytes());
    }

    fn answer(&self, status: u16, body: Vec<u8>) {
        *self.state.answer.lock().unwrap() = (status, body);
    }

    fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/keys?all", self.address.port())
    }

    /// A client, and its clock.
    fn client(&self) -> (GitHubPublicKeys, ManualClock) {
        let clock = ManualClock::default();
        let pem = std::fs::read(self.authority.file()).unwrap();
        let keys = GitHubPublicKeys::at(&self.url()).unwrap().trust(&pem).unwrap();
        (keys.clock(clock.clone()), clock)
    }
}

impl State {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        assert_eq!(request.uri().path_and_query().unwrap(), "/keys?all");
        self.requests.fetch_add(1, Ordering::SeqCst);
        let authorization = request.headers().get("authorization");
        *self.authorization.lock().unwrap() =
            authorization.map(|value| value.to_str().unwrap().to_owned());
        self.arrived.notify_one();
        let mut is_held = self.is_held.subscribe();
        let _ = is_held.wait_for(|is_held| !is_held).await;
        let (status, body) = self.answer.lock().unwrap().clone();
        let mut response = Response::new(Full::new(body.into()));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        if response.status().is_redirection() {
            response.headers_mut().insert(LOCATION, "/elsewhere".parse().unwrap());
        }
        Ok(response)
    }
}

async fn find(
    keys: &GitHubPublicKeys,
    identifier: &str,
) -> Result<Option<PublicKey>, PublicKeysErrorKind> {
    let found: Result<_, PublicKeysError> = within(keys.find(identifier)).await;
    found.map_err(|error| error.kind())
}

fn key(github: &GitHub) -> Option<PublicKey> {
    Some(PublicKey::from_pem(&github.pem()).unwrap())
}

#[tokio::test]
async fn keys_are_fetched_once_a_day_and_for_an_unknown_one_at_most_once_a_minute() {
    let publisher = Publisher::start().await;
    let (first, second) = (GitHub::with_key(1, "first"), GitHub::with_key(2, "second"));
    publisher.publish(&first);
    let (keys, clock) = publisher.client();
    for _ in 0..10 {
        assert_eq!(find(&keys, "first").await, Ok(key(&first)));
    }
    assert_eq!(publisher.requests(), 1);
    for made_up in 0..10 {
        assert_eq!(find(&keys, &made_up.to_string()).await, Ok(None));
    }
    assert_eq!(publisher.requests(), 1);
    publisher.publish(&second);
    clock.advance(MINUTE);
    assert_eq!(find(&keys, "first").await, Ok(key(&first)), "it is known");
    assert_eq!(publisher.requests(), 1);
    assert_eq!(find(&keys, "second").await, Ok(key(&second)));
    assert_eq!(publisher.requests(), 2);
    assert_eq!(find(&keys, "first").await, Ok(None), "it was withdrawn");
    clock.advance(DAY - SECOND);
    assert_eq!(find(&keys, "second").await, Ok(key(&second)));
    assert_eq!(publisher.requests(), 2);
    publisher.publish(&first);
    clock.advance(SECOND);
    assert_eq!(find(&keys, "second").await, Ok(None), "it was withdrawn");
    assert_eq!(publisher.requests(), 3);
}

#[tokio::test]
async fn while_no_keys_can_be_fetched_nobody_knows_and_known_keys_are_used() {
    let publisher = Publisher::start().await;
    let github = GitHub::with_key(1, "first");
    publisher.answer(500, Vec::new());
    let (keys, clock) = publisher.client();
    for _ in 0..3 {
        assert_eq!(find(&keys, "first").await, Err(PublicKeysErrorKind::Unavailable));
    }
    assert_eq!(publisher.requests(), 1);
    publisher.publish(&github);
    clock.advance(MINUTE);
    assert_eq!(find(&keys, "first").await, Ok(key(&github)));
    publisher.answer(503, Vec::new());
    clock.advance(DAY);
    assert_eq!(find(&keys, "first").await, Ok(key(&github)), "it may still be right");
    assert_eq!(find(&keys, "other").await, Err(PublicKeysErrorKind::Unavailable));
    assert_eq!(publisher.requests(), 3);
}

#[tokio::test]
async fn what_is_not_a_document_of_public_keys_is_refused() {
    let publisher = Publisher::start().await;
    let published = GitHub::new().published().to_string();
    for (status, body, kind) in [
        (302, published.clone(), PublicKeysErrorKind::Unavailable),
        (404, published.clone(), PublicKeysErrorKind::Unavailable),
        (200, published + &" ".repeat(300_000), PublicKeysErrorKind::Unavailable),
        (200, "{}".to_owned(), PublicKeysErrorKind::Invalid),
    ] {
        publisher.answer(status, body.into_bytes());
        let (keys, _) = publisher.client();
        assert_eq!(find(&keys, "current").await, Err(kind), "{status}");
    }
    assert_eq!(publisher.requests(), 4, "no redirect is followed");
}

#[tokio::test]
async fn a_server_whose_certificate_is_not_trusted_is_not_asked() {
    let publisher = Publisher::start().await;
    publisher.publish(&GitHub::new());
    let other = std::fs::read(Authority::new().file()).unwrap();
    for keys in [
        GitHubPublicKeys::at(&publisher.url()).unwrap(),
        GitHubPublicKeys::at(&publisher.url()).unwrap().trust(&other).unwrap(),
    ] {
        assert_eq!(find(&keys, "current").await, Err(PublicKeysErrorKind::Unavailable));
    }
    assert_eq!(publisher.requests(), 0);
    for url in ["http://localhost/keys", "https://user:word@localhost/", "localhost", "https://"] {
        assert_eq!(GitHubPublicKeys::at(url).unwrap_err().kind(), PublicKeysErrorKind::Invalid);
    }
    for pem in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let trusting = GitHubPublicKeys::new().trust(pem.as_bytes());
        assert_eq!(trusting.unwrap_err().kind(), PublicKeysErrorKind::Invalid);
    }
}

#[tokio::test]
async fn the_token_is_sent_and_never_shown() {
    let publisher = Publisher::start().await;
    publisher.publish(&GitHub::new());
    let (keys, _) = publisher.client();
    assert!(find(&keys, "current").await.is_ok());
    assert_eq!(*publisher.state.authorization.lock().unwrap(), None);
    let (keys, _) = publisher.client();
    let keys = keys.bearer_token("ghp_secret").unwrap();
    assert!(!format!("{keys:?}").contains("ghp_secret"));
    assert!(find(&keys, "current").await.is_ok());
    assert_eq!(publisher.state.authorization.lock().unwrap().as_deref(), Some("Bearer ghp_secret"));
    assert!(GitHubPublicKeys::new().bearer_token("a\nb").is_err());
}

#[tokio::test]
async fn a_client_that_hangs_up_does_not_keep_the_keys_from_being_fetched() {
    let publisher = Publisher::start().await;
    let github = GitHub::new();
    publisher.publish(&github);
    publisher.state.is_held.send_replace(true);
    let keys = Arc::new(publisher.client().0);
    let hangs_up = {
        let keys = Arc::clone(&keys);
        tokio::spawn(async move { keys.find("made up").await.is_ok() })
    };
    within(publisher.state.arrived.notified()).await;
    hangs_up.abort();
    assert!(within(hangs_up).await.unwrap_err().is_cancelled());
    let waiting = {
        let keys = Arc::clone(&keys);
        tokio::spawn(async move { keys.find("current").await.unwrap() })
    };
    publisher.state.is_held.send_replace(false);
    assert_eq!(within(waiting).await.unwrap(), key(&github));
    eventually("one request", async || publisher.requests() == 1).await;
}
