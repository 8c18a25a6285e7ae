//! The service of `orders.proto`, behind the layer: on a port of axum's, or on tonic's own server.

use std::{net::SocketAddr, pin::Pin};

use axum::{
    Router,
    routing::{MethodRouter, get, post_service},
    serve::ListenerExt,
};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use tokio::{net::TcpListener, sync::watch};
use tonic::{
    Request, Response, Status, Streaming,
    server::NamedService,
    service::{LayerExt, Routes},
    transport::{Server, server::TcpIncoming},
};
use tonic_web::GrpcWebLayer;
use tower_api_key::{
    ApiKeyLayer, Authenticator, Consumer, RequireScope,
    layer::{ClientAddress, ConcurrencyLimit, StatusOnly, UntilKeyEndsLayer},
};

use crate::demo::{
    DeleteRequest, DeleteResponse, GetRequest, Order, TotalResponse, WatchRequest,
    orders_server::{Orders, OrdersServer},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// `axum::serve`, with `/healthz` on the same port, and layers that limit each method.
    Axum,
    /// tonic's `Server`, whose handlers require scopes.
    Tonic,
    /// As `Axum`, with `GrpcWebLayer` inside of the layer that reads keys.
    AroundGrpcWeb,
    /// As `Axum`, with `GrpcWebLayer` outside of it.
    InsideGrpcWeb,
    /// As `Axum`, with the layer that reads keys left out by mistake.
    AxumWithoutLayer,
    /// As `Tonic`, with the layer that reads keys left out by mistake.
    TonicWithoutLayer,
}

pub(crate) const HOSTS: [Host; 2] = [Host::Axum, Host::Tonic];

const PLAN: &str = "single";

fn one_at_once() -> ConcurrencyLimit {
    ConcurrencyLimit::per_key(100).unwrap().for_plan(PLAN, 1).unwrap()
}

fn layer(auth: Authenticator) -> ApiKeyLayer {
    ApiKeyLayer::new(auth).throttle_failures(ClientAddress::x_forwarded_for(1))
}

/// A service that runs until the test's runtime ends.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    /// How many connections it accepted.
    pub(crate) connections: watch::Sender<usize>,
    /// How many requests `Total` received.
    pub(crate) totals: watch::Sender<usize>,
}

pub(crate) async fn serve(host: Host, auth: &Authenticator) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let auth = auth.clone();
    let (connections, totals) = (watch::Sender::new(0), watch::Sender::new(0));
    let accepted = connections.clone();
    let accept = move || accepted.send_modify(|connections| *connections += 1);
    let service = Service { requires: host == Host::Tonic, totals: totals.clone() };
    match host {
        Host::Axum => drop(tokio::spawn(async move {
            let app = open().merge(methods(&service).layer(layer(auth)));
            axum::serve(listener.tap_io(move |_| accept()), app).await.unwrap();
        })),
        Host::AroundGrpcWeb => drop(tokio::spawn(async move {
            let app = methods(&service).layer(GrpcWebLayer::new()).layer(layer(auth));
            axum::serve(listener, app).await.unwrap();
        })),
        Host::InsideGrpcWeb => drop(tokio::spawn(async move {
            let app = methods(&service).layer(layer(auth)).layer(GrpcWebLayer::new());
            axum::serve(listener, app).await.unwrap();
        })),
        Host::AxumWithoutLayer => drop(tokio::spawn(async move {
            axum::serve(listener, open().merge(methods(&service))).await.unwrap();
        })),
        Host::Tonic => drop(tokio::spawn(
            Server::builder()
                .layer(layer(auth).render_rejections(StatusOnly))
                .layer(UntilKeyEndsLayer::new().render_rejections(StatusOnly))
                .layer(one_at_once().render_rejections(StatusOnly))
                .add_service(OrdersServer::new(service))
                .serve_with_incoming(TcpIncoming::from(listener).inspect(move |_| accept())),
        )),
        Host::TonicWithoutLayer => {
            let guarded = RequireScope::one("orders:read").unwrap().render_rejections(StatusOnly);
            let orders = guarded.named_layer(OrdersServer::new(service));
            let routes = Server::builder().add_service(orders);
            drop(tokio::spawn(routes.serve_with_incoming(TcpIncoming::from(listener))));
        }
    }
    Running { address, connections, totals }
}

/// What needs no key.
fn open() -> Router {
    let (_, health) = tonic_health::server::health_reporter();
    Routes::new(health).into_axum_router().route("/healthz", get(async || "ok"))
}

fn methods(service: &Service) -> Router {
    let limit = one_at_once();
    let method = |scope: &str| -> MethodRouter {
        let scope = RequireScope::one(scope).unwrap();
        let method: MethodRouter = post_service(OrdersServer::new(service.clone())).layer(scope);
        method.layer(limit.clone())
    };
    let path = |name: &str| format!("/{}/{name}", <OrdersServer<Service> as NamedService>::NAME);
    Router::new()
        .route(&path("Get"), method("orders:read"))
        .route(&path("Delete"), method("orders:write"))
        .route(&path("Watch"), method("orders:read"))
        .route(&path("Total"), method("orders:read"))
        .route(&path("Lookup"), method("orders:read"))
        .layer(UntilKeyEndsLayer::new())
}

#[derive(Clone)]
struct Service {
    /// Whether the handlers require scopes.
    requires: bool,
    totals: watch::Sender<usize>,
}

impl Service {
    fn require<T>(&self, request: &Request<T>, scope: &str) -> Result<(), Status> {
        if self.requires {
            let consumer = request.extensions().get::<Consumer>().expect("a consumer");
            consumer.require(scope)?;
        }
        Ok(())
    }
}

fn order(id: String) -> Order {
    Order { cents: id.parse().unwrap_or_default(), id }
}

type OrderStream = Pin<Box<dyn Stream<Item = Result<Order, Status>> + Send>>;

#[tonic::async_trait]
impl Orders for Service {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Order>, Status> {
        self.require(&request, "orders:read")?;
        Ok(Response::new(order(request.into_inner().id)))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        self.require(&request, "orders:write")?;
        Ok(Response::new(DeleteResponse {}))
    }

    type WatchStream = OrderStream;

    /// One order, and then nothing for ever.
    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<OrderStream>, Status> {
        self.require(&request, "orders:read")?;
        let first = stream::iter([Ok(order("1".to_owned()))]);
        Ok(Response::new(Box::pin(first.chain(stream::pending()))))
    }

    async fn total(
        &self,
        requests: Request<Streaming<GetRequest>>,
    ) -> Result<Response<TotalResponse>, Status> {
        self.require(&requests, "orders:read")?;
        let received = |_: &Order| self.totals.send_modify(|totals| *totals += 1);
        let orders = requests.into_inner().map_ok(|request| order(request.id));
        let orders = orders.inspect_ok(received);
        let cents = orders.try_fold(0, async |sum, order| Ok(sum + order.cents)).await?;
        Ok(Response::new(TotalResponse { cents }))
    }

    type LookupStream = OrderStream;

    async fn lookup(
        &self,
        requests: Request<Streaming<GetRequest>>,
    ) -> Result<Response<OrderStream>, Status> {
        self.require(&requests, "orders:read")?;
        let orders = requests.into_inner().map_ok(|request| order(request.id));
        Ok(Response::new(Box::pin(orders)))
    }
}
