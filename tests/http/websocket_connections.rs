//! WebSockets over real connections whose key is in `Sec-WebSocket-Protocol`: HTTP/1.1 and HTTP/2.

use std::net::SocketAddr;

use axum::{
    Router,
    extract::{WebSocketUpgrade, ws::WebSocket},
    response::Response,
    routing::any,
};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{
    HeaderMap, HeaderValue, Method,
    header::{SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION},
};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest as _, protocol::Role},
};
use tower_api_key::{ApiKeyLayer, Consumer, layer::websocket::until_key_ends};

use crate::{
    app::{Keys, server, unknown_key},
    wait::within,
};

/// Echoes until the key ends, with one of two protocols.
async fn echo(upgrade: WebSocketUpgrade, consumer: Consumer) -> Response {
    upgrade.protocols(["chat.v2", "chat.v1"]).on_upgrade(async move |socket| {
        let session = async |socket: &mut WebSocket| {
            while let Some(Ok(message)) = socket.recv().await {
                let _ = socket.send(message).await;
            }
        };
        until_key_ends(socket, &consumer, session).await;
    })
}

async fn serve(keys: &Keys) -> SocketAddr {
    let layer = ApiKeyLayer::new(keys.auth()).also_websocket_protocol();
    server::serve(Router::new().route("/", any(echo)).layer(layer)).await
}

/// A message comes back.
async fn is_open<S>(socket: &mut WebSocketStream<S>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    within(socket.send(Message::text("hello"))).await.unwrap();
    assert_eq!(within(socket.next()).await.unwrap().unwrap(), Message::text("hello"));
}

#[track_caller]
fn selects(headers: &HeaderMap, protocol: &str, key: &str) {
    let selected: Vec<_> = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().collect();
    assert_eq!(selected, [protocol]);
    assert!(!format!("{headers:?}").contains(key), "{headers:?}");
}

#[tokio::test]
async fn a_websocket_over_http1_selects_the_other_protocol() {
    let keys = Keys::new();
    let (address, key) = (serve(&keys).await, keys.key().await);
    let open = async |offered: String| {
        let mut request = format!("ws://{address}/").into_client_request().unwrap();
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, offered.parse().unwrap());
        let connection = TcpStream::connect(address).await.unwrap();
        within(client_async(request, connection)).await
    };
    for (offered, selected) in [
        (format!("bearer, {key}, chat.v1"), "chat.v1"),
        (format!("chat.v1, bearer, {key}, chat.v2"), "chat.v2"),
    ] {
        let (mut socket, response) = open(offered).await.unwrap();
        selects(response.headers(), selected, &key);
        is_open(&mut socket).await;
    }
    open(format!("bearer, {}, chat.v1", unknown_key())).await.unwrap_err();
    open(format!("bearer, {key}")).await.unwrap_err();
}

/// RFC 8441.
#[tokio::test]
async fn a_websocket_over_http2_selects_the_other_protocol() {
    let keys = Keys::new();
    let (address, key) = (serve(&keys).await, keys.key().await);
    let connection = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), connection).await.unwrap();
    tokio::spawn(connection);
    // The server's settings, which allow it, have arrived with a response.
    let get = http::Request::get("http://a/").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(within(client.send_request(get)).await.unwrap().status(), 401);
    let mut open = async |offered: String| {
        let mut request = http::Request::new(Empty::new());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = "http://a/".parse().unwrap();
        let websocket = hyper::ext::Protocol::from_static("websocket");
        request.extensions_mut().insert(websocket);
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, offered.parse().unwrap());
        let version = HeaderValue::from_static("13");
        request.headers_mut().insert(SEC_WEBSOCKET_VERSION, version);
        within(client.send_request(request)).await.unwrap()
    };
    let mut response = open(format!("bearer, {key}, chat.v1")).await;
    assert_eq!(response.status(), 200);
    selects(response.headers(), "chat.v1", &key);
    let upgraded = within(hyper::upgrade::on(&mut response)).await.unwrap();
    let stream = TokioIo::new(upgraded);
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    is_open(&mut socket).await;

    assert_eq!(open(format!("bearer, {}, chat.v1", unknown_key())).await.status(), 401);
    assert_eq!(open(format!("bearer, {key}")).await.status(), 400);
    is_open(&mut socket).await;
}
