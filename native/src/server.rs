//! The thread of a listener: one tokio runtime, its socket, its connections.
use crate::conn::{Bell, Conn, Peer};
use crate::inbox::{Event, Inbox};
use crate::stream::{Allowance, Handle};
use bytes::Bytes;
use rustls::{HandshakeKind, ServerConfig};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

pub const BACKLOG: i32 = 4096;
/// Of a stream and of a connection: what a peer may send before we read it. A fleet that comes back
/// at once sends all of it, before any of them is let in.
const WINDOW: u32 = 64 << 10;
/// Of one stream: what HTTP/2 keeps while the socket takes no more.
const SEND_BUFFER: usize = 128 << 10;
/// How long TLS and the preface of HTTP/2 may each take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Unfinished messages of all streams; a peer needs no token to begin one.
const HELD: usize = 256 << 20;
/// Connections look at the clock in so many turns, not all at once.
const SLICES: usize = 16;
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(50);

pub struct Limits {
    pub max_connections: usize,
    pub max_streams: usize,
    pub max_streams_per_connection: usize,
    pub max_message: usize,
    pub max_metadata: u32,
    pub keepalive: Duration,
    pub keepalive_timeout: Duration,
}

pub enum Command {
    Send(Vec<(Bytes, Vec<u64>)>),
    Close {
        stream: u64,
        status: u32,
        message: String,
        leave: bool,
    },
    Pause {
        stream: u64,
        paused: bool,
    },
    /// No new connections, and those there are end with their streams.
    Leave,
}

#[derive(Default)]
pub struct Counters {
    pub connections: AtomicUsize,
    pub connections_accepted: AtomicU64,
    pub connections_refused: AtomicU64,
    pub handshakes_full: AtomicU64,
    pub handshakes_resumed: AtomicU64,
    pub handshakes_failed: AtomicU64,
}

pub struct Server {
    pub limits: Limits,
    pub allowance: Allowance,
    pub inbox: Arc<Inbox>,
    pub table: Mutex<HashMap<u64, Arc<Handle>>>,
    pub tls: Mutex<Option<Arc<ServerConfig>>>,
    pub counters: Counters,
    pub held: Arc<AtomicUsize>,
    pub stop: Notify,
    bells: Mutex<Vec<Weak<Bell>>>,
    commands: Mutex<Vec<Command>>,
    commanded: Notify,
    leaving: AtomicBool,
    last_id: AtomicU64,
}

impl Server {
    pub fn new(limits: Limits, tls: Option<Arc<ServerConfig>>, inbox: Arc<Inbox>) -> Server {
        Server {
            allowance: Allowance { message: limits.max_message, held: HELD },
            limits,
            inbox,
            table: Mutex::default(),
            tls: Mutex::new(tls),
            counters: Counters::default(),
            held: Arc::default(),
            stop: Notify::new(),
            bells: Mutex::default(),
            commands: Mutex::default(),
            commanded: Notify::new(),
            leaving: AtomicBool::new(false),
            last_id: AtomicU64::new(0),
        }
    }

    pub fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Relaxed) + 1
    }

    pub fn streams(&self) -> usize {
        self.table.lock().unwrap().len()
    }

    pub fn forget(&self, stream: u64, reason: Box<str>) {
        self.table.lock().unwrap().remove(&stream);
        self.inbox.push(Event::Closed(stream, reason));
    }

    /// From any thread; carried out on that of the connections, in order.
    pub fn command(&self, command: Command) {
        self.commands.lock().unwrap().push(command);
        self.commanded.notify_one();
    }

    /// Serves until `stop`.
    pub fn run(self: Arc<Self>, socket: std::net::TcpListener) -> std::io::Result<()> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        runtime.block_on(async {
            let listener = TcpListener::from_std(socket)?;
            let accepting = tokio::spawn(self.clone().accept(listener));
            tokio::spawn(self.clone().obey(accepting.abort_handle()));
            tokio::spawn(self.clone().hand_over());
            tokio::spawn(self.clone().read_on());
            tokio::spawn(self.clone().tick());
            self.stop.notified().await;
            Ok(())
        })
        // Dropping the runtime drops the connections, which tell the end of their streams.
    }

    async fn obey(self: Arc<Self>, accepting: tokio::task::AbortHandle) {
        loop {
            self.commanded.notified().await;
            let commands = std::mem::take(&mut *self.commands.lock().unwrap());
            let table = self.table.lock().unwrap();
            for command in commands {
                match command {
                    Command::Send(messages) => {
                        for (message, streams) in messages {
                            for handle in streams.iter().filter_map(|id| table.get(id)) {
                                handle.send(message.clone());
                            }
                        }
                    }
                    Command::Close { stream, status, message, leave } => {
                        if let Some(handle) = table.get(&stream) {
                            handle.bell.leave.fetch_or(leave, Relaxed);
                            handle.close(status, message);
                        }
                    }
                    Command::Pause { stream, paused } => {
                        if let Some(handle) = table.get(&stream) {
                            handle.pause(paused);
                        }
                    }
                    Command::Leave => {
                        accepting.abort();
                        self.leaving.store(true, Relaxed);
                        for bell in self.bells.lock().unwrap().iter().filter_map(Weak::upgrade) {
                            bell.leave.store(true, Relaxed);
                            bell.ring();
                        }
                    }
                }
            }
        }
    }

    /// Wakes Python behind the tasks that are ready now: a burst of messages is one batch.
    async fn hand_over(self: Arc<Self>) {
        loop {
            self.inbox.arrived.notified().await;
            tokio::task::yield_now().await;
            self.inbox.signal();
        }
    }

    async fn read_on(self: Arc<Self>) {
        loop {
            self.inbox.freed.notified().await;
            self.inbox.unpause();
        }
    }

    /// One timer for all connections.
    async fn tick(self: Arc<Self>) {
        let round = self.limits.keepalive.min(self.limits.keepalive_timeout);
        for turn in (0..SLICES).cycle() {
            sleep(round / SLICES as u32).await;
            let mut bells = self.bells.lock().unwrap();
            if turn == 0 {
                bells.retain(|bell| bell.strong_count() > 0);
            }
            for bell in bells.iter().skip(turn).step_by(SLICES).filter_map(Weak::upgrade) {
                bell.tick.store(true, Relaxed);
                bell.ring();
            }
        }
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((socket, address)) = listener.accept().await else {
                sleep(OUT_OF_DESCRIPTORS).await;
                continue;
            };
            if self.counters.connections.load(Relaxed) >= self.limits.max_connections {
                self.counters.connections_refused.fetch_add(1, Relaxed);
                continue;
            }
            let connected = Connected::new(self.clone());
            tokio::spawn(self.clone().serve(socket, address, connected));
        }
    }

    async fn serve(self: Arc<Self>, socket: TcpStream, address: SocketAddr, connected: Connected) {
        let _ = socket.set_nodelay(true);
        let config = self.tls.lock().unwrap().clone();
        let Some(config) = config else {
            return self.http2(socket, Peer { address, certificate: None }, connected).await;
        };
        let counters = &self.counters;
        match timeout(HANDSHAKE, TlsAcceptor::from(config).accept(socket)).await {
            Ok(Ok(socket)) if socket.get_ref().1.alpn_protocol() == Some(b"h2") => {
                let tls = socket.get_ref().1;
                let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
                let count =
                    if resumed { &counters.handshakes_resumed } else { &counters.handshakes_full };
                count.fetch_add(1, Relaxed);
                let certificate = tls.peer_certificates().and_then(|chain| chain.first());
                let certificate = certificate.map(|certificate| certificate.to_vec());
                self.http2(socket, Peer { address, certificate }, connected).await;
            }
            _ => {
                counters.handshakes_failed.fetch_add(1, Relaxed);
            }
        }
    }

    async fn http2<T>(self: Arc<Self>, io: T, peer: Peer, connected: Connected)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = h2::server::Builder::new();
        builder
            .max_concurrent_streams(self.limits.max_streams_per_connection as u32)
            .max_header_list_size(self.limits.max_metadata)
            .max_frame_size(16_384)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_send_buffer_size(SEND_BUFFER)
            .max_pending_accept_reset_streams(20)
            .max_local_error_reset_streams(Some(64))
            .max_concurrent_reset_streams(16)
            .reset_stream_duration(Duration::from_secs(5));
        let Ok(Ok(h2)) = timeout(HANDSHAKE, builder.handshake(io)).await else { return };
        let bell = Arc::new(Bell::default());
        bell.leave.store(self.leaving.load(Relaxed), Relaxed);
        self.bells.lock().unwrap().push(Arc::downgrade(&bell));
        // A task of its own: the large state of the handshake is freed, not kept as long as the
        // connection lives (4-5 kB each).
        tokio::spawn(Conn::new(h2, self, bell, peer, connected));
    }
}

/// A connection that counts.
pub struct Connected(Arc<Server>);

impl Connected {
    fn new(server: Arc<Server>) -> Connected {
        server.counters.connections.fetch_add(1, Relaxed);
        server.counters.connections_accepted.fetch_add(1, Relaxed);
        Connected(server)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.counters.connections.fetch_sub(1, Relaxed);
    }
}
