//! WebSockets of axum that end when the key does.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use tokio::time::timeout;

use crate::record::Consumer;

/// The client's time to read why. One that has not by then is not going to, or reads nothing.
const FAREWELL: Duration = Duration::from_secs(1);

/// Runs `session` until it is over, or the key of `consumer` ends: revoked, switched off, deleted
/// or expired, as soon as [`Consumer::revoked`] knows. Returns what the session does, `None` if the
/// key ended first.
///
/// ```
/// use axum::{Router, extract::ws::WebSocketUpgrade, response::Response, routing::any};
/// use tower_api_key::{ApiKeyLayer, Consumer, layer::websocket::until_revoked};
/// # use tower_api_key::{Authenticator, key::KeyFormat, store::MemoryKeyStore};
///
/// async fn echo(upgrade: WebSocketUpgrade, consumer: Consumer) -> Response {
///     upgrade.on_upgrade(async move |socket| {
///         until_revoked(socket, &consumer, async |socket| {
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
/// When the key ends, the session is dropped wherever it waits: for a message, for a client that
/// does not read, or for something else altogether. Tasks it has spawned are its own to end. The
/// client is sent a close frame with code 1008, a violation of policy
/// ([RFC 6455 §7.4.1](https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1)), which does not say
/// whether the key is invalid or can no longer be checked: the answer to its next request does.
/// The connection is gone when the client has closed its side, or after a second.
pub async fn until_revoked<T>(
    mut socket: WebSocket,
    consumer: &Consumer,
    session: impl AsyncFnOnce(&mut WebSocket) -> T,
) -> Option<T> {
    tokio::select! {
        // In this order, as a session that is always busy would never let the key have its turn.
        biased;
        () = consumer.revoked() => {}
        result = session(&mut socket) => return Some(result),
    }
    // Late or not, the connection ends here.
    let _ = timeout(FAREWELL, close(&mut socket)).await;
    None
}

async fn close(socket: &mut WebSocket) {
    let reason = Utf8Bytes::from_static("authorization ended");
    let frame = CloseFrame { code: close_code::POLICY, reason };
    // If the session was closing already, the client has its frame.
    let _ = socket.send(Message::Close(Some(frame))).await;
    // A connection closed with something unread is reset, and the client might lose the frame.
    while let Some(Ok(_)) = socket.recv().await {}
}
