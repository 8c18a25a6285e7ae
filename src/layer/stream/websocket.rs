//! axum WebSockets that end when the key does.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use tokio::time::timeout;

use crate::record::Consumer;

/// How long the client has to read the close frame and close its side.
const FAREWELL: Duration = Duration::from_secs(1);

/// Runs `session` until it completes or the key of `consumer` ends: revoked, switched off, deleted
/// or expired, as soon as [`Consumer::key_ended`] knows. Returns the session's result, or `None` if
/// the key ended first.
///
/// ```
/// use axum::{Router, extract::ws::WebSocketUpgrade, response::Response, routing::any};
/// use tower_api_key::{ApiKeyLayer, Consumer, layer::websocket::until_key_ends};
/// # use tower_api_key::{Authenticator, key::KeyFormat, store::MemoryKeyStore};
///
/// async fn echo(upgrade: WebSocketUpgrade, consumer: Consumer) -> Response {
///     upgrade.on_upgrade(async move |socket| {
///         until_key_ends(socket, &consumer, async |socket| {
///             while let Some(Ok(message)) = socket.recv().await {
///                 if socket.send(message).await.is_err() {
///                     break;
///                 }
///             }
///         })
///         .await;
///     })
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (auth, worker) =
/// #     Authenticator::builder(MemoryKeyStore::new(), KeyFormat::new("sk_live_")?).build();
/// # drop(worker);
/// let app: Router = Router::new().route("/echo", any(echo)).layer(ApiKeyLayer::new(auth));
/// # Ok(())
/// # }
/// ```
///
/// When the key ends, the session is dropped wherever it awaits: a message, a client that does not
/// read, or anything else. Tasks that it has spawned are not aborted. The client gets a close frame
/// with code 1008, policy violation
/// ([RFC 6455 §7.4.1](https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1)). It does not say
/// whether the key is invalid or can no longer be checked: the response to the next request does.
/// The connection closes once the client has closed its side, or after a second.
pub async fn until_key_ends<T>(
    mut socket: WebSocket,
    consumer: &Consumer,
    session: impl AsyncFnOnce(&mut WebSocket) -> T,
) -> Option<T> {
    tokio::select! {
        // In this order: a session that is always ready would starve the key's end.
        biased;
        () = consumer.key_ended() => {}
        result = session(&mut socket) => return Some(result),
    }
    // The connection ends here even if the client has not closed its side.
    let _ = timeout(FAREWELL, close(&mut socket)).await;
    None
}

async fn close(socket: &mut WebSocket) {
    let reason = Utf8Bytes::from_static("authorization ended");
    let frame = CloseFrame { code: close_code::POLICY, reason };
    // Fails if the session has already sent a close frame, which is enough.
    let _ = socket.send(Message::Close(Some(frame))).await;
    // Closing a socket with unread data resets the connection, and the client may lose the frame.
    while let Some(Ok(_)) = socket.recv().await {}
}
