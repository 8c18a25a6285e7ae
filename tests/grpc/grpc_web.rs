//! What a client of gRPC-Web sees over HTTP/1.1, with the layer outside and inside of tonic-web.

use std::{
    net::SocketAddr,
    task::{Context, Poll},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::{FutureExt, future::BoxFuture};
use http::{
    HeaderMap, HeaderValue, Request, Response,
    header::{ACCEPT, CONTENT_TYPE, HOST},
};
use http_body_util::{BodyExt, Either, Full};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::watch};
use tonic::{Status, Streaming, metadata::MetadataKey};
use tonic_web::{GrpcWebCall, GrpcWebClientService};
use tower::{BoxError, Service};

use crate::{
    cases::{self, Case, Seen, valid},
    demo::{GetRequest, Order, WatchRequest, orders_client::OrdersClient},
    doubles::within,
    orders::Host,
};

const HOSTS: [Host; 2] = [Host::AroundGrpcWeb, Host::InsideGrpcWeb];
const PROTO: &str = "application/grpc-web+proto";
const TEXT: &str = "application/grpc-web-text";

/// Sends each request over a connection of its own, as a browser does.
#[derive(Clone)]
struct Http1 {
    address: SocketAddr,
    content_type: &'static str,
    /// The headers of the last response, and whether its body was empty.
    head: watch::Sender<(HeaderMap, bool)>,
}

type Call = Request<GrpcWebCall<tonic::body::Body>>;
type Answer = Response<Either<Incoming, Full<Bytes>>>;

impl Http1 {
    async fn send(self, call: Call) -> Result<Answer, BoxError> {
        let (mut head, body) = call.into_parts();
        let body = body.collect().await?.to_bytes();
        let body = match self.content_type {
            TEXT => BASE64_STANDARD.encode(body).into(),
            _ => body,
        };
        for name in [CONTENT_TYPE, ACCEPT] {
            head.headers.insert(name, HeaderValue::from_static(self.content_type));
        }
        head.headers.insert(HOST, self.address.to_string().parse()?);
        let connection = TokioIo::new(TcpStream::connect(self.address).await?);
        let (mut sender, connection) = http1::handshake(connection).await?;
        tokio::spawn(connection);
        let answer = sender.send_request(Request::from_parts(head, Full::new(body))).await?;

        let is_empty = http_body::Body::is_end_stream(answer.body());
        self.head.send_replace((answer.headers().clone(), is_empty));
        if self.content_type != TEXT {
            return Ok(answer.map(Either::Left));
        }
        let (head, body) = answer.into_parts();
        let text = body.collect().await?.to_bytes();
        // Each frame may have padding.
        let groups = text.chunks(4).map(|group| BASE64_STANDARD.decode(group).unwrap());
        let body: Vec<_> = groups.collect();
        Ok(Response::from_parts(head, Either::Right(Full::from(body.concat()))))
    }
}

impl Service<Call> for Http1 {
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        self.clone().send(call).boxed()
    }
}

/// tonic's client of gRPC-Web.
struct Client {
    orders: OrdersClient<GrpcWebClientService<Http1>>,
    metadata: Vec<(&'static str, String)>,
    head: watch::Receiver<(HeaderMap, bool)>,
}

impl Client {
    fn of(case: &Case, content_type: &'static str) -> Self {
        let (sender, head) = watch::channel(Default::default());
        let http = Http1 { address: case.address, content_type, head: sender };
        let orders = OrdersClient::new(GrpcWebClientService::new(http));
        Self { orders, metadata: case.metadata(), head }
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        for (name, value) in &self.metadata {
            let name = MetadataKey::from_static(name);
            request.metadata_mut().append(name, value.parse().unwrap());
        }
        request
    }

    async fn get(&self) -> Result<Order, Status> {
        let request = self.request(GetRequest { id: "7".to_owned() });
        Ok(within(self.orders.clone().get(request)).await?.into_inner())
    }

    async fn watch(&self) -> Result<Streaming<Order>, Status> {
        let request = self.request(WatchRequest {});
        Ok(within(self.orders.clone().watch(request)).await?.into_inner())
    }
}

async fn is_seen(case: &Case) {
    for content_type in [PROTO, TEXT] {
        let get = Client::of(case, content_type);
        let watch = Client::of(case, content_type);
        for (seen, client) in
            [(get.get().await.map(drop), &get), (watch.watch().await.map(drop), &watch)]
        {
            assert_eq!(seen.map_err(|status| Seen::of(&status)), Err(case.expected.clone()));
            let (head, is_empty) = &*client.head.borrow();
            assert!(head.contains_key("grpc-status") && *is_empty, "trailers only: {head:?}");
            let answered = head[CONTENT_TYPE].to_str().unwrap();
            assert!(answered == content_type || answered == format!("{content_type}+proto"));
        }
    }
}

/// A test for each case of that name, with the layer outside and inside, and both encodings.
macro_rules! grpc_web_sees {
    ($($case:ident)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                for host in HOSTS {
                    is_seen(&cases::$case(host).await).await;
                }
            }
        )*
    };
}

grpc_web_sees! {
    missing two_keys malformed unknown revoked expired insufficient_scope other_network
    rate_limited concurrent too_many_failures outage overloaded
}

#[tokio::test]
async fn a_valid_key_is_admitted() {
    for host in HOSTS {
        for content_type in [PROTO, TEXT] {
            let (case, _) = valid(host).await;
            let client = Client::of(&case, content_type);
            assert_eq!(client.get().await.unwrap().cents, 7, "{host:?}, {content_type}");
        }
    }
}

#[tokio::test]
async fn streams_end_with_their_key_as_unauthenticated() {
    for host in HOSTS {
        let (case, key) = valid(host).await;
        let mut stream = Client::of(&case, PROTO).watch().await.unwrap();
        within(stream.message()).await.unwrap().expect("the first order");

        case.service.revoke(&key).await;

        let status = within(stream.message()).await.unwrap_err();
        assert_eq!(Seen::of(&status), Seen::key_ended(), "{host:?}");
    }
}
