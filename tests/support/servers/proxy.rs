//! A TCP proxy that misbehaves on demand.

use std::{
    future::pending,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex as StdMutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, sink},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Mutex, watch},
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::Port;

/// What the proxy does to existing and new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Forwards everything.
    Pass,
    /// Refuses new connections, like a stopped server, and drops existing ones.
    Refuse,
    /// Accepts connections and swallows every byte in both directions, including the end. An
    /// affected connection never recovers.
    BlackHole,
    /// Like a cut cable: existing connections are in a black hole, and attempts to connect are not
    /// even refused. Clients get no response at all.
    Unplugged,
    /// Delays the server's bytes by this much.
    Delay(Duration),
    /// Delays each part of the server's bytes by another share of this, in eighths.
    Jitter(Duration),
    /// Swallows the server's bytes, including the end; the client's bytes arrive. An affected
    /// connection never recovers.
    Mute,
    /// Ends a connection after this many bytes from the server.
    CutAfter(u64),
    /// Flips the lowest bit of the server's byte at this offset of a connection, which turns a
    /// letter into another letter, and a number into another number.
    Corrupt(u64),
    /// Closes connections normally.
    Fin,
    /// Resets connections.
    Rst,
}

impl Fault {
    fn ends_forwarding(&self) -> bool {
        self.swallows() || self.ends_connection()
    }

    fn swallows(&self) -> bool {
        matches!(self, Self::BlackHole | Self::Unplugged)
    }

    fn ends_connection(&self) -> bool {
        matches!(self, Self::Refuse | Self::Fin | Self::Rst)
    }
}

/// A proxy on a port of its own in front of `upstream`. Dropping it drops its connections.
pub struct FaultProxy {
    port: Port,
    shared: Shared,
    fault: watch::Sender<Fault>,
    upstream: watch::Sender<SocketAddr>,
    listening: Mutex<Listening>,
}

/// The state of the port.
enum Listening {
    /// The port is closed.
    Closed,
    Accepting(JoinHandle<()>),
    /// A listener whose queue is full, so that the system drops new connections.
    Full {
        _listener: TcpListener,
        _queue: Vec<TcpStream>,
    },
}

#[derive(Clone)]
struct Shared {
    upstream: watch::Receiver<SocketAddr>,
    fault: watch::Receiver<Fault>,
    counts: Arc<Counts>,
    connections: Arc<StdMutex<JoinSet<()>>>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    open: AtomicU64,
    bytes_from_server: AtomicU64,
    bytes_swallowed: AtomicU64,
}

impl FaultProxy {
    pub async fn start(upstream: SocketAddr) -> Self {
        Self::start_on(Port::reserve(), upstream).await
    }

    pub async fn start_on(port: Port, upstream: SocketAddr) -> Self {
        let (fault, receiver) = watch::channel(Fault::Pass);
        let (upstream, target) = watch::channel(upstream);
        let shared = Shared {
            upstream: target,
            fault: receiver,
            counts: Arc::default(),
            connections: Arc::default(),
        };
        let listening = Mutex::new(Listening::Closed);
        let proxy = Self { port, shared, fault, upstream, listening };
        proxy.set(Fault::Pass).await;
        proxy
    }

    pub fn addr(&self) -> SocketAddr {
        self.port.addr
    }

    /// The same database, reached through this proxy.
    pub fn url(&self, database_url: &str) -> String {
        let (scheme, rest) = database_url.split_once("://").expect("a URL");
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let user = authority.rfind('@').map_or("", |at| &authority[..=at]);
        format!("{scheme}://{user}{}{path}", self.addr())
    }

    /// When it returns, bytes are forwarded only as `fault` says.
    pub async fn set(&self, fault: Fault) {
        let mut listening = self.listening.lock().await;
        self.fault.send_replace(fault);
        match (fault, &mut *listening) {
            (Fault::Refuse, _) => {
                listening.close().await;
                self.shared.connections().abort_all();
            }
            (Fault::Unplugged, Listening::Full { .. }) => {}
            (Fault::Unplugged, _) => {
                listening.close().await;
                *listening = full(self.addr()).await.expect("a listener with a full queue");
            }
            (_, Listening::Accepting(_)) => {}
            _ => {
                listening.close().await;
                let listener = TcpListener::bind(self.addr()).await.expect("the proxy's own port");
                *listening =
                    Listening::Accepting(tokio::spawn(accept(listener, self.shared.clone())));
            }
        }
    }

    /// Sends new connections to another server, like an address that moves. Existing ones stay.
    pub fn redirect(&self, upstream: SocketAddr) {
        self.upstream.send_replace(upstream);
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> u64 {
        self.shared.counts.connections.load(Ordering::SeqCst)
    }

    /// How many of them have not ended yet.
    pub fn open_connections(&self) -> u64 {
        self.shared.counts.open.load(Ordering::SeqCst)
    }

    /// How many bytes of the server were forwarded, over all connections.
    pub fn bytes_from_server(&self) -> u64 {
        self.shared.counts.bytes_from_server.load(Ordering::SeqCst)
    }

    /// How many bytes went into a black hole, in both directions.
    pub fn bytes_swallowed(&self) -> u64 {
        self.shared.counts.bytes_swallowed.load(Ordering::SeqCst)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Listening::Accepting(task) = self.listening.get_mut() {
            task.abort();
        }
        self.shared.connections().abort_all();
    }
}

impl Listening {
    async fn close(&mut self) {
        if let Self::Accepting(task) = std::mem::replace(self, Self::Closed) {
            task.abort();
            // Only the end of the task closes the listener.
            let _ = task.await;
        }
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// On Linux, a listener whose queue is full does not respond to attempts to connect.
async fn full(addr: SocketAddr) -> io::Result<Listening> {
    const NO_ANSWER: Duration = Duration::from_millis(200);
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    let listener = socket.listen(1)?;
    let mut queue = Vec::new();
    while let Ok(connected) = timeout(NO_ANSWER, TcpStream::connect(addr)).await {
        queue.push(connected?);
    }
    Ok(Listening::Full { _listener: listener, _queue: queue })
}

async fn accept(listener: TcpListener, shared: Shared) {
    while let Ok((client, _)) = listener.accept().await {
        shared.counts.connections.fetch_add(1, Ordering::SeqCst);
        let (open, of_connection) = (Open::new(&shared.counts), shared.clone());
        let mut connections = shared.connections();
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            serve(client, of_connection).await;
            drop(open);
        });
    }
}

/// Counts a connection as open until it is dropped.
struct Open(Arc<Counts>);

impl Open {
    fn new(counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(mut client: TcpStream, shared: Shared) {
    let mut fault = shared.fault.clone();
    let upstream = *shared.upstream.borrow();
    let Ok(mut server) = TcpStream::connect(upstream).await else {
        // After accepting, a reset is the closest thing to a refusal.
        let _ = client.set_zero_linger();
        return;
    };

    // Faults come first, so that a byte that arrives after `set` has returned is subject to it.
    let mut end = tokio::select! {
        biased;
        fault = wait_for(&mut fault, Fault::ends_forwarding) => fault,
        _ = forward(&mut client, &mut server, &shared) => Fault::Fin,
    };
    if end.swallows() {
        end = tokio::select! {
            fault = wait_for(&mut fault, Fault::ends_connection) => fault,
            () = swallow(&mut client, &mut server, &shared.counts) => Fault::Fin,
        };
    }
    if end == Fault::Rst {
        let _ = client.set_zero_linger();
        return;
    }
    drop(server);
    // Closing a socket with unread bytes would reset it, so read the client's remaining bytes
    // first.
    let _ = client.shutdown().await;
    let _ = copy(&mut client, &mut sink()).await;
}

async fn wait_for(fault: &mut watch::Receiver<Fault>, is: fn(&Fault) -> bool) -> Fault {
    // The sender is dropped with the proxy.
    fault.wait_for(is).await.map_or(Fault::Refuse, |fault| *fault)
}

async fn forward(
    client: &mut TcpStream,
    server: &mut TcpStream,
    shared: &Shared,
) -> io::Result<()> {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    tokio::try_join!(
        questions(from_client, to_server),
        answers(from_server, to_client, &shared.fault, &shared.counts),
    )?;
    Ok(())
}

async fn questions(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    copy(&mut from, &mut to).await?;
    to.shutdown().await
}

async fn answers(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    fault: &watch::Receiver<Fault>,
    counts: &Counts,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    let mut said = 0;
    let mut muted = false;
    // Three steps of eight apart, so that long and short delays take turns.
    let mut eighths = (1_u32..=8).map(|part| part * 3 % 8 + 1).cycle();
    loop {
        let mut chunk = from.read(&mut buffer).await?;
        let fault = *fault.borrow();
        muted |= fault == Fault::Mute;
        if muted {
            // The end of the stream is swallowed, too.
            match chunk {
                0 => return pending().await,
                _ => continue,
            }
        }
        if chunk == 0 {
            return to.shutdown().await;
        }
        let mut cut = false;
        match fault {
            Fault::Delay(by) => latency(by).await,
            Fault::Jitter(most) => latency(most * eighths.next().unwrap_or(8) / 8).await,
            Fault::CutAfter(limit) => {
                let left = usize::try_from(limit.saturating_sub(said)).unwrap_or(usize::MAX);
                cut = left <= chunk;
                chunk = chunk.min(left);
            }
            Fault::Corrupt(at) => {
                let at = at.checked_sub(said).and_then(|at| usize::try_from(at).ok());
                if let Some(byte) = at.and_then(|at| buffer[..chunk].get_mut(at)) {
                    *byte ^= 1;
                }
            }
            _ => {}
        }
        // Counted before sending: the count includes everything the client has seen.
        counts.bytes_from_server.fetch_add(chunk as u64, Ordering::SeqCst);
        to.write_all(&buffer[..chunk]).await?;
        said += chunk as u64;
        if cut {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "latency is the fault")]
async fn latency(by: Duration) {
    tokio::time::sleep(by).await;
}

async fn swallow(client: &mut TcpStream, server: &mut TcpStream, counts: &Counts) {
    tokio::join!(swallow_one(client, counts), swallow_one(server, counts));
}

async fn swallow_one(from: &mut TcpStream, counts: &Counts) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(chunk @ 1..) = from.read(&mut buffer).await {
        counts.bytes_swallowed.fetch_add(chunk as u64, Ordering::SeqCst);
    }
}
