//! One call: messages out as far as the peer's windows go, messages in whole, the gRPC status.
use crate::conn::Bell;
use crate::inbox::{Event, Inbox, Value};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Response, header};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// With its header a DATA frame then fills one TLS record; a larger one makes two.
const CHUNK: usize = 16_384 - 9;
/// `LINGER_S` of the contract.
const LINGER: Duration = Duration::from_secs(10);
const PREFIX: usize = 5;
/// Room that is made at once for a message whose end has not come, by what its prefix says.
const ROOM: usize = 512 << 10;
/// Unfinished messages of this size are always taken, whatever others hold.
const SMALL: usize = 64 << 10;

pub const RESOURCE_EXHAUSTED: u32 = 8;
pub const UNIMPLEMENTED: u32 = 12;
pub const INTERNAL: u32 = 13;

/// A status and its text.
pub type End = (u32, String);

#[derive(Default)]
struct Outgoing {
    messages: VecDeque<Bytes>,
    end: Option<End>,
    /// Since when there is an `end`.
    closing: Option<Instant>,
    blocked: bool,
}

/// What the server knows of a stream.
pub struct Handle {
    pub id: u64,
    pub bell: Arc<Bell>,
    pub paused: AtomicBool,
    outgoing: Mutex<Outgoing>,
}

impl Handle {
    pub fn new(id: u64, bell: Arc<Bell>) -> Handle {
        Handle { id, bell, paused: AtomicBool::new(false), outgoing: Mutex::default() }
    }

    pub fn send(&self, framed: Bytes) {
        let mut out = self.outgoing.lock().unwrap();
        if out.end.is_none() {
            out.messages.push_back(framed);
            drop(out);
            self.bell.ring();
        }
    }

    pub fn close(&self, status: u32, message: String) {
        let mut out = self.outgoing.lock().unwrap();
        out.end.get_or_insert((status, message));
        out.closing.get_or_insert_with(Instant::now);
        drop(out);
        self.bell.ring();
    }

    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Relaxed);
        if !paused {
            self.bell.ring();
        }
    }
}

enum Out {
    Head(SendResponse<Bytes>),
    Body(SendStream<Bytes>),
    Done,
}

pub struct Stream {
    pub handle: Arc<Handle>,
    out: Out,
    body: Option<RecvStream>,
    /// The beginning of a message whose end has not come.
    part: Vec<u8>,
    /// Bytes in the parts of all streams.
    held: Arc<AtomicUsize>,
    pub ended: Option<Box<str>>,
    pub reset_by_peer: bool,
}

/// What a stream may hold.
pub struct Allowance {
    pub message: usize,
    pub held: usize,
}

impl Stream {
    pub fn new(
        handle: Arc<Handle>,
        response: SendResponse<Bytes>,
        body: RecvStream,
        held: Arc<AtomicUsize>,
    ) -> Stream {
        Stream {
            handle,
            out: Out::Head(response),
            body: Some(body),
            part: Vec::new(),
            held,
            ended: None,
            reset_by_peer: false,
        }
    }

    pub fn done(&self) -> bool {
        matches!(self.out, Out::Done)
    }

    /// Gives up on a peer that does not take what is left of a stream that is closed.
    pub fn give_up(&mut self, now: Instant) {
        let closing = self.handle.outgoing.lock().unwrap().closing;
        if closing.is_some_and(|since| now - since > LINGER) {
            match &mut self.out {
                Out::Head(response) => response.send_reset(Reason::CANCEL),
                Out::Body(body) => body.send_reset(Reason::CANCEL),
                Out::Done => {}
            }
            self.ended = Some("the peer has not read to its end".into());
        }
    }

    /// Gives HTTP/2 what the peer's windows have room for. True: something was given.
    pub fn pump(&mut self, inbox: &Inbox) -> Result<bool, h2::Error> {
        let mut out = self.handle.outgoing.lock().unwrap();
        if out.messages.is_empty() && out.end.is_none() {
            return Ok(false);
        }
        if let Out::Head(response) = &mut self.out {
            let mut head = head();
            if out.messages.is_empty()
                && let Some(end) = out.end.take()
            {
                put_status(head.headers_mut(), &end);
                response.send_response(head, true)?;
                self.out = Out::Done;
                return Ok(true);
            }
            self.out = Out::Body(response.send_response(head, false)?);
        }
        let Out::Body(body) = &mut self.out else { return Ok(false) };
        let mut moved = false;
        while let Some(message) = out.messages.front_mut() {
            body.reserve_capacity(message.len());
            let room = body.capacity().min(CHUNK);
            if room == 0 {
                break;
            }
            let piece = if room < message.len() {
                message.split_to(room)
            } else {
                out.messages.pop_front().unwrap()
            };
            body.send_data(piece, false)?;
            moved = true;
        }
        if out.messages.is_empty()
            && let Some(end) = out.end.take()
        {
            let mut trailers = HeaderMap::new();
            put_status(&mut trailers, &end);
            body.send_trailers(trailers)?;
            self.out = Out::Done;
            return Ok(true);
        }
        let waiting = out.messages.len();
        if waiting > 1 && !out.blocked {
            out.blocked = true;
            inbox.push(Event::Blocked(self.handle.id));
        } else if waiting == 0 && out.blocked {
            out.blocked = false;
            inbox.push(Event::Writable(self.handle.id));
        }
        Ok(moved)
    }

    /// Takes what HTTP/2 has for this stream. True: there is something to send because of it.
    pub fn receive(&mut self, inbox: &Inbox, allowance: &Allowance) -> bool {
        // The task of the connection looks at all its streams after each turn: no waking needed.
        let mut cx = Context::from_waker(Waker::noop());
        while !self.handle.paused.load(Relaxed)
            && let Some(body) = &mut self.body
        {
            match body.poll_data(&mut cx) {
                Poll::Ready(Some(Ok(data))) => {
                    // Given back at once: what bounds us is the size of a message and the inbox.
                    let _ = body.flow_control().release_capacity(data.len());
                    if let Err((status, message)) = self.feed(&data, inbox, allowance) {
                        self.body = None;
                        self.let_go();
                        self.handle.outgoing.lock().unwrap().messages.clear();
                        self.handle.close(status, message);
                        return true;
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    self.reset(&error);
                    return false;
                }
                Poll::Ready(None) => {
                    self.body = None;
                    if !self.part.is_empty() {
                        let end = (INTERNAL, "the last message is not whole".to_owned());
                        self.let_go();
                        self.handle.close(end.0, end.1);
                        return true;
                    }
                    inbox.push(Event::HalfClosed(self.handle.id));
                }
                Poll::Pending => break,
            }
        }
        let reset = match &mut self.out {
            Out::Head(response) => response.poll_reset(&mut cx),
            Out::Body(body) => body.poll_reset(&mut cx),
            Out::Done => Poll::Pending,
        };
        match reset {
            Poll::Ready(Ok(reason)) => {
                self.reset_by_peer = true;
                self.ended = Some(format!("reset by the peer: {reason}").into());
            }
            Poll::Ready(Err(error)) => self.reset(&error),
            Poll::Pending => {}
        }
        false
    }

    fn reset(&mut self, error: &h2::Error) {
        self.reset_by_peer = error.is_reset() && error.is_remote();
        self.ended = Some(error.to_string().into());
    }

    fn feed(&mut self, data: &[u8], inbox: &Inbox, allowance: &Allowance) -> Result<(), End> {
        let joined = !self.part.is_empty();
        if joined {
            self.part.extend_from_slice(data);
            self.held.fetch_add(data.len(), Relaxed);
        }
        let all: &[u8] = if joined { &self.part } else { data };
        let (mut at, mut whole) = (0, 0);
        while all.len() - at >= PREFIX {
            let size = u32::from_be_bytes(all[at + 1..at + PREFIX].try_into().unwrap()) as usize;
            match all[at] {
                0 => {}
                1 => return Err((UNIMPLEMENTED, "compressed messages are not taken".into())),
                flag => return Err((INTERNAL, format!("no flag of a message: {flag}"))),
            }
            if size > allowance.message {
                let limit = allowance.message;
                let text = format!("a message of {size} bytes; at most {limit} are taken");
                return Err((RESOURCE_EXHAUSTED, text));
            }
            if all.len() - at - PREFIX < size {
                whole = PREFIX + size;
                break;
            }
            if joined && at == 0 && all.len() == PREFIX + size && size > SMALL {
                self.held.fetch_sub(self.part.len(), Relaxed);
                inbox.joined(self.handle.id, std::mem::take(&mut self.part), PREFIX);
                return Ok(());
            }
            inbox.message(self.handle.id, &all[at + PREFIX..at + PREFIX + size]);
            at += PREFIX + size;
        }
        if joined {
            self.part.drain(..at);
            self.held.fetch_sub(at, Relaxed);
        } else {
            self.part.reserve_exact(whole.min(ROOM).max(data.len() - at));
            self.part.extend_from_slice(&data[at..]);
            self.held.fetch_add(data.len() - at, Relaxed);
        }
        if self.part.is_empty() && self.part.capacity() > 1024 {
            self.part = Vec::new();
        }
        if self.part.len() > SMALL && self.held.load(Relaxed) > allowance.held {
            let text = "too many large messages at one time; try again".to_owned();
            return Err((RESOURCE_EXHAUSTED, text));
        }
        Ok(())
    }

    fn let_go(&mut self) {
        self.held.fetch_sub(self.part.len(), Relaxed);
        self.part = Vec::new();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.let_go();
    }
}

fn head() -> Response<()> {
    let mut head = Response::new(());
    let grpc = HeaderValue::from_static("application/grpc");
    head.headers_mut().insert(header::CONTENT_TYPE, grpc);
    head
}

/// The whole answer to a call that is refused before it is a stream.
pub fn refusal(end: &End) -> Response<()> {
    let mut head = head();
    put_status(head.headers_mut(), end);
    head.headers_mut().insert("grpc-accept-encoding", HeaderValue::from_static("identity"));
    head
}

fn put_status(headers: &mut HeaderMap, (status, message): &End) {
    headers.insert("grpc-status", HeaderValue::from(*status));
    if message.is_empty() {
        return;
    }
    let mut text = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => text.push(byte as char),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert("grpc-message", value);
    }
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The metadata in a call's headers: all but those that HTTP/2 and gRPC use themselves.
pub fn metadata(headers: &HeaderMap) -> Result<Vec<(String, Value)>, End> {
    let mut out = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let name = name.as_str();
        if matches!(name, "te" | "content-type") || name.starts_with("grpc-") {
            continue;
        }
        let value = if name.ends_with("-bin") {
            BASE64.decode(value.as_bytes()).ok().map(Value::Binary)
        } else {
            value.to_str().ok().map(|text| Value::Text(text.to_owned()))
        };
        let value = value.ok_or((INTERNAL, format!("the value of {name} cannot be read")))?;
        out.push((name.to_owned(), value));
    }
    Ok(out)
}
