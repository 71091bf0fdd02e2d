//! What has happened, on its way to Python: connections append, Python takes all of it in one crossing.
//!
//! Messages lie in one arena per batch: no allocation for each, and no reference that would keep a
//! read buffer of HTTP/2 alive; long ones are not copied into it. The inbox is bounded: connections
//! stop reading while it is full.
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Waker;
use tokio::sync::Notify;

/// A value of a call's metadata.
pub enum Value {
    Text(String),
    Binary(Vec<u8>),
}

pub struct Open {
    pub path: String,
    pub metadata: Vec<(String, Value)>,
    pub peer: SocketAddr,
    pub certificate: Option<Vec<u8>>,
}

pub enum Event {
    Open(u64, Box<Open>),
    Message {
        stream: u64,
        start: usize,
        len: usize,
    },
    /// A long one, which came in parts and was joined where it lies; it begins at `start`.
    Joined {
        stream: u64,
        data: Vec<u8>,
        start: usize,
    },
    HalfClosed(u64),
    Blocked(u64),
    Writable(u64),
    Closed(u64, Box<str>),
}

#[derive(Default)]
pub struct Batch {
    pub arena: Vec<u8>,
    pub events: Vec<Event>,
}

struct State {
    batch: Batch,
    /// Python waits for the descriptor: the next event makes it readable.
    armed: bool,
}

pub struct Inbox {
    state: Mutex<State>,
    size: AtomicUsize,
    limit: usize,
    paused: Mutex<Vec<Waker>>,
    /// There are events, and Python waits.
    pub arrived: Notify,
    /// There is room again for those who are paused.
    pub freed: Notify,
    readable: OwnedFd,
}

impl Inbox {
    pub fn new(limit: usize) -> std::io::Result<Inbox> {
        // SAFETY: a call without pointers; the descriptor is owned from here on.
        let readable = unsafe {
            let fd = libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        Ok(Inbox {
            state: Mutex::new(State { batch: Batch::default(), armed: true }),
            size: AtomicUsize::new(0),
            limit,
            paused: Mutex::default(),
            arrived: Notify::new(),
            freed: Notify::new(),
            readable,
        })
    }

    pub fn fd(&self) -> i32 {
        self.readable.as_raw_fd()
    }

    fn add(&self, cost: usize, append: impl FnOnce(&mut Batch)) {
        let mut state = self.state.lock().unwrap();
        append(&mut state.batch);
        self.size.fetch_add(cost, SeqCst);
        if std::mem::take(&mut state.armed) {
            drop(state);
            self.arrived.notify_one();
        }
    }

    pub fn push(&self, event: Event) {
        let cost = if matches!(event, Event::Open(..)) { 2048 } else { 64 };
        self.add(cost, |batch| batch.events.push(event));
    }

    pub fn message(&self, stream: u64, message: &[u8]) {
        self.add(64 + message.len(), |batch| {
            let start = batch.arena.len();
            batch.arena.extend_from_slice(message);
            batch.events.push(Event::Message { stream, start, len: message.len() });
        });
    }

    pub fn joined(&self, stream: u64, data: Vec<u8>, start: usize) {
        self.add(64 + data.len(), |batch| batch.events.push(Event::Joined { stream, data, start }));
    }

    /// Whether Python is behind. The caller then reads no messages and is woken when there is room.
    pub fn full(&self, waker: &Waker) -> bool {
        if self.size.load(SeqCst) < self.limit {
            return false;
        }
        self.paused.lock().unwrap().push(waker.clone());
        self.size.load(SeqCst) >= self.limit
    }

    /// Makes the descriptor readable.
    pub fn signal(&self) {
        // SAFETY: eight bytes that live through the call; a full counter is readable all the same.
        unsafe { libc::write(self.fd(), (&raw const ONE).cast(), 8) };
    }

    /// All that has happened; the descriptor is not readable until more does.
    pub fn take(&self) -> Batch {
        let mut word = 0u64;
        // SAFETY: room for eight bytes; nothing to read is an error that is expected.
        unsafe { libc::read(self.fd(), (&raw mut word).cast(), 8) };
        let mut state = self.state.lock().unwrap();
        let batch = std::mem::take(&mut state.batch);
        state.armed = true;
        self.size.store(0, SeqCst);
        drop(state);
        if !self.paused.lock().unwrap().is_empty() {
            // Woken on the thread of the connections, which relies on it, see `conn::Bell`.
            self.freed.notify_one();
        }
        batch
    }

    /// Wakes those who were paused.
    pub fn unpause(&self) {
        for waker in std::mem::take(&mut *self.paused.lock().unwrap()) {
            waker.wake();
        }
    }
}

static ONE: u64 = 1;
