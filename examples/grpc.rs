//! gRPC and HTTP on one port, with nothing to set up:
//!
//! ```text
//! cargo run --example grpc --features grpc,sqlite
//! ```
//!
//! `/healthz`, gRPC's health check and reflection are open. The methods of `demo.v1.Orders` require
//! a key, each with its scope. `BIND` and `DATABASE_URL` (`sqlite:` or `postgres:`, with that
//! feature) can be set in the environment or in a `.env` file. Each start issues a key and prints
//! it, which no real service should do. SIGTERM and Ctrl-C stop it.

#[expect(dead_code, reason = "each example uses a part of it")]
mod shared;

/// Made from `grpc/orders.proto`.
#[path = "grpc/demo.v1.rs"]
#[allow(clippy::all, clippy::clone_on_ref_ptr, missing_docs, reason = "generated")]
#[allow(rust_2018_idioms, unreachable_pub, unused_qualifications, reason = "generated")]
#[rustfmt::skip]
mod demo;

use std::{pin::Pin, time::Duration};

use axum::{
    Router,
    routing::{MethodRouter, get, post_service},
};
use demo::{
    DeleteRequest, DeleteResponse, GetRequest, Order, TotalResponse, WatchRequest,
    orders_server::{Orders, OrdersServer},
};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use shared::{PREFIX, Result, bind, load_dotenv, setting, terminated, timed};
use tokio::{net::TcpListener, sync::watch, time::interval};
use tonic::{Request, Response, Status, Streaming, service::Routes};
use tonic_reflection::server::Builder as Reflection;
use tower_api_key::{
    ApiKeyLayer, ApiKeys, Authenticator, RequireScope,
    layer::UntilKeyEndsLayer,
    manage::{Expiry, KeyIssuer, NewKey},
    rate_limit::Quota,
    record::Scopes,
};

const DESCRIPTORS: &[u8] = include_bytes!("grpc/demo.v1.bin");

fn main() -> Result<()> {
    load_dotenv()?;
    run()
}

#[tokio::main]
async fn run() -> Result<()> {
    let url = setting("DATABASE_URL");
    let keys = ApiKeys::open(url.as_deref().unwrap_or("sqlite::memory:"), PREFIX).await?;
    let end = terminated()?;
    let listener = TcpListener::bind(bind()).await?;
    let address = listener.local_addr()?;
    let key = issue(&keys.issuer()).await?;
    println!("listening on http://{address}");
    println!("key: {key}");

    let (stop, stopped) = watch::channel(false);
    let app = orders(keys.authenticator().clone(), stopped)?.merge(open().await?);
    let end = async move {
        end.await;
        stop.send_replace(true);
    };
    timed::serve(listener, app, end).await;
    keys.stop().await;
    Ok(())
}

/// A key for 10 requests a minute, 5 at once, that may read orders and not delete them.
async fn issue(issuer: &KeyIssuer) -> Result<String> {
    let quota = Quota::per_minute(10)?.burst(5)?;
    let scopes = Scopes::parse(["orders:read"])?;
    let new = NewKey::new("acme", Expiry::Never).name("demo").scopes(scopes).rate_limits(quota);
    let issued = issuer.issue(new).await?;
    Ok(issued.key.expose_secret().to_owned())
}

/// What needs no key.
async fn open() -> Result<Router> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<OrdersServer<Service>>().await;
    let reflection = || Reflection::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let routes = Routes::new(health_service)
        .add_service(reflection().build_v1()?)
        // For older tools.
        .add_service(reflection().build_v1alpha()?);
    Ok(routes.into_axum_router().route("/healthz", get(async || "ok")))
}

/// The methods and their scopes. A method that is not listed does not exist.
fn orders(auth: Authenticator, stopped: watch::Receiver<bool>) -> Result<Router> {
    let service = OrdersServer::new(Service { stopped });
    let method = |scope: &str| -> Result<MethodRouter> {
        Ok(post_service(service.clone()).layer(RequireScope::one(scope)?))
    };
    Ok(Router::new()
        .route("/demo.v1.Orders/Get", method("orders:read")?)
        .route("/demo.v1.Orders/Delete", method("orders:write")?)
        .route("/demo.v1.Orders/Watch", method("orders:read")?)
        .route("/demo.v1.Orders/Total", method("orders:read")?)
        .route("/demo.v1.Orders/Lookup", method("orders:read")?)
        .layer(UntilKeyEndsLayer::new())
        .layer(ApiKeyLayer::new(auth)))
}

/// Every order exists, and costs as much as its number says.
#[derive(Clone)]
struct Service {
    stopped: watch::Receiver<bool>,
}

impl Service {
    /// `orders` until the service stops.
    fn until_stopped(
        &self,
        orders: impl Stream<Item = Result<Order, Status>> + Send + 'static,
    ) -> Response<OrderStream> {
        let mut stopped = self.stopped.clone();
        let stop = async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let end = stream::once(async { Err(Status::unavailable("the service stops")) });
        Response::new(Box::pin(orders.take_until(stop).chain(end)))
    }
}

fn order(id: String) -> Order {
    let cents = id.parse().unwrap_or_default();
    Order { id, cents }
}

type OrderStream = Pin<Box<dyn Stream<Item = Result<Order, Status>> + Send>>;

#[tonic::async_trait]
impl Orders for Service {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Order>, Status> {
        Ok(Response::new(order(request.into_inner().id)))
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<DeleteResponse>, Status> {
        Ok(Response::new(DeleteResponse {}))
    }

    type WatchStream = OrderStream;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<OrderStream>, Status> {
        let every_second = interval(Duration::from_secs(1));
        let orders = stream::unfold((every_second, 1), async |(mut every_second, number)| {
            every_second.tick().await;
            Some((Ok(order(number.to_string())), (every_second, number + 1)))
        });
        Ok(self.until_stopped(orders))
    }

    async fn total(
        &self,
        requests: Request<Streaming<GetRequest>>,
    ) -> Result<Response<TotalResponse>, Status> {
        let orders = requests.into_inner().map_ok(|request| order(request.id));
        let add = async |sum: u64, order: Order| Ok(sum.saturating_add(order.cents));
        let cents = orders.try_fold(0, add).await?;
        Ok(Response::new(TotalResponse { cents }))
    }

    type LookupStream = OrderStream;

    async fn lookup(
        &self,
        requests: Request<Streaming<GetRequest>>,
    ) -> Result<Response<OrderStream>, Status> {
        let orders = requests.into_inner().map_ok(|request| order(request.id));
        Ok(Response::new(Box::pin(orders)))
    }
}
