//! One device and its monitors, one after the other, on the device's own thread.

use std::os::fd::AsFd as _;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::message::fault;
use super::{Device, Door, Session, Socket};
use crate::backend::history::Words;
use crate::backend::ration::Ration;
use crate::backend::{Board, Mailbox, Message, Slot, Waker};
use crate::xenbus::State;
use crate::{Error, HostError};

/// What a look at a session came to.
enum Turn {
    /// The monitor said something.
    Worked,
    /// It did not.
    Quiet,
    /// It is gone, or was let go.
    Over,
}

/// A device that waits for monitors, and what others tell it.
#[derive(Debug)]
pub struct Serving<C, A> {
    door: Door,
    mailbox: Mailbox<Message<C, A>>,
    board: Board,
    words: Words,
    /// A monitor that came and was not spoken with yet.
    next: Option<Socket>,
}

impl<C, A> Serving<C, A> {
    /// One that monitors come to by `door`.
    ///
    /// # Errors
    ///
    /// The host has no descriptors left.
    pub fn new(door: Door) -> Result<Self, HostError> {
        let words = Words::new(Ration::of_words(Instant::now()));
        let (mailbox, board) = (Mailbox::new()?, Board::new());
        let serving = Self { door, mailbox, board, words, next: None };
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
            let waited = session.as_ref().map(|session| session.as_fd()).into_iter();
            // While there is a session too: whoever comes then is turned away, and does not wait in vain.
            let open = device.is_plugged();
            let waited: Vec<_> = waited.chain(self.door.fd().filter(|_| open)).collect();
            let until = match (&session, &self.next) {
                (_, Some(_)) => Some(Instant::now()),
                (Some(_), None) => None,
                (None, None) => self.door.next().filter(|_| open),
            };
            self.mailbox.wait(&waited, until)?;
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
            let comes = session.is_none() || self.door.fd().is_some();
            if self.next.is_none() && comes && device.is_plugged() {
                match self.door.come() {
                    Ok(come) => self.next = come,
                    // It may be over once descriptors are free again.
                    Err(error) => self.say(&error.into()),
                }
            }
            match &mut session {
                Some(open) => match self.turn(open) {
                    Turn::Over => {
                        session = None;
                        self.show(0);
                        tracing::info!("the monitor is gone; waiting for the next");
                    }
                    Turn::Worked => {}
                    // A monitor that went before the next one came has been heard to go by now.
                    Turn::Quiet => self.turn_away(),
                },
                None => {
                    if let Some(socket) = self.next.take() {
                        tracing::info!("a monitor has connected");
                        let mut board = self.board.lock();
                        board.history.connections = board.history.connections.saturating_add(1);
                        session = Some(Session::new(device, socket));
                    }
                }
            }
        }
    }

    /// Lets whoever came go again, if somebody did: one monitor has the device already.
    fn turn_away(&mut self) {
        if self.next.take().is_some() {
            let why =
                "turned away: the device has a monitor already, and serves one machine at a time";
            self.say(&fault("second_monitor", why).into());
        }
    }

    /// Takes a message, if there is one, and looks after the queues.
    fn turn<D: Device>(&mut self, session: &mut Session<'_, D>) -> Turn {
        let mut waited = [PollFd::new(session.as_fd(), PollFlags::POLLIN)];
        let readable = matches!(poll(&mut waited, PollTimeout::ZERO), Ok(1..));
        let turned = if readable { session.turn() } else { Ok(true) };
        for error in session.tend() {
            self.say(&error);
        }
        self.show(session.running());
        match turned {
            Ok(true) if readable => Turn::Worked,
            Ok(true) => Turn::Quiet,
            Ok(false) => Turn::Over,
            Err(error) => {
                self.say(&error);
                Turn::Over
            }
        }
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
            self.next = None;
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
