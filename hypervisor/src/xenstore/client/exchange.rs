//! Requests, replies and events on the line to the store.
//!
//! Each read asks for no more than belongs to one message, so nothing is ever left over here: what is
//! not in `events` is still in the line, and makes it readable.

use std::collections::VecDeque;
use std::io::ErrorKind;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use crate::HostError;
use crate::store::{Changed, Transaction};
use crate::xenstore::wire::{self, Kind, Message, Parser, Refusal};

use super::line::{Line, Sent};

/// The most bytes of a reply. The protocol's limit is lower, but oxenstored answers over its socket
/// with the whole of a long directory.
const REPLY_MAX: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Wire {
    pub(super) line: Line,
    parser: Parser,
    pub(super) events: VecDeque<Changed>,
    /// Readable while there are `events`, or nothing will ever come any more.
    pub(super) kept: EventFd,
    last_request: u32,
    lost: Option<HostError>,
}

impl Wire {
    pub(super) fn new(line: Line, kept: EventFd) -> Self {
        let (parser, events) = (Parser::up_to(REPLY_MAX), VecDeque::new());
        Self { line, parser, events, kept, last_request: 0, lost: None }
    }

    /// Sends a request and waits for what is answered.
    pub(super) fn exchange(
        &mut self,
        kind: Kind,
        within: Transaction,
        parts: &[&[u8]],
    ) -> Result<Result<Vec<u8>, Refusal>, HostError> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        self.last_request = self.last_request.wrapping_add(1);
        let request = self.last_request;
        let Ok(bytes) = wire::encode(kind, request, within.0, parts) else {
            return Ok(Err(Refusal::TooBig));
        };
        let done = match self.line.send(&bytes) {
            Ok(Sent::Done) => self.reply(kind, request),
            // An error whose name is not known still is one.
            Ok(Sent::Refused(errno)) => {
                Ok(Err(Refusal::from_errno(errno as i32).unwrap_or(Refusal::Io)))
            }
            Err(error) => Err(HostError::from_io("write to the store", &error)),
        };
        if let Err(error) = &done {
            self.lost = Some(error.clone());
        }
        self.mark();
        done
    }

    /// Waits for the reply to `request`; keeps what events come before it.
    fn reply(&mut self, kind: Kind, request: u32) -> Result<Result<Vec<u8>, Refusal>, HostError> {
        loop {
            let Some(message) = self.receive(true)? else { continue };
            if message.header.kind == Kind::WatchEvent.number() {
                self.events.push_back(event(&message.payload)?);
                continue;
            }
            if message.header.request != request {
                return Err(nonsense("a reply to no request"));
            }
            if message.header.kind == Kind::Error.number() {
                let name = message.payload.strip_suffix(b"\0").unwrap_or(&message.payload);
                // An error whose name is not known still is one.
                return Ok(Err(Refusal::from_name(name).unwrap_or(Refusal::Io)));
            }
            if message.header.kind != kind.number() {
                return Err(nonsense("another kind of reply"));
            }
            return Ok(Ok(message.payload));
        }
    }

    /// The next message, if one came in; waits for it if told to.
    fn receive(&mut self, wait: bool) -> Result<Option<Message>, HostError> {
        let mut buffer = [0; wire::PAYLOAD_MAX];
        loop {
            // No more than belongs to one message, so that nothing is left over.
            let wanted = self.parser.wants().min(buffer.len());
            let room = buffer.get_mut(..wanted).unwrap_or(&mut []);
            let len = match self.line.read(room, wait) {
                Ok(0) => {
                    return Err(HostError::new("read from the store", Errno::ECONNRESET as i32));
                }
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if !wait && error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(HostError::from_io("read from the store", &error)),
            };
            let bytes = buffer.get(..len).unwrap_or(&[]);
            self.parser.feed(bytes).map_err(|_| nonsense("an overlong message"))?;
            if let Some(message) = self.parser.take() {
                return Ok(Some(message));
            }
        }
    }

    /// The next event, if there is one without waiting.
    pub(super) fn changed(&mut self) -> Result<Option<Changed>, HostError> {
        if self.events.is_empty() {
            if let Some(lost) = &self.lost {
                return Err(lost.clone());
            }
            let got = match self.receive(false) {
                Ok(None) => Ok(()),
                Ok(Some(message)) if message.header.kind == Kind::WatchEvent.number() => {
                    event(&message.payload).map(|event| self.events.push_back(event))
                }
                Ok(Some(_)) => Err(nonsense("a reply to no request")),
                Err(error) => Err(error),
            };
            if let Err(error) = got {
                self.lost = Some(error);
            }
        }
        let next = self.events.pop_front();
        self.mark();
        match (&self.lost, next) {
            (Some(lost), None) => Err(lost.clone()),
            (_, next) => Ok(next),
        }
    }

    /// Makes `kept` readable if there is something to tell, and else not.
    pub(super) fn mark(&self) {
        // Either fails only where the counter is that already, or full.
        if self.events.is_empty() && self.lost.is_none() {
            let _ = self.kept.read();
        } else {
            let _ = self.kept.write(1);
        }
    }
}

/// The store broke the protocol by sending `what`.
pub(super) fn nonsense(what: &'static str) -> HostError {
    HostError::new(format!("understand the store, which sent {what}"), Errno::EPROTO as i32)
}

fn event(payload: &[u8]) -> Result<Changed, HostError> {
    let Some(([path, token], _)) = wire::strings(payload) else {
        return Err(nonsense("an event that is cut short"));
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Changed { path: text(path), token: text(token) })
}
