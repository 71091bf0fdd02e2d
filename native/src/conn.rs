//! One connection: a task that drives HTTP/2 and all its streams.
use crate::inbox::{Event, Inbox, Open};
use crate::server::{Connected, Server};
use crate::stream::{Handle, RESOURCE_EXHAUSTED, Stream, UNIMPLEMENTED, metadata, refusal};
use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::{Method, Request, Response, StatusCode, header};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite};

/// Calls that a peer may reset or have refused on one connection between two pings.
const MISDEEDS: u32 = 200;

/// Wakes the connection's task. What HTTP/2 wakes while the task runs makes it look once more at once,
/// instead of having a second turn behind all other connections.
///
/// Rung on the thread of the connections only: between its last look and its return a ring from
/// elsewhere would be lost.
#[derive(Default)]
pub struct Bell {
    task: OnceLock<Waker>,
    running: AtomicBool,
    again: AtomicBool,
    /// The connection is to be told to go.
    pub leave: AtomicBool,
    /// It is time to look at the clock.
    pub tick: AtomicBool,
}

impl Bell {
    pub fn ring(&self) {
        if self.running.load(Relaxed) {
            self.again.store(true, Relaxed);
        } else if let Some(task) = self.task.get() {
            task.wake_by_ref();
        }
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

pub struct Peer {
    pub address: SocketAddr,
    pub certificate: Option<Vec<u8>>,
}

pub struct Conn<T> {
    h2: Connection<T, Bytes>,
    server: Arc<Server>,
    bell: Arc<Bell>,
    waker: Waker,
    streams: Vec<Stream>,
    peer: Peer,
    pings: Option<PingPong>,
    pinged: Instant,
    unanswered: bool,
    /// Since when it carries no stream.
    idle: Option<Instant>,
    leaving: bool,
    misdeeds: u32,
    _connected: Connected,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Conn<T> {
    pub fn new(
        mut h2: Connection<T, Bytes>,
        server: Arc<Server>,
        bell: Arc<Bell>,
        peer: Peer,
        connected: Connected,
    ) -> Self {
        let now = Instant::now();
        Conn {
            pings: h2.ping_pong(),
            waker: Waker::from(bell.clone()),
            h2,
            server,
            bell,
            streams: Vec::with_capacity(1),
            peer,
            pinged: now,
            unanswered: false,
            idle: Some(now),
            leaving: false,
            misdeeds: 0,
            _connected: connected,
        }
    }

    fn open(&mut self, request: Request<RecvStream>, mut response: SendResponse<Bytes>) {
        let (parts, body) = request.into_parts();
        let kind = parts.headers.get(header::CONTENT_TYPE).map_or(&b""[..], |v| v.as_bytes());
        let refused = if parts.method != Method::POST {
            let mut answer = Response::new(());
            *answer.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            Err(answer)
        } else if !kind.starts_with(b"application/grpc") {
            let mut answer = Response::new(());
            *answer.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            Err(answer)
        } else if parts.headers.get("grpc-encoding").is_some_and(|v| v != "identity") {
            Err(refusal(&(UNIMPLEMENTED, "compressed messages are not taken".into())))
        } else if self.server.streams() >= self.server.limits.max_streams {
            Err(refusal(&(RESOURCE_EXHAUSTED, "there are too many streams; try later".into())))
        } else {
            metadata(&parts.headers).map_err(|end| refusal(&end))
        };
        let metadata = match refused {
            Ok(metadata) => metadata,
            Err(answer) => {
                self.misdeeds += 1;
                let _ = response.send_response(answer, true);
                return;
            }
        };
        let handle = self.server.register(&self.bell);
        let open = Open {
            path: parts.uri.path().to_owned(),
            metadata,
            peer: self.peer.address,
            certificate: self.peer.certificate.clone(),
        };
        self.server.inbox.push(Event::Open(handle.id, Box::new(open)));
        self.streams.push(Stream::new(handle, response, body, self.server.held.clone()));
    }

    /// Pings, and ends connections that do not answer, or carry nothing for long. Err: end it.
    fn keep_alive(&mut self, cx: &mut Context<'_>) -> Result<(), ()> {
        let Some(pings) = &mut self.pings else { return Ok(()) };
        if self.unanswered && pings.poll_pong(cx).is_ready() {
            self.unanswered = false;
        }
        if !self.bell.tick.swap(false, Relaxed) {
            return Ok(());
        }
        let limits = &self.server.limits;
        let now = Instant::now();
        for stream in &mut self.streams {
            stream.give_up(now);
        }
        if self.unanswered && now - self.pinged > limits.keepalive_timeout {
            return Err(());
        }
        if !self.unanswered && now - self.pinged > limits.keepalive {
            self.pinged = now;
            self.misdeeds = 0;
            self.unanswered = pings.send_ping(Ping::opaque()).is_ok();
            let _ = pings.poll_pong(cx);
        }
        if self.idle.is_some_and(|since| now - since > 2 * limits.keepalive) {
            self.bell.leave.store(true, Relaxed);
        }
        Ok(())
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let inbox = self.server.inbox.clone();
        loop {
            if self.keep_alive(cx).is_err() {
                return Poll::Ready(());
            }
            if !self.leaving && self.bell.leave.load(Relaxed) {
                self.leaving = true;
                self.h2.graceful_shutdown();
            }
            self.pump(&inbox);
            // What has rung so far is seen by what follows.
            self.bell.again.store(false, Relaxed);
            loop {
                match self.h2.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, response)))) => self.open(request, response),
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
                // A peer that resets as fast as it opens has no more than this of our memory.
                if self.streams.len() > 2 * self.server.limits.max_streams_per_connection {
                    self.misdeeds = MISDEEDS + 1;
                    break;
                }
            }
            let mut again = false;
            if !inbox.full(&self.waker) {
                for stream in &mut self.streams {
                    again |= stream.receive(&inbox, &self.server.allowance);
                }
            }
            again |= self.pump(&inbox);
            again |= self.reap();
            if self.misdeeds > MISDEEDS && !self.leaving {
                self.leaving = true;
                again = true;
                self.h2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            }
            if !again && !self.bell.again.load(Relaxed) {
                return Poll::Pending;
            }
        }
    }

    fn pump(&mut self, inbox: &Inbox) -> bool {
        let mut moved = false;
        for stream in &mut self.streams {
            match stream.pump(inbox) {
                Ok(more) => moved |= more,
                Err(error) => stream.ended = Some(error.to_string().into()),
            }
        }
        moved
    }

    /// Drops streams that have ended. True: HTTP/2 may have something to say because of it.
    fn reap(&mut self) -> bool {
        let before = self.streams.len();
        let (server, misdeeds) = (&self.server, &mut self.misdeeds);
        self.streams.retain_mut(|stream| {
            if stream.ended.is_none() && stream.done() {
                stream.ended = Some("ended here".into());
            }
            let Some(reason) = stream.ended.take() else { return true };
            *misdeeds += u32::from(stream.reset_by_peer);
            server.forget(stream.handle.id, reason);
            false
        });
        if !self.streams.is_empty() {
            self.idle = None;
        } else if self.idle.is_none() {
            self.idle = Some(Instant::now());
        }
        self.streams.len() != before
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Conn<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let me = self.get_mut();
        // The waker of a spawned task stays the same.
        me.bell.task.get_or_init(|| cx.waker().clone());
        let waker = me.waker.clone();
        me.bell.running.store(true, Relaxed);
        let result = me.turn(&mut Context::from_waker(&waker));
        me.bell.running.store(false, Relaxed);
        result
    }
}

impl<T> Drop for Conn<T> {
    fn drop(&mut self) {
        for stream in self.streams.drain(..) {
            self.server.forget(stream.handle.id, "the connection is gone".into());
        }
    }
}

impl Server {
    fn register(&self, bell: &Arc<Bell>) -> Arc<Handle> {
        let handle = Arc::new(Handle::new(self.next_id(), bell.clone()));
        self.table.lock().unwrap().insert(handle.id, handle.clone());
        handle
    }
}
