//! What a backend does next, from what it sees.
//!
//! A pure function: the store is read anew after each change, since watches coalesce and frontends
//! skip states, and nothing is concluded from how things came to be so.
//!
//! ```text
//!   Initialising --offer--> InitWait --connect--> Connected --------> Closing --> Closed
//!                              ^                      |  frontend's      frontend's |
//!                              |                      |  5 or ours       6, or gone |
//!                              +----- frontend 1 -----+                             |
//!                              +------------ frontend 1, while online --------------+
//!
//!   Connected --frontend 7, reconfigure--> Reconfigured --frontend 4--> Connected
//! ```
//!
//! Source: state diagram of `io/blkif.h`, RELEASE-4.17. The second line is of network devices:
//! Linux's netfront goes to Reconfiguring to have `xdp-headroom` read, and waits for Reconfigured.

use crate::xenbus::State;

/// What is seen of a device at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Our state, as the store has it.
    pub own: State,
    /// The frontend's.
    pub peer: State,
    /// Whether the device is to stay when the frontend closes it.
    pub online: bool,
    /// Whether we hold rings of the frontend's.
    pub attached: bool,
    /// Whether the frontend has to begin anew before it is served: it broke the protocol, or has
    /// rings of which we do not know what is owed on them.
    pub barred: bool,
    /// Whether nothing else has to be there before a frontend may connect: no script that prepares
    /// the device is awaited.
    pub ready: bool,
    /// Whether our predecessor at this device answered all that it had taken and left the rings as
    /// they are, for us to go on with.
    pub paused: bool,
    /// Whether the frontend may have its keys read again while it is connected.
    pub reconfigures: bool,
    /// Whether the frontend's keys are all there when it is Initialised.
    pub connects_early: bool,
}

/// What to do about it. Afterwards it is worth looking again, except after [`Step::Wait`] and
/// [`Step::Leave`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until something changes.
    Wait,
    /// Publish what we can do, and InitWait.
    Offer,
    /// Read the frontend's keys, take its rings, and publish Connected.
    Connect,
    /// Finish and answer what is under way, and let the rings go.
    Detach,
    /// Read the keys again that a connected frontend may change, and say Reconfigured.
    Reconfigure,
    /// Say what the device is like, and Connected again: the frontend has seen Reconfigured.
    Resume,
    /// Say Closing: the frontend is closing.
    Closing,
    /// Say Closed: nothing of the frontend's is held.
    Closed,
    /// There is nothing left to do at this device.
    Leave,
}

/// The next step.
#[must_use]
pub fn next(seen: Seen) -> Step {
    use State::{
        Closed, Closing, Connected, InitWait, Initialised, Initialising, Reconfigured,
        Reconfiguring, Unknown,
    };
    let Seen { own, peer, online, attached, barred, ready, paused, reconfigures, .. } = seen;
    match (own, peer) {
        // The toolstack removed our directory, or set our state back, while rings are held.
        (Unknown | Closed | Initialising | InitWait, _) if attached => Step::Detach,
        (Unknown, _) => Step::Leave,

        // The frontend is gone or down: it neither sends nor awaits anything any more.
        (_, Unknown | Closed) if attached => Step::Detach,
        // It began anew without having closed.
        (_, Initialising | InitWait) if attached => Step::Detach,
        // It wants what is under way finished, and then to close.
        (Connected | Reconfigured, Closing) => Step::Closing,
        (_, Closing) if attached => Step::Wait,
        (InitWait | Initialised | Initialising, Closing) => Step::Closing,

        // Somebody asks us to leave: the frontend does the next step, or is not there to do it.
        (Closing, _) if attached => Step::Wait,
        (Closing, _) => Step::Closed,

        (Connected, Reconfiguring) if attached && reconfigures => Step::Reconfigure,
        (Reconfigured, Connected) if attached && reconfigures => Step::Resume,
        (Connected | Initialised | Reconfiguring | Reconfigured, _) if attached => Step::Wait,

        (Closed, _) if !online => Step::Leave,
        (Closed, Initialising | InitWait) => Step::Offer,
        // It began anew before it could see that we were closed, with what we offered before.
        (Closed, Initialised | Connected) if !barred => Step::Offer,
        (Closed, _) => Step::Wait,

        (_, Unknown) => Step::Closed,
        (_, Closed) => Step::Closed,
        (Initialising, _) => Step::Offer,
        // Connected to what was here before us, and yet to see that we are another.
        (InitWait, Connected) if barred => Step::Wait,
        (InitWait, Initialised) if ready && seen.connects_early => Step::Connect,
        (InitWait, Connected) if ready => Step::Connect,
        (InitWait, _) => Step::Wait,
        (Connected, Connected) if paused => Step::Connect,
        // The store says that we are connected and we are not: we were restarted.
        (Connected | Initialised | Reconfiguring | Reconfigured, _) => Step::Offer,
    }
}

#[cfg(test)]
mod tests {
    use super::State::{
        Closed, Closing, Connected, InitWait, Initialised, Initialising, Reconfigured,
        Reconfiguring, Unknown,
    };
    use super::*;

    fn seen(own: State, peer: State, online: bool, attached: bool) -> Seen {
        let (barred, ready, paused, reconfigures, connects_early) =
            (false, true, false, false, true);
        Seen { own, peer, online, attached, barred, ready, paused, reconfigures, connects_early }
    }

    fn at(own: State, peer: State, online: bool, attached: bool) -> Step {
        next(seen(own, peer, online, attached))
    }

    /// Does what the steps say until there is nothing to do.
    fn settle(own: &mut State, peer: State, online: bool, attached: &mut bool) -> Vec<Step> {
        let mut done = Vec::new();
        loop {
            // Where the peer never is Reconfiguring, it makes no difference that it might be.
            let step = next(Seen { reconfigures: true, ..seen(*own, peer, online, *attached) });
            done.push(step);
            match step {
                Step::Wait | Step::Leave => return done,
                Step::Offer => *own = InitWait,
                Step::Connect => (*own, *attached) = (Connected, true),
                Step::Detach => *attached = false,
                Step::Closing => *own = Closing,
                Step::Closed => *own = Closed,
                Step::Reconfigure => *own = Reconfigured,
                Step::Resume => *own = Connected,
            }
            assert!(done.len() < 8, "never settles: {done:?}");
        }
    }

    #[test]
    fn connect_close_and_connect_again() {
        let (mut own, mut attached) = (Initialising, false);
        for _ in 0..3 {
            for (peer, then) in [
                (Initialising, InitWait),
                (Initialised, Connected),
                (Connected, Connected),
                (Closing, Closing),
                (Closed, Closed),
            ] {
                settle(&mut own, peer, true, &mut attached);
                assert_eq!(own, then, "frontend {peer}");
                assert_eq!(attached, matches!(own, Connected | Closing));
            }
        }
    }

    #[test]
    fn skipped_states_end_in_the_same_place() {
        for peer in [Initialised, Connected] {
            let (mut own, mut attached) = (Initialising, false);
            settle(&mut own, peer, true, &mut attached);
            assert_eq!((own, attached), (Connected, true));
        }
        // Closed and begun anew before we looked.
        let (mut own, mut attached) = (Connected, true);
        let steps = settle(&mut own, Initialising, true, &mut attached);
        assert_eq!(steps, [Step::Detach, Step::Offer, Step::Wait]);
        assert_eq!(own, InitWait);
    }

    #[test]
    fn who_begins_anew_while_we_close_is_served() {
        // Linux's blkfront, bound again at once, goes on from our old Connected to its own, and waits
        // for its first reads.
        for peer in [Initialised, Connected] {
            let (mut own, mut attached) = (Closed, false);
            let steps = settle(&mut own, peer, true, &mut attached);
            assert_eq!(steps, [Step::Offer, Step::Connect, Step::Wait], "{peer}");
            assert_eq!((own, attached), (Connected, true));
        }
    }

    #[test]
    fn who_broke_the_protocol_has_to_begin_anew() {
        let barred = |peer| next(Seen { barred: true, ..seen(Closed, peer, true, false) });
        for peer in [Initialised, Connected, Closing, Closed, Unknown] {
            assert_eq!(barred(peer), Step::Wait, "{peer}");
        }
        assert_eq!(barred(Initialising), Step::Offer);
    }

    #[test]
    fn a_restarted_backend_asks_for_a_new_connection() {
        for peer in [Initialising, Initialised, Connected] {
            assert_eq!(at(Connected, peer, true, false), Step::Offer);
        }
    }

    #[test]
    fn rings_that_were_left_in_disorder_are_not_taken_up() {
        let barred = |peer| next(Seen { barred: true, ..seen(InitWait, peer, true, false) });
        assert_eq!(barred(Connected), Step::Wait);
        assert_eq!(barred(Initialised), Step::Connect);
    }

    #[test]
    fn rings_that_were_left_in_order_are_taken_up_again() {
        let paused = |peer| next(Seen { paused: true, ..seen(Connected, peer, true, false) });
        assert_eq!(paused(Connected), Step::Connect);
        assert_eq!(paused(Closing), Step::Closing);
        for peer in [Initialising, InitWait, Initialised] {
            assert_eq!(paused(peer), Step::Offer, "{peer}");
        }
        for peer in [Closed, Unknown] {
            assert_eq!(paused(peer), Step::Closed, "{peer}");
        }
    }

    #[test]
    fn a_frontend_waits_for_the_script_as_we_do() {
        for peer in [Initialised, Connected] {
            let unready = Seen { ready: false, ..seen(InitWait, peer, true, false) };
            assert_eq!(next(unready), Step::Wait, "{peer}");
            assert_eq!(next(Seen { ready: true, ..unready }), Step::Connect, "{peer}");
        }
    }

    #[test]
    fn initialised_is_enough_for_some_kinds_of_device_only() {
        for (connects_early, step) in [(true, Step::Connect), (false, Step::Wait)] {
            let at = |peer| next(Seen { connects_early, ..seen(InitWait, peer, true, false) });
            assert_eq!(at(Initialised), step);
            assert_eq!(at(Connected), Step::Connect);
        }
    }

    #[test]
    fn a_removed_device_is_let_go() {
        for peer in State::ALL {
            assert_eq!(at(Unknown, peer, true, true), Step::Detach);
            assert_eq!(at(Unknown, peer, true, false), Step::Leave);
        }
    }

    #[test]
    fn a_connected_frontend_may_reconfigure_where_its_kind_of_device_can() {
        for reconfigures in [false, true] {
            let at = |own, peer| next(Seen { reconfigures, ..seen(own, peer, true, true) });
            let or_wait = |step| if reconfigures { step } else { Step::Wait };
            assert_eq!(at(Connected, Reconfiguring), or_wait(Step::Reconfigure));
            assert_eq!(at(Reconfigured, Reconfiguring), Step::Wait);
            assert_eq!(at(Reconfigured, Connected), or_wait(Step::Resume));
            assert_eq!(at(Reconfigured, Closing), Step::Closing);
        }
    }

    #[test]
    fn asked_to_leave_it_serves_until_the_frontend_lets_go() {
        let (mut own, mut attached) = (Closing, true);
        assert_eq!(settle(&mut own, Connected, false, &mut attached), [Step::Wait]);
        assert_eq!(settle(&mut own, Closing, false, &mut attached), [Step::Wait]);
        let steps = settle(&mut own, Closed, false, &mut attached);
        assert_eq!(steps, [Step::Detach, Step::Closed, Step::Leave]);
    }

    #[test]
    fn from_everywhere_it_settles_and_holds_no_dead_frontends_rings() {
        for own in State::ALL {
            for peer in State::ALL {
                for online in [false, true] {
                    for attached in [false, true] {
                        let (mut own, mut attached) = (own, attached);
                        settle(&mut own, peer, online, &mut attached);
                        if matches!(peer, Unknown | Closed) || own == Unknown {
                            assert!(!attached, "own {own}, peer {peer}");
                        }
                        if attached {
                            assert!(!matches!(own, Closed | Unknown | InitWait | Initialising));
                        }
                    }
                }
            }
        }
    }
}
