//! The layer follows tower's contract: readiness, errors, panics, bodies, clones, cancellation.

use std::{
    convert::Infallible,
    fmt,
    future::{Future, Ready, poll_fn, ready},
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use axum::body::Body;
use http::{HeaderValue, Request, Response, StatusCode, header::AUTHORIZATION, request::Parts};
use tokio::{
    sync::Semaphore,
    task::{LocalSet, spawn_local},
};
use tower::{
    BoxError, Layer, Service, ServiceBuilder, ServiceExt, buffer::BufferLayer,
    limit::ConcurrencyLimitLayer, service_fn, util::ServiceFn,
};
use tower_api_key::{
    ApiKeyLayer, Authenticator, RequireScope,
    auth::{CachePolicy, Rejection},
    clock::Clock,
    key::KeyHash,
    layer::{
        ConcurrencyLimit, Cost, ProblemJson, RejectionResponse,
        service::{
            ApiKeyService, ConcurrencyLimitBody, ConcurrencyLimitFuture, ConcurrencyLimitService,
            MeteredFuture, MeteredService, RequireScopeFuture, RequireScopeService, ResponseFuture,
        },
    },
    manage::{Expiry, NewKey},
    rate_limit::Quota,
    record::KeyRecord,
    store::{KeyStore, ManageKeys as _, MemoryKeyStore, StoreError},
};
use tower_http::catch_panic::CatchPanicLayer;
use tower_test::mock;

use crate::app::{App, Handler, Keys, SECOND, format, unknown_key, with_key};
use crate::doubles::within;

/// Whether a request's key is cached: the two paths through the layer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Key {
    Cached,
    Uncached,
}

const BOTH: [Key; 2] = [Key::Cached, Key::Uncached];

/// An authenticator, and a cached or uncached key.
async fn auth(state: Key) -> (Authenticator, String) {
    let keys = Keys::new();
    let (auth, key) = (keys.auth(), keys.key().await);
    if state == Key::Cached {
        auth.check(key.as_bytes()).await.unwrap();
    }
    (auth, key)
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// A store that does not respond until released.
#[derive(Clone)]
struct Gated {
    memory: MemoryKeyStore,
    asked: Arc<Semaphore>,
    gate: Arc<Semaphore>,
    queries: Arc<AtomicUsize>,
}

impl Gated {
    fn of(keys: &Keys) -> Self {
        Self {
            memory: keys.store.memory.clone(),
            asked: Arc::new(Semaphore::new(0)),
            gate: Arc::new(Semaphore::new(0)),
            queries: Arc::default(),
        }
    }

    fn auth(&self) -> Authenticator {
        let patient = CachePolicy::default().load_deadline(30 * SECOND).unwrap();
        Authenticator::builder(self.clone(), format()).cache(patient).build().0
    }

    async fn until_asked(&self) {
        self.asked.acquire().await.unwrap().forget();
    }

    fn answer(&self) {
        self.gate.add_permits(1);
    }
}

impl KeyStore for Gated {
    async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
        self.queries.fetch_add(1, Ordering::SeqCst);
        self.asked.add_permits(1);
        self.gate.acquire().await.unwrap().forget();
        self.memory.find(hash).await
    }
}

mod public_types {
    use super::*;

    /// A request much larger than a future.
    type Large = Request<[u8; 4096]>;
    type Answer = Ready<Result<Response<Body>, Infallible>>;
    type Inner = ServiceFn<fn(Large) -> Answer>;

    /// Compiles if `S` and `F` are what `L` makes, and they can be printed.
    fn has<L, S, F>(_: &L)
    where
        L: Layer<Inner, Service = S>,
        S: Service<Large, Future = F> + fmt::Debug,
        F: fmt::Debug,
    {
    }

    #[tokio::test]
    async fn services_and_futures_can_be_named_and_printed() {
        type Api = ResponseFuture<Inner, [u8; 4096], ProblemJson>;
        type Metered = MeteredFuture<Inner, [u8; 4096], ProblemJson>;
        type Scoped = RequireScopeFuture<Answer, Response<Body>>;
        type Limited = ConcurrencyLimitFuture<Answer, Body>;
        let (auth, _) = auth(Key::Uncached).await;
        has::<_, ApiKeyService<Inner>, Api>(&ApiKeyLayer::new(auth));
        has::<_, MeteredService<Inner>, Metered>(&Cost::new(2));
        has::<_, RequireScopeService<Inner>, Scoped>(&RequireScope::one("a").unwrap());
        let limit = ConcurrencyLimit::per_key(1).unwrap();
        has::<_, ConcurrencyLimitService<Inner>, Limited>(&limit);
        let inner: Inner = service_fn(|_| ready(Ok(Response::default())));
        let response = limit.layer(inner).oneshot(Request::new([0; 4096])).await.unwrap();
        let body: ConcurrencyLimitBody<Body> = response.into_body();
        assert!(format!("{body:?}").starts_with("ConcurrencyLimitBody"));
    }

    /// A request that waits is boxed.
    #[test]
    fn a_future_has_no_room_for_a_request_that_waits() {
        assert!(size_of::<ResponseFuture<Inner, [u8; 4096], ProblemJson>>() < 1024);
        assert!(size_of::<MeteredFuture<Inner, [u8; 4096], ProblemJson>>() < 1024);
    }
}

mod readiness {
    use super::*;

    type Mock = mock::Mock<Request<Body>, Response<Body>>;

    #[tokio::test]
    async fn the_layer_is_ready_when_the_inner_service_is() {
        let (auth, _) = auth(Key::Uncached).await;
        let (mut service, mut inner) =
            mock::spawn_layer::<Request<Body>, Response<Body>, _>(ApiKeyLayer::new(auth));
        inner.allow(0);
        assert!(service.poll_ready().is_pending());
        assert!(service.poll_ready().is_pending());
        inner.allow(1);
        assert!(service.is_woken());
        assert!(service.poll_ready().is_ready());
    }

    /// Every layer is as ready as what it wraps, and fails with it.
    #[tokio::test]
    async fn the_other_layers_are_ready_when_their_inner_services_are() {
        async fn check<L>(layer: L)
        where
            L: Layer<Mock>,
            L::Service: Service<Request<Body>, Error = BoxError> + Clone,
        {
            let (mut service, mut inner) = mock::spawn_layer(layer);
            inner.allow(0);
            assert!(service.poll_ready::<Request<Body>>().is_pending());
            inner.allow(1);
            assert!(service.poll_ready::<Request<Body>>().is_ready());
            inner.send_error("out of order");
            let Poll::Ready(Err(error)) = service.poll_ready::<Request<Body>>() else { panic!() };
            assert_eq!(error.to_string(), "out of order");
        }
        check(Cost::new(2)).await;
        check(RequireScope::one("a").unwrap()).await;
        check(ConcurrencyLimit::per_key(1).unwrap()).await;
    }

    #[tokio::test]
    async fn an_inner_service_that_fails_to_get_ready_says_so() {
        let (auth, _) = auth(Key::Uncached).await;
        let (mut service, mut inner) =
            mock::spawn_layer::<Request<Body>, Response<Body>, _>(ApiKeyLayer::new(auth));
        inner.send_error("out of order");
        let Poll::Ready(Err(error)) = service.poll_ready::<Request<Body>>() else { panic!() };
        assert_eq!(error.to_string(), "out of order");
    }

    /// A mock panics when called before it is ready, as is a clone of a ready one.
    #[tokio::test]
    async fn the_service_that_was_ready_is_the_one_that_is_called() {
        for state in BOTH {
            let (auth, key) = auth(state).await;
            let (mock, mut inner): (Mock, _) = mock::pair();
            let mut service = ApiKeyLayer::new(auth).layer(mock);
            inner.allow(2);
            for _ in 0..2 {
                let answer = service.ready().await.unwrap().call(with_key(&key));
                let respond = async {
                    let (_, respond) = inner.next_request().await.unwrap();
                    respond.send_response(Response::new(Body::empty()));
                };
                let (answer, ()) = tokio::join!(answer, respond);
                assert_eq!(answer.unwrap().status(), StatusCode::OK, "{state:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_concurrency_limit_inside_is_kept() {
        for state in BOTH {
            let (auth, key) = auth(state).await;
            let (mock, mut inner): (Mock, _) = mock::pair();
            inner.allow(u64::MAX);
            let mut first = ServiceBuilder::new()
                .layer(ApiKeyLayer::new(auth))
                .layer(ConcurrencyLimitLayer::new(1))
                .service(mock);
            let mut second = first.clone();

            let mut answer = Box::pin(first.ready().await.unwrap().call(with_key(&key)));
            let mut second_ready = pin!(second.ready());
            assert!(poll_once(second_ready.as_mut()).await.is_pending(), "{state:?}");
            let respond = async { inner.next_request().await.unwrap().1 };
            let respond = tokio::select! {
                _ = answer.as_mut() => panic!("nobody answered yet"),
                respond = respond => respond,
            };
            assert!(poll_once(second_ready.as_mut()).await.is_pending(), "{state:?}");
            respond.send_response(Response::new(Body::empty()));
            assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
            assert!(poll_once(second_ready).await.is_ready(), "{state:?}");
        }
    }

    #[tokio::test]
    async fn a_refused_request_gives_the_inner_services_place_back() {
        let keys = Keys::new();
        let mut first = ServiceBuilder::new()
            .layer(ApiKeyLayer::new(keys.auth()))
            .layer(ConcurrencyLimitLayer::new(1))
            .service(Handler::default());
        let mut second = first.clone();
        // Malformed, unknown and uncached, unknown and cached.
        let unknown = unknown_key();
        for key in ["junk", &unknown, &unknown] {
            let Ok(answer) = first.ready().await.unwrap().call(with_key(key)).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
            assert!(poll_once(pin!(second.ready())).await.is_ready(), "{key}");
            second = first.clone();
        }
    }

    #[tokio::test]
    async fn a_request_that_is_abandoned_during_its_look_up_gives_the_place_back() {
        let keys = Keys::new();
        let store = Gated::of(&keys);
        let mut first = ServiceBuilder::new()
            .layer(ApiKeyLayer::new(store.auth()))
            .layer(ConcurrencyLimitLayer::new(1))
            .service(Handler::default());
        let mut second = first.clone();
        {
            let mut answer = pin!(first.ready().await.unwrap().call(with_key(&keys.key().await)));
            assert!(poll_once(answer.as_mut()).await.is_pending());
            assert!(poll_once(pin!(second.ready())).await.is_pending());
        }
        assert!(poll_once(pin!(second.ready())).await.is_ready());
    }

    #[tokio::test]
    async fn a_buffer_works_on_either_side() {
        let keys = Keys::new();
        let key = keys.key().await;
        let layer = ApiKeyLayer::new(keys.auth());
        let handler = Handler::default();
        let inside = ServiceBuilder::new()
            .layer(layer.clone())
            .layer(BufferLayer::new(1))
            .layer(ConcurrencyLimitLayer::new(1))
            .service(handler.clone());
        let outside = ServiceBuilder::new()
            .layer(BufferLayer::new(1))
            .layer(layer)
            .layer(ConcurrencyLimitLayer::new(1))
            .service(handler.clone());
        for _ in 0..20 {
            let unknown = unknown_key();
            for (key, status) in [
                (key.as_str(), StatusCode::OK),
                ("junk", StatusCode::UNAUTHORIZED),
                (&unknown, StatusCode::UNAUTHORIZED),
            ] {
                let (inside, outside) = tokio::join!(
                    inside.clone().oneshot(with_key(key)),
                    outside.clone().oneshot(with_key(key)),
                );
                assert_eq!((inside.unwrap().status(), outside.unwrap().status()), (status, status));
            }
        }
        assert_eq!(handler.calls.load(Ordering::SeqCst), 40);
    }
}

mod failures {
    use super::*;

    #[tokio::test]
    async fn an_error_of_the_inner_service_is_passed_on_as_it_is() {
        for state in BOTH {
            let (auth, key) = auth(state).await;
            let (mut service, mut inner) =
                mock::spawn_layer::<Request<Body>, Response<Body>, _>(ApiKeyLayer::new(auth));
            assert!(service.poll_ready().is_ready());
            let answer = service.call(with_key(&key));
            let respond = async {
                inner.next_request().await.unwrap().1.send_error("no disk");
            };
            let (answer, ()) = tokio::join!(answer, respond);
            assert_eq!(answer.unwrap_err().to_string(), "no disk", "{state:?}");
        }
    }

    #[tokio::test]
    async fn a_request_counts_and_is_recorded_however_the_inner_service_fails() {
        for path in ["/error", "/panic"] {
            let keys = Keys::new();
            let quota = Quota::per_minute(10).unwrap();
            let (auth, worker) = keys.builder().default_rate_limits(quota).build();
            let inner = service_fn(async |request: Request<Body>| match request.uri().path() {
                "/error" => Err(BoxError::from("no disk")),
                "/panic" => panic!("a handler that panics"),
                _ => Ok(Response::new(Body::empty())),
            });
            let service = ApiKeyLayer::new(auth).layer(inner);
            let issued = keys.issue(NewKey::new("acme", Expiry::Never)).await;
            let request = |path: &str| {
                let mut request = with_key(&crate::app::text(&issued));
                *request.uri_mut() = path.parse().unwrap();
                request
            };
            let failing = service.clone().oneshot(request(path));
            let failed = LocalSet::new().run_until(async { spawn_local(failing).await }).await;
            assert!(failed.is_err() || failed.is_ok_and(|answer| answer.is_err()), "{path}");

            worker.run(ready(())).await;
            let used = keys.store.memory.last_used_at(issued.record.id).await.unwrap();
            assert_eq!(used, Some(keys.clock.now()), "{path}");
            let answer = service.oneshot(request("/")).await.unwrap();
            let left = answer.headers()["ratelimit"].to_str().unwrap();
            assert!(left.starts_with(r#""minute";r=8;"#), "{path}: {left}");
        }
    }

    #[tokio::test]
    async fn errors_need_not_be_of_any_kind() {
        #[derive(Debug, PartialEq)]
        struct Mine;

        let (auth, key) = auth(Key::Cached).await;
        let inner = service_fn(|_: Request<Body>| ready(Err::<Response<Body>, _>(Mine)));
        let answer = ApiKeyLayer::new(auth).layer(inner).oneshot(with_key(&key)).await;
        assert_eq!(answer.unwrap_err(), Mine);
    }

    /// Panics in `call` or in the future, depending on the path of the request.
    fn explosive()
    -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static {
        service_fn(|request: Request<Body>| {
            let path = request.uri().path().to_owned();
            assert_ne!(path, "/call", "a handler that panics");
            async move {
                assert_ne!(path, "/future", "a handler that panics");
                Ok(Response::new(Body::empty()))
            }
        })
    }

    #[tokio::test]
    async fn after_a_panic_of_the_inner_service_everything_goes_on() {
        for path in ["/call", "/future"] {
            let keys = Keys::new();
            let quota = Quota::per_minute(10).unwrap();
            let (auth, _) = keys.builder().default_rate_limits(quota).build();
            let service = ServiceBuilder::new()
                .map_response(|response: Response<_>| response.map(Body::new))
                .layer(CatchPanicLayer::new())
                .layer(ApiKeyLayer::new(auth))
                .service(explosive());
            let key = keys.key().await;
            let request = |path: &str| {
                let mut request = with_key(&key);
                *request.uri_mut() = path.parse().unwrap();
                request
            };
            for left in [9, 7, 5] {
                let answer = crate::app::send(service.clone(), request(path)).await;
                assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
                let answer = crate::app::send(service.clone(), request("/")).await;
                let state = format!(r#""minute";r={};t="#, left - 1);
                assert_eq!(answer.status, StatusCode::OK);
                assert!(answer.header("ratelimit").unwrap().starts_with(&state), "{path}: {left}");
            }
            assert_eq!(keys.queries(), 1);
        }
    }

    #[tokio::test]
    async fn a_request_that_is_abandoned_during_its_look_up_harms_nobody() {
        let keys = Keys::new();
        let store = Gated::of(&keys);
        let app = App::new(ApiKeyLayer::new(store.auth()));
        let key = keys.key().await;
        {
            let mut answer = pin!(app.get(&key));
            assert!(poll_once(answer.as_mut()).await.is_pending());
            store.until_asked().await;
        }
        assert_eq!(app.calls(), 0);
        store.answer();
        assert_eq!(app.get(&key).await.status, StatusCode::OK);
        assert_eq!(app.calls(), 1, "the abandoned request was served");
        assert_eq!(store.queries.load(Ordering::SeqCst), 1, "its look-up was abandoned too");
    }

    /// A store whose first query waits, and then panics.
    struct Explosive {
        memory: MemoryKeyStore,
        queries: AtomicUsize,
        gate: Arc<Semaphore>,
    }

    impl KeyStore for Explosive {
        async fn find(&self, hash: &KeyHash) -> Result<Option<KeyRecord>, StoreError> {
            if self.queries.fetch_add(1, Ordering::SeqCst) == 0 {
                self.gate.acquire().await.unwrap().forget();
                panic!("the first query");
            }
            self.memory.find(hash).await
        }
    }

    #[tokio::test]
    async fn after_a_look_up_that_panics_and_nobody_waits_for_the_next_request_asks_again() {
        let (keys, gate) = (Keys::new(), Arc::new(Semaphore::new(0)));
        let (memory, queries) = (keys.store.memory.clone(), AtomicUsize::new(0));
        let store = Explosive { memory, queries, gate: Arc::clone(&gate) };
        let app = App::new(ApiKeyLayer::new(Authenticator::builder(store, format()).build().0));
        let key = keys.key().await;
        {
            let mut answer = pin!(app.get(&key));
            assert!(poll_once(answer.as_mut()).await.is_pending());
        }
        gate.add_permits(1);
        // The query goes on to its panic without a pause once it has the permit.
        within(async {
            while gate.available_permits() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(app.get(&key).await.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn a_request_that_is_abandoned_does_not_take_the_others_along() {
        let keys = Keys::new();
        let store = Gated::of(&keys);
        let app = App::new(ApiKeyLayer::new(store.auth()));
        let key = keys.key().await;
        let mut others = Box::pin(async { tokio::join!(app.get(&key), app.get(&key)) });
        {
            let mut first = pin!(app.get(&key));
            assert!(poll_once(first.as_mut()).await.is_pending());
            assert!(poll_once(others.as_mut()).await.is_pending());
            store.until_asked().await;
        }
        store.answer();
        let (second, third) = others.await;
        assert_eq!((second.status, third.status), (StatusCode::OK, StatusCode::OK));
        assert_eq!(store.queries.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_request_that_is_abandoned_in_its_handler_harms_nobody() {
        let (auth, key) = auth(Key::Cached).await;
        let inner = service_fn(|request: Request<Body>| async move {
            if request.uri().path() == "/never" {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let service = ApiKeyLayer::new(auth).layer(inner);
        for _ in 0..100 {
            let mut request = with_key(&key);
            *request.uri_mut() = "/never".parse().unwrap();
            assert!(poll_once(pin!(service.clone().oneshot(request))).await.is_pending());
        }
        assert_eq!(crate::app::send(service, with_key(&key)).await.status, StatusCode::OK);
    }
}

mod types {
    use super::*;

    fn request<B>(body: B, key: &str) -> Request<B> {
        let mut request = Request::new(body);
        let value = HeaderValue::try_from(format!("Bearer {key}")).unwrap();
        request.headers_mut().insert(AUTHORIZATION, value);
        request
    }

    #[tokio::test]
    async fn bodies_may_be_of_any_type() {
        /// Neither `Default`, nor made from text, nor `Send`, nor a body.
        #[derive(Debug, PartialEq)]
        struct Opaque(Rc<str>);

        /// A closure would need a body with a default.
        struct Refusing;

        impl RejectionResponse<Opaque> for Refusing {
            fn response(&self, _: &Rejection, _: &Parts) -> Response<Opaque> {
                Response::new(Opaque("refused".into()))
            }

            fn empty_body(&self) -> Opaque {
                Opaque("".into())
            }
        }

        for state in BOTH {
            let (auth, key) = auth(state).await;
            let layer = ApiKeyLayer::new(auth).render_rejections(Refusing);
            let inner = service_fn(async |request: Request<Opaque>| {
                Ok::<_, Infallible>(Response::new(request.into_body()))
            });
            let service = layer.layer(inner);
            let mine = || Opaque("mine".into());
            let Ok(admitted) = service.clone().oneshot(request(mine(), &key)).await;
            assert_eq!(admitted.body(), &mine(), "{state:?}");
            let Ok(refused) = service.oneshot(request(mine(), "junk")).await;
            assert_eq!(refused.body(), &Opaque("refused".into()));
            assert!(refused.headers().contains_key("www-authenticate"));
        }
    }

    #[tokio::test]
    async fn the_inner_service_may_borrow() {
        #[derive(Clone)]
        struct Borrowing<'a>(&'a AtomicUsize);

        impl Service<Request<Body>> for Borrowing<'_> {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = Ready<Result<Response<Body>, Infallible>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, _: Request<Body>) -> Self::Future {
                self.0.fetch_add(1, Ordering::SeqCst);
                ready(Ok(Response::new(Body::empty())))
            }
        }

        for state in BOTH {
            let calls = AtomicUsize::new(0);
            let (auth, key) = auth(state).await;
            let service = ApiKeyLayer::new(auth).layer(Borrowing(&calls));
            let Ok(answer) = service.oneshot(with_key(&key)).await;
            assert_eq!(answer.status(), StatusCode::OK, "{state:?}");
            assert_eq!(calls.into_inner(), 1);
        }
    }

    #[tokio::test]
    async fn the_future_is_send_where_its_parts_are() {
        fn assert_send<T: Send>(value: T) -> T {
            value
        }

        for state in BOTH {
            let (auth, key) = auth(state).await;
            let service = assert_send(ApiKeyLayer::new(auth).layer(Handler::default()));
            let answer = tokio::spawn(assert_send(service.oneshot(with_key(&key))));
            assert_eq!(answer.await.unwrap().unwrap().status(), StatusCode::OK, "{state:?}");
        }
    }

    #[tokio::test]
    async fn errors_may_be_boxed() {
        let (auth, key) = auth(Key::Cached).await;
        let service = ServiceBuilder::new()
            .layer(ApiKeyLayer::new(auth))
            .map_err(BoxError::from)
            .service(Handler::default());
        assert_eq!(service.oneshot(with_key(&key)).await.unwrap().status(), StatusCode::OK);
    }
}

mod clones {
    use super::*;

    /// Counts its clones.
    struct Counted {
        clones: Arc<AtomicUsize>,
        handler: Handler,
    }

    impl Clone for Counted {
        fn clone(&self) -> Self {
            self.clones.fetch_add(1, Ordering::SeqCst);
            Self { clones: Arc::clone(&self.clones), handler: self.handler.clone() }
        }
    }

    impl Service<Request<Body>> for Counted {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = <Handler as Service<Request<Body>>>::Future;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            self.handler.call(request)
        }
    }

    /// The number of clones of the inner service for one request.
    async fn clones(auth: Authenticator, request: Request<Body>) -> usize {
        let clones = Arc::new(AtomicUsize::new(0));
        let inner = Counted { clones: Arc::clone(&clones), handler: Handler::default() };
        let mut service = ApiKeyLayer::new(auth).layer(inner);
        let Ok(_) = service.ready().await.unwrap().call(request).await;
        clones.load(Ordering::SeqCst)
    }

    #[tokio::test]
    async fn a_cached_key_clones_no_service() {
        let (auth, key) = auth(Key::Cached).await;
        assert_eq!(clones(auth, with_key(&key)).await, 0);
    }

    #[tokio::test]
    async fn a_look_up_clones_one() {
        let (auth, key) = auth(Key::Uncached).await;
        assert_eq!(clones(auth, with_key(&key)).await, 1);
    }

    #[tokio::test]
    async fn a_refusal_clones_one() {
        let (auth, _) = auth(Key::Uncached).await;
        assert_eq!(clones(auth, with_key("junk")).await, 1);
    }
}

#[tokio::test]
async fn a_request_reaches_the_inner_service_as_it_came_but_for_the_key() {
    for state in BOTH {
        let (auth, key) = auth(state).await;
        let (mut service, mut inner) =
            mock::spawn_layer::<Request<&'static str>, Response<String>, _>(ApiKeyLayer::new(auth));
        assert!(service.poll_ready().is_ready());
        let request = Request::post("/orders?page=2")
            .header("authorization", format!("Bearer {key}"))
            .header("x-trace", "1")
            .extension(42_u8)
            .body("body")
            .unwrap();
        let answer = service.call(request);
        let respond = async {
            let (request, respond) = inner.next_request().await.unwrap();
            assert_eq!(
                (request.method().as_str(), request.uri().to_string().as_str()),
                ("POST", "/orders?page=2")
            );
            assert_eq!(
                (request.headers().len(), &request.headers()["x-trace"]),
                (1, &HeaderValue::from_static("1"))
            );
            assert_eq!(request.extensions().get(), Some(&42_u8));
            assert_eq!(request.into_body(), "body");
            respond.send_response(Response::new("answer".to_owned()));
        };
        let (answer, ()) = tokio::join!(answer, respond);
        assert_eq!(answer.unwrap().into_body(), "answer");
    }
}
