//! `meshbus_native`: a listener that owns sockets, TLS, HTTP/2 and the framing of gRPC, and knows
//! streams and bytes, nothing of what they mean. The Python side of it is
//! `meshbus_xds_gateway/carrier_native.py`, the contract `carrier.py` beside it.
mod conn;
mod inbox;
mod server;
mod stream;
mod tls;

use bytes::{BufMut, Bytes, BytesMut};
use inbox::{Event, Inbox, Value};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};
use server::{Command, Limits, Server};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Events that wait for Python; connections read no more above it.
const INBOX: usize = 32 << 20;

/// A message with its prefix: copied once, shared by all streams that it is sent to.
#[pyclass(frozen)]
struct Buffer(Bytes);

#[pymethods]
impl Buffer {
    #[new]
    fn new(message: &[u8]) -> PyResult<Buffer> {
        let size = u32::try_from(message.len())
            .map_err(|_| PyValueError::new_err("a message has less than 4 GiB"))?;
        let mut framed = BytesMut::with_capacity(message.len() + 5);
        framed.put_u8(0);
        framed.put_u32(size);
        framed.put_slice(message);
        Ok(Buffer(framed.freeze()))
    }
}

/// The objects that Python wants events to be.
struct Words {
    opened: Py<PyAny>,
    closed: Py<PyAny>,
    half_closed: Py<PyAny>,
    blocked: Py<PyAny>,
    writable: Py<PyAny>,
}

#[pyclass(frozen)]
struct Listener {
    server: Arc<Server>,
    words: Words,
    tls: Option<tls::Listener>,
    thread: Mutex<Option<JoinHandle<std::io::Result<()>>>>,
    #[pyo3(get)]
    port: u16,
}

fn listen(address: SocketAddr, reuse_port: bool) -> std::io::Result<std::net::TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&address.into())?;
    socket.listen(server::BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[pymethods]
impl Listener {
    /// `words`: (opened(path, metadata, peer, certificate), closed(reason), half closed, blocked,
    /// writable). `tls`: (chain, key, client roots, require client, ticket keys), PEM.
    #[new]
    #[pyo3(signature = (address, words, tls, *, reuse_port, max_connections, max_streams,
        max_streams_per_connection, max_message_bytes, max_metadata_bytes, keepalive_s,
        keepalive_timeout_s))]
    #[allow(clippy::too_many_arguments, clippy::type_complexity)]
    fn new(
        address: &str,
        words: (Py<PyAny>, Py<PyAny>, Py<PyAny>, Py<PyAny>, Py<PyAny>),
        tls: Option<(Vec<u8>, Vec<u8>, Vec<u8>, bool, Vec<Vec<u8>>)>,
        reuse_port: bool,
        max_connections: usize,
        max_streams: usize,
        max_streams_per_connection: usize,
        max_message_bytes: usize,
        max_metadata_bytes: u32,
        keepalive_s: f64,
        keepalive_timeout_s: f64,
    ) -> PyResult<Listener> {
        let limits = Limits {
            max_connections,
            max_streams,
            max_streams_per_connection,
            max_message: max_message_bytes,
            max_metadata: max_metadata_bytes,
            keepalive: Duration::from_secs_f64(keepalive_s),
            keepalive_timeout: Duration::from_secs_f64(keepalive_timeout_s),
        };
        let mut config = None;
        let mut kept = None;
        if let Some((chain, key, roots, require, tickets)) = tls {
            let listener = tls::Listener::new(roots, require, &tickets).map_err(unusable)?;
            config = Some(listener.config(&chain, &key).map_err(unusable)?);
            kept = Some(listener);
        }
        let address: SocketAddr = address.parse().map_err(unusable)?;
        let socket = listen(address, reuse_port)?;
        let port = socket.local_addr()?.port();
        let server = Arc::new(Server::new(limits, config, Arc::new(Inbox::new(INBOX)?)));
        let running = server.clone();
        let thread = std::thread::Builder::new()
            .name("meshbus-native".into())
            .spawn(move || running.run(socket))?;
        let (opened, closed, half_closed, blocked, writable) = words;
        Ok(Listener {
            server,
            words: Words { opened, closed, half_closed, blocked, writable },
            tls: kept,
            thread: Mutex::new(Some(thread)),
            port,
        })
    }

    /// Readable while there are events.
    fn fileno(&self) -> i32 {
        self.server.inbox.fd()
    }

    /// All events so far: (stream, what happened).
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let batch = self.server.inbox.take();
        let list = PyList::empty(py);
        let words = &self.words;
        for event in batch.events {
            let (stream, what) = match event {
                Event::Message { stream, start, len } => {
                    (stream, PyBytes::new(py, &batch.arena[start..start + len]).into_any())
                }
                Event::Joined { stream, data, start } => {
                    (stream, PyBytes::new(py, &data[start..]).into_any())
                }
                Event::Open(stream, open) => {
                    let metadata = open
                        .metadata
                        .into_iter()
                        .map(|(name, value)| {
                            let value = match value {
                                Value::Text(text) => PyString::new(py, &text).into_any(),
                                Value::Binary(bytes) => PyBytes::new(py, &bytes).into_any(),
                            };
                            (PyString::intern(py, &name), value)
                        })
                        .collect::<Vec<_>>();
                    let metadata = PyTuple::new(py, metadata)?;
                    let certificate = open.certificate.map(|der| PyBytes::new(py, &der));
                    let peer = open.peer.to_string();
                    (stream, words.opened.bind(py).call1((open.path, metadata, peer, certificate))?)
                }
                Event::HalfClosed(stream) => (stream, words.half_closed.bind(py).clone()),
                Event::Blocked(stream) => (stream, words.blocked.bind(py).clone()),
                Event::Writable(stream) => (stream, words.writable.bind(py).clone()),
                Event::Closed(stream, reason) => {
                    (stream, words.closed.bind(py).call1((&*reason,))?)
                }
            };
            list.append((stream, what))?;
        }
        Ok(list)
    }

    fn send(&self, messages: Vec<(PyRef<'_, Buffer>, Vec<u64>)>) {
        let messages = messages.into_iter().map(|(buffer, ids)| (buffer.0.clone(), ids)).collect();
        self.server.command(Command::Send(messages));
    }

    fn close(&self, stream: u64, status: u32, message: String, leave: bool) {
        self.server.command(Command::Close { stream, status, message, leave });
    }

    fn pause(&self, stream: u64, paused: bool) {
        self.server.command(Command::Pause { stream, paused });
    }

    fn renew(&self, chain: &[u8], key: &[u8]) -> PyResult<()> {
        if let Some(tls) = &self.tls {
            let config = tls.config(chain, key).map_err(unusable)?;
            *self.server.tls.lock().unwrap() = Some(config);
        }
        Ok(())
    }

    fn rotate_tickets(&self, keys: Vec<Vec<u8>>) -> PyResult<()> {
        match &self.tls {
            Some(tls) => tls.rotate(&keys).map_err(unusable),
            None => Ok(()),
        }
    }

    fn counters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counters = &self.server.counters;
        let dict = PyDict::new(py);
        dict.set_item("connections", counters.connections.load(Relaxed))?;
        dict.set_item("streams", self.server.streams())?;
        dict.set_item("connections_accepted", counters.connections_accepted.load(Relaxed))?;
        dict.set_item("connections_refused", counters.connections_refused.load(Relaxed))?;
        dict.set_item("handshakes_full", counters.handshakes_full.load(Relaxed))?;
        dict.set_item("handshakes_resumed", counters.handshakes_resumed.load(Relaxed))?;
        dict.set_item("handshakes_failed", counters.handshakes_failed.load(Relaxed))?;
        Ok(dict)
    }

    /// Listen no more; connections end with their streams.
    fn leave(&self) {
        self.server.command(Command::Leave);
    }

    /// End everything; what happened last is still to be taken.
    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        let Some(thread) = self.thread.lock().unwrap().take() else { return Ok(()) };
        self.server.stop.notify_one();
        py.detach(|| thread.join())
            .map_err(|_| PyOSError::new_err("the thread of the connections has failed"))??;
        Ok(())
    }
}

fn unusable(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

#[pymodule]
fn meshbus_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Buffer>()?;
    module.add_class::<Listener>()
}
