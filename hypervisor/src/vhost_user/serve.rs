//! One device and its monitors, one after the other, on the device's own thread.

use std::os::fd::AsFd as _;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Device, Door, Session};
use crate::backend::history::Words;
use crate::backend::ration::Ration;
use crate::backend::{Board, Mailbox, Message, Slot, Waker};
use crate::xenbus::State;
use crate::{Error, HostError};

/// A device that waits for monitors, and what others tell it.
#[derive(Debug)]
pub struct Serving<C, A> {
    door: Door,
    mailbox: Mailbox<Message<C, A>>,
    board: Board,
    words: Words,
}

impl<C, A> Serving<C, A> {
    /// One that monitors come to by `door`.
    ///
    /// # Errors
    ///
    /// The host has no descriptors left.
    pub fn new(door: Door) -> Result<Self, HostError> {
        let words = Words::new(Ration::of_words(Instant::now()));
        let serving = Self { door, mailbox: Mailbox::new()?, board: Board::new(), words };
        serving.board.lock().own = State::InitWait;
        Ok(serving)
    }

    /// How it is with the machine.
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Where it is told something.
    pub fn slot(&self) -> Slot<Message<C, A>> {
        self.mailbox.slot()
    }

    /// What a queue that ends by itself wakes it with.
    pub fn waker(&self) -> Waker {
        self.mailbox.waker()
    }

    /// Serves `device` until it is told to leave. `change` does what it is asked to change.
    ///
    /// # Errors
    ///
    /// The host cannot.
    pub fn run<D: Device>(
        mut self,
        device: &D,
        mut change: impl FnMut(C) -> Result<A, Error>,
    ) -> Result<(), HostError> {
        let mut session: Option<Session<'_, D>> = None;
        loop {
            let waited = session.as_ref().map(|session| session.as_fd()).or_else(|| self.door.fd());
            let until = if session.is_some() { None } else { self.door.next() };
            self.mailbox.wait(waited.as_slice(), until)?;
            for message in self.mailbox.take() {
                match message {
                    Message::Change { change: what, reply } => {
                        let done = change(what).map_err(|error| error.to_string());
                        if done.is_ok() {
                            self.changed(device, &mut session);
                        }
                        // Who asked may be gone.
                        let _ = reply.send(done);
                    }
                    Message::Wake { reply } => {
                        session.iter().for_each(Session::wake);
                        let _ = reply.send(Ok(()));
                    }
                    Message::HandOver { reply } => {
                        let why = "a virtual machine's monitor connects to one process; start the next one \
                                   with --reconnect there";
                        let _ = reply.send(Err(why.to_owned()));
                    }
                    Message::Leave { reply, .. } => {
                        // Everything that was taken is answered before the socket closes.
                        drop(session);
                        drop(self.door);
                        if let Some(reply) = reply {
                            let _ = reply.send(Ok(()));
                        }
                        return Ok(());
                    }
                }
            }
            match &mut session {
                Some(open) => {
                    if !self.turn(open) {
                        session = None;
                        self.show(0);
                        tracing::info!("the monitor is gone; waiting for the next");
                    }
                }
                None => match self.door.come() {
                    Ok(Some(socket)) => {
                        tracing::info!("a monitor has connected");
                        let mut board = self.board.lock();
                        board.history.connections = board.history.connections.saturating_add(1);
                        session = Some(Session::new(device, socket));
                    }
                    Ok(None) => {}
                    // It may be over once descriptors are free again.
                    Err(error) => self.say(&error.into()),
                },
            }
        }
    }

    /// Takes a message, if there is one, and looks after the queues. `false` where the session is over.
    fn turn<D: Device>(&mut self, session: &mut Session<'_, D>) -> bool {
        let mut waited = [PollFd::new(session.as_fd(), PollFlags::POLLIN)];
        let readable = matches!(poll(&mut waited, PollTimeout::ZERO), Ok(1..));
        let turned = if readable { session.turn() } else { Ok(true) };
        for error in session.tend() {
            self.say(&error);
        }
        self.show(session.running());
        turned.unwrap_or_else(|error| {
            self.say(&error);
            false
        })
    }

    /// The device is another: tells the monitor, or lets it go where that is how its machine notices.
    fn changed<'a, D: Device>(&mut self, device: &'a D, session: &mut Option<Session<'a, D>>) {
        let told = match session.as_ref().map(Session::configuration_changed) {
            None => false,
            Some(Ok(told)) => told,
            Some(Err(error)) => {
                self.say(&error.into());
                false
            }
        };
        if device.is_plugged() {
            if session.is_some() && !told {
                tracing::warn!(
                    "this monitor cannot be told of a change; the machine sees it when it looks"
                );
            }
            if let Err(error) = self.door.open() {
                self.say(&error);
            }
        } else if !told {
            self.door.close();
            if session.take().is_some() {
                self.show(0);
                tracing::info!("the monitor is let go, for its machine to notice");
            }
        }
    }

    fn show(&self, running: usize) {
        let state = if running > 0 { State::Connected } else { State::InitWait };
        let mut board = self.board.lock();
        (board.own, board.peer) = (state, state);
    }

    fn say(&mut self, error: &Error) {
        let mut board = self.board.lock();
        board.history.ended(error);
        if board.history.may_say(&mut self.words) {
            tracing::warn!("{error}");
        }
    }
}
