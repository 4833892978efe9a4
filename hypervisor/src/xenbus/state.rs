//! How far one end of a device has come.
//!
//! Source: `enum xenbus_state`, `io/xenbus.h`, RELEASE-4.17; who may go where: the state diagram of
//! `io/blkif.h`, which lets either end skip states that it has no use for.

use core::fmt;

/// Which end of a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum End {
    /// The end that uses the device.
    Front,
    /// The end that serves it.
    Back,
}

/// The state of one end (`XenbusState*`, io/xenbus.h).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// There is no such end (any more): its `state` is missing or no number of a state.
    Unknown,
    /// The toolstack made it; its driver has not answered yet.
    Initialising,
    /// Features are published; the peer's information, or a hotplug script, is awaited.
    InitWait,
    /// Transport parameters are published; a connection from the peer is awaited.
    Initialised,
    /// In use.
    Connected,
    /// Coming down, by an error or because it is being unplugged.
    Closing,
    /// Down: nothing of the peer's is in use any more.
    Closed,
    /// Being reconfigured.
    Reconfiguring,
    /// Reconfigured.
    Reconfigured,
}

impl State {
    /// All states, by number.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Initialising,
        Self::InitWait,
        Self::Initialised,
        Self::Connected,
        Self::Closing,
        Self::Closed,
        Self::Reconfiguring,
        Self::Reconfigured,
    ];

    /// The number that stands for it in the store.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Initialising => 1,
            Self::InitWait => 2,
            Self::Initialised => 3,
            Self::Connected => 4,
            Self::Closing => 5,
            Self::Closed => 6,
            Self::Reconfiguring => 7,
            Self::Reconfigured => 8,
        }
    }

    /// What a `state` key's value stands for. A value that is no state's number is
    /// [`State::Unknown`], as a missing key is: there is nobody there who can be talked to.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        match value {
            [digit] => Self::ALL.into_iter().find(|s| *digit == s.digit()).unwrap_or(Self::Unknown),
            _ => Self::Unknown,
        }
    }

    /// The number as the store's one character.
    #[must_use]
    pub fn digit(self) -> u8 {
        b'0'.saturating_add(self.number())
    }

    /// Whether `end` itself may go from here to `next`. What a toolstack may do to it, make it and
    /// remove it, is not asked here.
    #[must_use]
    pub fn may_become(self, end: End, next: Self) -> bool {
        use State::{
            Closed, Closing, Connected, InitWait, Initialised, Initialising, Reconfigured,
            Reconfiguring, Unknown,
        };
        match (end, self, next) {
            // An end that is gone stays gone until the toolstack makes it anew.
            (_, Unknown, _) | (_, _, Unknown) => false,
            // Anything may be given up at any time; what is down does not begin to come down.
            (_, Closed, Closing) => false,
            (_, _, Closing | Closed) => true,
            (End::Back, Initialising, InitWait | Initialised | Connected)
            | (End::Back, InitWait, Initialised | Connected)
            | (End::Back, Initialised, Connected)
            // Connected again announces a new size (blkif).
            // and Reconfigured answers a frontend that is Reconfiguring (netif).
            | (End::Back, Connected, Connected | Reconfiguring | Reconfigured)
            // A backend that lost its connection by a restart asks for a new one.
            | (End::Back, Initialised | Connected | Reconfigured | Closing, InitWait)
            | (End::Back, Closed, Initialising | InitWait) => true,
            (End::Front, Initialising, InitWait | Initialised | Connected)
            | (End::Front, InitWait, Initialised | Connected)
            | (End::Front, Initialised, Initialised | Connected)
            // Resume: new rings for the same device.
            | (End::Front, Connected, Initialising | Initialised | Connected | Reconfiguring)
            | (End::Front, Initialised | Closing | Closed, Initialising) => true,
            (_, Reconfiguring, Reconfigured) | (_, Reconfigured, Connected) => true,
            _ => false,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Initialising => "initialising",
            Self::InitWait => "waiting",
            Self::Initialised => "initialised",
            Self::Connected => "connected",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Reconfiguring => "reconfiguring",
            Self::Reconfigured => "reconfigured",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_headers() {
        // enum xenbus_state, io/xenbus.h, RELEASE-4.17
        let header = [
            (State::Unknown, 0),
            (State::Initialising, 1),
            (State::InitWait, 2),
            (State::Initialised, 3),
            (State::Connected, 4),
            (State::Closing, 5),
            (State::Closed, 6),
            (State::Reconfiguring, 7),
            (State::Reconfigured, 8),
        ];
        for (state, number) in header {
            assert_eq!(state.number(), number);
            assert_eq!(State::parse(&[state.digit()]), state);
            assert_eq!(State::ALL[usize::from(number)], state);
        }
    }

    #[test]
    fn what_is_no_state_is_unknown() {
        for value in [&b""[..], b"9", b"10", b"44", b"-1", b" 4", b"4\0", b"\xff", b"four"] {
            assert_eq!(State::parse(value), State::Unknown, "{value:?}");
        }
    }

    #[test]
    fn both_ends_can_walk_the_diagram_and_round_it_again() {
        use State::{Closed, Closing, Connected, InitWait, Initialised, Initialising};
        let back = [Initialising, InitWait, Connected, Connected, Closing, Closed, InitWait];
        let front = [Initialising, Initialised, Connected, Closing, Closed, Initialising];
        for (end, walk) in [(End::Back, &back[..]), (End::Front, &front[..])] {
            for pair in walk.windows(2) {
                assert!(pair[0].may_become(end, pair[1]), "{end:?} {} to {}", pair[0], pair[1]);
            }
        }
    }

    #[test]
    fn nobody_comes_back_from_nothing_or_goes_there() {
        for end in [End::Front, End::Back] {
            for state in State::ALL {
                assert!(!State::Unknown.may_become(end, state));
                assert!(!state.may_become(end, State::Unknown));
                if state != State::Unknown {
                    assert!(state.may_become(end, State::Closed));
                }
            }
            assert!(!State::Closed.may_become(end, State::Connected));
            assert!(!State::Closed.may_become(end, State::Closing));
        }
    }
}
