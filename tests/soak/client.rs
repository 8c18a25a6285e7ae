//! A client: sends requests with keys, one after another, over HTTP/1.1 or HTTP/2.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::{
    net::TcpStream,
    sync::{mpsc::UnboundedSender, watch},
    time::{sleep, timeout},
};

use crate::{
    clock::Clock,
    fleet::Fleet,
    oracle::{Answer, Oracle, Response, Route},
    random::Random,
};

/// Longer than any fault, so that late responses still arrive.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Client {
    fleet: Arc<Fleet>,
    oracle: Oracle,
    clock: Clock,
    random: Random,
    is_http2: bool,
}

impl Client {
    pub(crate) fn new(
        fleet: &Arc<Fleet>,
        oracle: &Oracle,
        clock: Clock,
        random: Random,
        number: usize,
    ) -> Self {
        let (fleet, oracle) = (Arc::clone(fleet), oracle.clone());
        Self { fleet, oracle, clock, random, is_http2: number.is_multiple_of(2) }
    }

    pub(crate) async fn run(
        mut self,
        answers: UnboundedSender<Answer>,
        stopped: watch::Receiver<bool>,
    ) {
        let mut connections: Vec<Option<Connection>> = Vec::new();
        connections.resize_with(self.fleet.len(), || None);
        while !*stopped.borrow() {
            let node = usize::try_from(self.random.below(self.fleet.len() as u64)).expect("a node");
            let (key, text) = self.oracle.pick(&mut self.random);
            let route = if self.random.one_in(4) { Route::Write } else { Route::Read };
            let path = if route == Route::Write { "/write" } else { "/" };
            let sent = self.clock.now();
            let response = self.ask(&mut connections[node], node, path, &text).await;
            let answered = self.clock.now();
            let answer = Answer { node, key, route, sent, answered, response };
            if answers.send(answer).is_err() {
                return;
            }
            sleep(Duration::from_millis(self.random.between(2, 10))).await;
        }
    }

    async fn ask(
        &self,
        connection: &mut Option<Connection>,
        node: usize,
        path: &str,
        key: &str,
    ) -> Option<Response> {
        let mut open = match connection.take() {
            Some(open) if open.address == self.fleet.address(node) => open,
            _ => Connection::open(self.fleet.address(node)?, self.is_http2).await?,
        };
        let request = Request::get(format!("http://{}{path}", open.host()))
            .header(header::HOST, open.host())
            .header(header::AUTHORIZATION, format!("Bearer {key}"));
        let response = open.send(request.body(Full::default()).expect("a request")).await?;
        *connection = Some(open);
        Some(response)
    }
}

/// A connection to a node.
pub(crate) struct Connection {
    address: Option<std::net::SocketAddr>,
    sender: Sender,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    pub(crate) async fn open(address: std::net::SocketAddr, is_http2: bool) -> Option<Self> {
        let stream = timeout(PATIENCE, TcpStream::connect(address)).await.ok()?.ok()?;
        stream.set_nodelay(true).ok()?;
        let io = TokioIo::new(stream);
        let sender = if is_http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.ok()?;
            tokio::spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.ok()?;
            tokio::spawn(connection);
            Sender::Http1(sender)
        };
        Some(Self { address: Some(address), sender })
    }

    pub(crate) fn host(&self) -> String {
        self.address.map(|address| address.to_string()).unwrap_or_default()
    }

    /// Sends an operator's request to the admin router, with the operator's key.
    pub(crate) async fn manage(
        &mut self,
        operator: &str,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Option<Response> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}/admin/api-keys/{path}", self.host()))
            .header(header::HOST, self.host())
            .header(header::AUTHORIZATION, format!("Bearer {operator}"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .expect("a request");
        self.send(request).await
    }

    async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Option<Response> {
        if matches!(self.sender, Sender::Http1(_)) {
            let path = request.uri().path().to_owned();
            *request.uri_mut() = path.parse().expect("a path");
        }
        let exchange = async {
            let response = match &mut self.sender {
                Sender::Http1(sender) => {
                    sender.ready().await.ok()?;
                    sender.send_request(request).await.ok()?
                }
                Sender::Http2(sender) => {
                    sender.ready().await.ok()?;
                    sender.send_request(request).await.ok()?
                }
            };
            let (parts, body) = response.into_parts();
            let body = body.collect().await.ok()?.to_bytes();
            Some(Response {
                status: parts.status.as_u16(),
                body: serde_json::from_slice(&body).ok(),
                retry_after: number(&parts.headers, "retry-after", None),
                remaining: number(&parts.headers, "ratelimit", Some(";r=")),
            })
        };
        timeout(PATIENCE, exchange).await.ok()?
    }
}

/// The number in a header, or the one after `after` in it.
fn number(headers: &HeaderMap, name: &str, after: Option<&str>) -> Option<u64> {
    let value = headers.get(name)?.to_str().ok()?;
    let value = match after {
        Some(after) => value.split_once(after)?.1,
        None => value,
    };
    let end = value.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(value.len());
    value[..end].parse().ok()
}

/// A request without a body, for the node's own routes.
pub(crate) async fn post(address: std::net::SocketAddr, path: &str) -> Option<u16> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    let request = Request::post(path).header(header::HOST, address.to_string());
    let request = request.body(Empty::<Bytes>::new()).expect("a request");
    Some(sender.send_request(request).await.ok()?.status().as_u16())
}
