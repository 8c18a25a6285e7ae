//! Posts a message: one request on a connection of its own.
//!
//! 1. The name is resolved here, and only permitted addresses are connected to, each time. Nothing
//!    else resolves names: there is no proxy, no connection is kept, and redirects are not followed.
//! 2. Everything together has 10 seconds.
//! 3. Of the response only the status counts. Its body is read up to a limit, so that the receiver
//!    sees an orderly end.

use std::{fmt, io, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::timeout,
};

use super::target::{REFUSED, Target, Targets};
use crate::tls::{self, Client as Tls};

const DEADLINE: Duration = Duration::from_secs(10);
/// Per address, so that a second one has its chance.
const CONNECT_DEADLINE: Duration = Duration::from_secs(4);
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 3;
const MAX_BODY: usize = 64 * 1024;
/// How long the body of a response is waited for.
const BODY_DEADLINE: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(super) struct Client {
    tls: Tls,
}

/// Why there is no response. Names neither addresses nor what a server said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoResponse {
    Refused,
    Unresolved,
    Unreachable,
    Insecure,
    Broken,
    Late,
}

impl fmt::Display for NoResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => REFUSED,
            Self::Unresolved => "the name could not be resolved",
            Self::Unreachable => "the connection failed",
            Self::Insecure => "the TLS handshake failed: is the certificate valid for the name?",
            Self::Broken => "the connection ended, or the response was not HTTP",
            Self::Late => "no response within 10 s",
        })
    }
}

impl Client {
    pub(super) fn new(tls: Tls) -> Self {
        Self { tls }
    }

    /// Posts `body`, and returns the status of the response.
    pub(super) async fn post(
        &self,
        targets: &Targets,
        target: &Target,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<StatusCode, NoResponse> {
        let attempt = async {
            let stream = connect(targets, target).await?;
            if target.is_secure {
                let handshake = self.tls.connect(&target.host, stream).await;
                let stream = handshake.map_err(|_| NoResponse::Insecure)?;
                exchange(stream, target, headers, body).await
            } else {
                exchange(stream, target, headers, body).await
            }
        };
        timeout(DEADLINE, attempt).await.unwrap_or(Err(NoResponse::Late))
    }
}

async fn connect(targets: &Targets, target: &Target) -> Result<TcpStream, NoResponse> {
    let resolved = lookup_host((&*target.host, target.port)).await;
    let resolved = resolved.map_err(|_| NoResponse::Unresolved)?;
    let permitted = targets.permitted(target, resolved);
    if permitted.is_empty() {
        return Err(NoResponse::Refused);
    }
    for address in permitted.into_iter().take(MAX_ADDRESSES) {
        if let Ok(Ok(stream)) = timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await {
            // A request is one segment or two, and is waited for.
            let _: io::Result<()> = stream.set_nodelay(true);
            return Ok(stream);
        }
    }
    Err(NoResponse::Unreachable)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    target: &Target,
    headers: HeaderMap,
    body: Bytes,
) -> Result<StatusCode, NoResponse> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = target.path.parse().map_err(|_| NoResponse::Broken)?;
    *request.headers_mut() = headers;
    request.headers_mut().insert(header::HOST, target.header.clone());
    request.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));

    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_| NoResponse::Broken)?;
    // Ends with this function.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = sender.send_request(request).await.map_err(|_| NoResponse::Broken)?;
    let status = response.status();
    let _ = timeout(BODY_DEADLINE, drain(response.into_body())).await;
    Ok(status)
}

/// Reads a body up to a limit. Its end, its errors and its contents do not matter.
async fn drain(body: Incoming) {
    let mut body = Limited::new(body, MAX_BODY);
    while let Some(Ok(_)) = body.frame().await {}
}

/// The default: the roots that browsers trust.
impl Default for Client {
    fn default() -> Self {
        Self::new(tls::Client::new(&[]))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}
