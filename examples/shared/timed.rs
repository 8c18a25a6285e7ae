// A server that closes the connections of clients that send nothing or send too slowly, and that
// loses no response when it stops.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
    serve::Listener,
};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinSet,
    time::{Instant, Sleep, sleep_until, timeout},
};
use tower::{ServiceExt, service_fn};

/// The time limit for the head of a request. Behind a proxy that reuses connections, it must be
/// longer than the proxy's idle time-out.
pub(crate) const HEAD: Duration = Duration::from_secs(75);

/// The time a client has to close its side of a connection after the last response.
const LINGER: Duration = Duration::from_secs(5);

/// Serves `app` until `end`, then answers running requests.
pub(crate) async fn serve(mut listener: TcpListener, app: Router, end: impl Future<Output = ()>) {
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut end = pin!(end);
    loop {
        tokio::select! {
            (stream, peer) = Listener::accept(&mut listener) => {
                connections.spawn(serve_one(stream, peer, app.clone(), stopped.clone()));
            }
            Some(_) = connections.join_next() => {}
            () = &mut end => break,
        }
    }
    drop((listener, stop));
    while connections.join_next().await.is_some() {}
}

async fn serve_one(
    stream: TcpStream,
    peer: SocketAddr,
    app: Router,
    mut stopped: watch::Receiver<()>,
) {
    let mut server = auto::Builder::new(TokioExecutor::new());
    // HTTP/1: without a timer, hyper waits for the head of a request forever.
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    // HTTP/2: close the connection if the client does not answer a ping.
    server.http2().timer(TokioTimer::new()).keep_alive_interval(HEAD).keep_alive_timeout(HEAD);

    // hyper detects the HTTP version from the first bytes, without a time limit for them.
    let first = Arc::new(Notify::new());
    let silence = {
        let first = Arc::clone(&first);
        async move {
            if timeout(HEAD, first.notified()).await.is_ok() {
                pending::<()>().await;
            }
        }
    };
    let service = service_fn(move |request: Request<Incoming>| {
        first.notify_one();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        app.clone().oneshot(request)
    });

    let connection = TokioIo::new(Lingering { stream, end: None });
    let service = TowerToHyperService::new(service);
    let mut connection = pin!(server.serve_connection_with_upgrades(connection, service));
    let (mut silence, mut is_stopped) = (pin!(silence), false);
    loop {
        tokio::select! {
            _ = connection.as_mut() => break,
            () = &mut silence => break,
            _ = stopped.changed(), if !is_stopped => {
                is_stopped = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Closing a socket with unread bytes resets it, and the client loses what it has not read yet.
/// HTTP/2 clients send frames at any time, so this stream reads on until the client has closed it,
/// too.
struct Lingering {
    stream: TcpStream,
    end: Option<Pin<Box<Sleep>>>,
}

impl AsyncWrite for Lingering {
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, end } = &mut *self;
        if end.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
        }
        let end = end.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + LINGER)));
        let mut ignored = [0; 1024];
        while end.as_mut().poll(cx).is_pending() {
            let mut ignored = ReadBuf::new(&mut ignored);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut ignored))?;
            if ignored.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}
