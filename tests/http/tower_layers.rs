//! The layer among tower's own layers.

use std::{
    future::{Ready, pending, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tower::{
    BoxError, Layer as _, Service, ServiceBuilder, ServiceExt as _, load_shed::error::Overloaded,
    retry::Policy, service_fn, steer::Steer, timeout::error::Elapsed, util::BoxService,
};
use tower_api_key::{ApiKeyLayer, Consumer, rate_limit::Quota, test_util::TestKeys};

use crate::{app::unknown_key, wait::within};

type Call = Request<String>;
type Answer = Response<String>;

fn layer(keys: &TestKeys) -> ApiKeyLayer {
    ApiKeyLayer::new(keys.authenticator().clone())
}

async fn hello(request: Call) -> Result<Answer, BoxError> {
    let consumer = request.extensions().get::<Consumer>().map_or("none", Consumer::id);
    Ok(Response::new(consumer.to_owned()))
}

/// A request with a key that does not exist.
fn unknown() -> Call {
    let request = Request::get("/").header("authorization", format!("Bearer {}", unknown_key()));
    request.body(String::new()).unwrap()
}

async fn ask<S: Service<Call, Response = Answer>>(
    service: &mut S,
    request: Call,
) -> Result<StatusCode, S::Error> {
    let answer = within(async { service.ready().await?.call(request).await }).await?;
    Ok(answer.status())
}

#[tokio::test]
async fn a_rejected_request_takes_no_place_of_load_shed_and_its_limit() {
    let (keys, entered) = (TestKeys::new(), Arc::new(Semaphore::new(0)));
    let enters = Arc::clone(&entered);
    let waits = move |_: Call| {
        enters.add_permits(1);
        pending::<Result<Answer, BoxError>>()
    };
    let shed = ServiceBuilder::new().load_shed().concurrency_limit(1).service_fn(waits);
    let mut service = layer(&keys).layer(shed);
    let key = keys.issue("acme").await;
    for _ in 0..3 {
        assert_eq!(ask(&mut service, unknown()).await.unwrap(), 401);
        let running = tokio::spawn(service.clone().oneshot(key.get("/")));
        within(entered.acquire()).await.unwrap().forget();
        assert_eq!(ask(&mut service, unknown()).await.unwrap(), 401, "not the overload");
        let overloaded = ask(&mut service, key.get("/")).await.unwrap_err();
        assert!(overloaded.is::<Overloaded>(), "{overloaded}");
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
    }
}

#[tokio::test]
async fn many_tasks_share_a_service_behind_a_buffer() {
    let keys = TestKeys::new();
    let service = ServiceBuilder::new().buffer(4).layer(layer(&keys)).service(service_fn(hello));
    let key = keys.issue("acme").await;
    let mut tasks = Vec::new();
    for number in 0..40 {
        let (is_good, request) = match number % 2 {
            0 => (true, key.get("/")),
            _ => (false, unknown()),
        };
        let mut service = service.clone();
        let asked = async move { ask(&mut service, request).await.unwrap() };
        tasks.push((tokio::spawn(asked), if is_good { 200 } else { 401 }));
    }
    for (task, expected) in tasks {
        assert_eq!(task.await.unwrap(), expected);
    }
}

/// Retries what the service cannot answer now, after `before_retry`.
#[derive(Clone)]
struct RetryErrors<F>(F);

impl<F: Fn()> Policy<Call, Answer, BoxError> for RetryErrors<F> {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Call, answer: &mut Result<Answer, BoxError>) -> Option<Ready<()>> {
        let failed = answer.as_ref().is_ok_and(|answer| answer.status().is_server_error());
        failed.then(|| {
            self.0();
            ready(())
        })
    }

    fn clone_request(&mut self, request: &Call) -> Option<Call> {
        Some(request.clone())
    }
}

#[tokio::test]
async fn a_retry_around_the_layer_sends_the_key_again_and_is_charged_again() {
    let (keys, failures) = (TestKeys::new(), Arc::new(AtomicUsize::new(0)));
    let failing = Arc::clone(&failures);
    let flaky = move |request: Call| {
        let fails = failing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        async move {
            let mut answer = hello(request).await?;
            if fails.is_ok() {
                *answer.status_mut() = StatusCode::BAD_GATEWAY;
            }
            Ok(answer)
        }
    };
    let around = |come_back: TestKeys| {
        let policy = RetryErrors(move || come_back.come_back());
        ServiceBuilder::new().retry(policy).layer(layer(&keys)).service_fn(flaky.clone())
    };
    let key = keys.issue("acme").rate_limits(Quota::per_minute(3).unwrap()).await;
    let mut service = around(keys.clone());
    // An outage: the next attempt is admitted, with the same key.
    keys.forget();
    keys.go_down();
    assert_eq!(ask(&mut service, key.get("/")).await.unwrap(), 200);
    failures.store(1, Ordering::SeqCst);
    assert_eq!(ask(&mut service, key.get("/")).await.unwrap(), 200);
    assert_eq!(ask(&mut service, key.get("/")).await.unwrap(), 429, "1 and 2 attempts");
}

#[tokio::test]
async fn a_retry_inside_the_layer_is_charged_once() {
    let (keys, calls) = (TestKeys::new(), Arc::new(AtomicUsize::new(0)));
    let called = Arc::clone(&calls);
    let flaky = move |request: Call| {
        let number = called.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut answer = hello(request).await?;
            if number < 2 {
                *answer.status_mut() = StatusCode::BAD_GATEWAY;
            }
            Ok(answer)
        }
    };
    let inside = ServiceBuilder::new().retry(RetryErrors(|| {})).service_fn(flaky);
    let mut service = layer(&keys).layer(inside);
    let key = keys.issue("acme").rate_limits(Quota::per_minute(1).unwrap()).await;
    assert_eq!(ask(&mut service, key.get("/")).await.unwrap(), 200);
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    assert_eq!(ask(&mut service, key.get("/")).await.unwrap(), 429);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_inside_the_layer_is_the_error_of_the_service() {
    let keys = TestKeys::new();
    let slow = |_: Call| pending::<Result<Answer, BoxError>>();
    let timed = ServiceBuilder::new().timeout(Duration::from_secs(5)).service_fn(slow);
    let mut service = layer(&keys).layer(timed);
    let error = ask(&mut service, keys.issue("acme").await.get("/")).await.unwrap_err();
    assert!(error.is::<Elapsed>(), "{error}");
    assert_eq!(ask(&mut service, unknown()).await.unwrap(), 401);
}

#[tokio::test]
async fn steer_chooses_between_a_guarded_and_an_open_service() {
    let keys = TestKeys::new();
    let guarded = BoxService::new(layer(&keys).layer(service_fn(hello)));
    let open = BoxService::new(service_fn(hello));
    let pick = |request: &Call, _: &[_]| usize::from(request.uri().path() == "/open");
    let mut service = Steer::new([guarded, open], pick);
    let key = keys.issue("acme").await;
    let anonymous = |path: &str| Request::get(path).body(String::new()).unwrap();
    for (request, status) in
        [(anonymous("/open"), 200), (anonymous("/"), 401), (key.get("/"), 200), (unknown(), 401)]
    {
        assert_eq!(ask(&mut service, request).await.unwrap(), status);
    }
}
