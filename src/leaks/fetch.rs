//! Fetches a small document over HTTPS: one request on a connection of its own.

use std::{fmt, io, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Request, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, CONNECTION, HOST, USER_AGENT},
    uri::Scheme,
};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use super::error::{PublicKeysError, PublicKeysErrorKind};
use crate::tls::Client as Tls;

/// For the whole request, so that a delivery that waits for it is answered in time.
const DEADLINE: Duration = Duration::from_secs(8);
/// Larger than any set of public keys.
const MAX_BODY: usize = 256 * 1024;

/// Where a document is.
#[derive(Clone, Default)]
pub(super) struct Source {
    host: String,
    port: u16,
    authority: Option<HeaderValue>,
    path: Uri,
    /// `None`: it trusts the authorities that browsers trust.
    pub(super) tls: Option<Tls>,
    /// Marked sensitive, so that it is not shown.
    pub(super) authorization: Option<HeaderValue>,
}

impl Source {
    /// The document at `url`; `None` if that is not an `https` URL.
    pub(super) fn at(url: &str) -> Option<Self> {
        let url: Uri = url.parse().ok()?;
        let authority = url.authority().filter(|it| !it.as_str().contains('@'))?;
        if url.scheme() != Some(&Scheme::HTTPS) {
            return None;
        }
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Some(Self {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(443),
            authority: Some(HeaderValue::from_str(authority.as_str()).ok()?),
            path: url.path_and_query().map_or("/", |path| path.as_str()).parse().ok()?,
            tls: None,
            authorization: None,
        })
    }

    /// The document. Redirects are not followed.
    pub(super) async fn fetch(&self) -> Result<Bytes, PublicKeysError> {
        let failed = || PublicKeysError::new(PublicKeysErrorKind::Unavailable);
        match timeout(DEADLINE, self.fetch_now()).await {
            Ok(Ok((StatusCode::OK, body))) => Ok(body),
            Ok(Ok((status, _))) => Err(failed().because(format!("the answer is {status}"))),
            Ok(Err(error)) => Err(failed().because(error)),
            Err(late) => Err(failed().because(late)),
        }
    }

    async fn fetch_now(&self) -> io::Result<(StatusCode, Bytes)> {
        let stream = TcpStream::connect((&*self.host, self.port)).await?;
        let tls = self.tls.clone().unwrap_or_else(|| Tls::new(&[]));
        let stream = tls.connect(&self.host, stream).await?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(io::Error::other)?;
        // Ends with this function.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = self.path.clone();
        let headers = request.headers_mut();
        if let Some(authority) = &self.authority {
            headers.insert(HOST, authority.clone());
        }
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static("tower-api-key"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        if let Some(authorization) = &self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        Ok((status, body.map_err(io::Error::other)?.to_bytes()))
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("host", &self.host).finish_non_exhaustive()
    }
}
