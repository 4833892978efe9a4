//! A process for each device: started, missed, started again, ended.
//!
//! A process that ends with success is done with its device, until that is made anew. One that
//! fails is started again after a while, which doubles up to half a minute each time that it did not
//! hold out for a minute. One that was killed while it served is started again at once: a guest
//! waits. One that dies of a signal as soon as it is started, again and again, is given up, as what it is given to
//! do may be what kills it. Units: real time.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::devices::Standing;
use crate::backend::Spot;

/// How long to wait after the first failure.
const SHORTEST: Duration = Duration::from_millis(100);
/// How long to wait at most.
const LONGEST: Duration = Duration::from_secs(30);
/// A process that held out for so long did not fail at once.
const HELD_OUT: Duration = Duration::from_secs(60);
/// A process that is killed sooner than this was not killed while it served.
const AT_ONCE: Duration = Duration::from_millis(50);
/// How often in a row a process may be killed at once before it is given up.
const DEATHS: u32 = 8;
/// How often processes are looked for that a former watcher started: nobody tells of their end.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Starts processes, and knows of those that others started.
pub trait Starter {
    /// Starts one that serves the device at `spot`, which nobody has served since `since` where one
    /// did before.
    ///
    /// # Errors
    ///
    /// The host refuses.
    fn start(&self, spot: &Spot, since: Option<Instant>) -> io::Result<Child>;

    /// Whether a process that we did not start serves the device at `spot`.
    fn is_served(&self, spot: &Spot) -> bool;

    /// Whether one that is started takes the device over from a process that serves it.
    fn takes_over(&self) -> bool {
        false
    }
}

/// The exit status of a process that left its device in order, for another one to go on with at once.
pub const HANDED_OVER: u8 = 75;

/// Devices that are given up and why, for others to look at.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<BTreeMap<Spot, String>>>);

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Spot, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that there are now.
    #[must_use]
    pub fn given_up(&self) -> Vec<(Spot, String)> {
        self.lock().iter().map(|(spot, why)| (spot.clone(), why.clone())).collect()
    }
}

/// How it is with a device.
#[derive(Debug)]
enum Kept {
    /// A process of ours serves it.
    Served { child: Child, since: Instant, failures: Failures },
    /// A process of a former watcher's serves it.
    Elsewhere,
    /// Its process failed.
    Resting { since: Instant, until: Instant, failures: Failures },
    /// Its process is done with it.
    Done,
    /// It was given up.
    GivenUp,
}

/// What became of the processes before.
#[derive(Clone, Copy, Debug)]
struct Failures {
    /// How long to wait after the next.
    rest: Duration,
    /// How many were killed at once, one after the other.
    deaths: u32,
}

impl Failures {
    const NONE: Self = Self { rest: SHORTEST, deaths: 0 };

    /// How it is after one that lived for `lived`, and was or was not `killed`; and how long to wait.
    fn after(self, lived: Duration, killed: bool) -> (Self, Duration) {
        if killed && lived >= AT_ONCE {
            return (Self::NONE, Duration::ZERO);
        }
        let rest = if lived >= HELD_OUT { SHORTEST } else { self.rest };
        let deaths = if killed { self.deaths.saturating_add(1) } else { 0 };
        (Self { rest: rest.saturating_mul(2).min(LONGEST), deaths }, rest)
    }
}

/// All devices and their processes.
#[derive(Debug)]
pub struct Keeper<T> {
    starter: T,
    kept: BTreeMap<Spot, Kept>,
    board: Board,
}

impl<T: Starter> Keeper<T> {
    /// One that keeps nothing yet.
    pub fn new(starter: T) -> Self {
        Self { starter, kept: BTreeMap::new(), board: Board::default() }
    }

    /// Where it is said which devices were given up.
    #[must_use]
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Whether there is a process for the device at `spot`.
    #[must_use]
    pub fn serves(&self, spot: &Spot) -> bool {
        matches!(self.kept.get(spot), Some(Kept::Served { .. } | Kept::Elsewhere))
    }

    /// Whether processes of ours run.
    #[must_use]
    pub fn has_children(&self) -> bool {
        self.kept.values().any(|kept| matches!(kept, Kept::Served { .. }))
    }

    /// Takes note of processes that ended.
    pub fn reap(&mut self, now: Instant) {
        for (spot, kept) in &mut self.kept {
            let Kept::Served { child, since, failures } = kept else { continue };
            let ended = match child.try_wait() {
                Ok(None) => continue,
                Ok(Some(status)) => Some(status),
                // It was ours and cannot be asked for: it is gone.
                Err(_) => None,
            };
            if ended.is_some_and(|status| status.success()) {
                *kept = Kept::Done;
                continue;
            }
            if ended.and_then(|status| status.code()) == Some(HANDED_OVER.into()) {
                tracing::info!(device = %spot, "its process left it for another");
                *kept = resting(now, now, Duration::ZERO, Failures::NONE);
                continue;
            }
            let how = ended.map_or("its end was missed".to_owned(), |s: ExitStatus| s.to_string());
            let killed = ended.is_some_and(|status| status.signal().is_some());
            let (failures, rest) = failures.after(now.saturating_duration_since(*since), killed);
            if failures.deaths >= DEATHS {
                tracing::error!(device = %spot, "its process died at once ({how}) {DEATHS} times in a row; it is \
                    given up until the device is made anew or this watcher is restarted");
                let why = format!("its process died at once {DEATHS} times in a row: {how}");
                self.board.lock().insert(spot.clone(), why);
                *kept = Kept::GivenUp;
                continue;
            }
            tracing::warn!(device = %spot, "its process failed ({how}); next try in {rest:?}");
            *kept = resting(now, now, rest, failures);
        }
    }

    /// Sees to it that each of `standing` has a process.
    pub fn look(&mut self, standing: &[Standing], now: Instant) {
        // A process whose device is gone ends by itself.
        let stands = |spot: &Spot| standing.iter().any(|there| there.spot == *spot);
        self.kept.retain(|spot, kept| matches!(kept, Kept::Served { .. }) || stands(spot));
        self.board.lock().retain(|spot, _| stands(spot));
        for Standing { spot, fresh } in standing {
            let (failures, since) = match self.kept.get(spot) {
                None => (Failures::NONE, None),
                Some(Kept::Served { .. }) => continue,
                Some(Kept::Elsewhere) if self.starter.is_served(spot) => continue,
                Some(Kept::Resting { until, .. }) if *until > now => continue,
                Some(Kept::Resting { failures, since, .. }) => (*failures, Some(*since)),
                Some(Kept::Done | Kept::GivenUp) if !fresh => continue,
                Some(Kept::Done | Kept::GivenUp | Kept::Elsewhere) => (Failures::NONE, None),
            };
            self.board.lock().remove(spot);
            let kept = self.start(spot, now, failures, since);
            self.kept.insert(spot.clone(), kept);
        }
    }

    fn start(&self, spot: &Spot, now: Instant, failures: Failures, since: Option<Instant>) -> Kept {
        if !self.starter.takes_over() && self.starter.is_served(spot) {
            tracing::info!(device = %spot, "is served already");
            return Kept::Elsewhere;
        }
        match self.starter.start(spot, since) {
            Ok(child) => {
                tracing::debug!(device = %spot, pid = child.id(), "process started");
                Kept::Served { child, since: now, failures }
            }
            Err(error) => {
                tracing::warn!(device = %spot, "cannot start a process: {error}");
                let (failures, rest) = failures.after(Duration::ZERO, false);
                resting(since.unwrap_or(now), now, rest, failures)
            }
        }
    }

    /// When to look again though nothing changed.
    #[must_use]
    pub fn next_look(&self) -> Option<Instant> {
        let times = self.kept.values().filter_map(|kept| match kept {
            Kept::Resting { until, .. } => Some(*until),
            Kept::Elsewhere => Instant::now().checked_add(LOOK_AGAIN),
            Kept::Served { .. } | Kept::Done | Kept::GivenUp => None,
        });
        times.min()
    }

    /// Has all processes end, in order or, `by_force`, at once.
    pub fn end(&self, by_force: bool) {
        let signal = if by_force { Signal::SIGKILL } else { Signal::SIGTERM };
        for kept in self.kept.values() {
            if let Kept::Served { child, .. } = kept
                && let Ok(pid) = i32::try_from(child.id())
            {
                // It was not waited for yet, so that the number is still its own.
                let _ = kill(Pid::from_raw(pid), signal);
            }
        }
    }
}

fn resting(since: Instant, now: Instant, rest: Duration, failures: Failures) -> Kept {
    let until = now.checked_add(rest).unwrap_or(now);
    Kept::Resting { since, until, failures }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::process::Command;

    use super::*;

    /// Starts what it is told to, and notes for which device.
    #[derive(Default)]
    struct Script {
        program: RefCell<Vec<&'static str>>,
        started: RefCell<Vec<String>>,
        elsewhere: Cell<bool>,
    }

    impl Starter for &Script {
        fn start(&self, spot: &Spot, _: Option<Instant>) -> io::Result<Child> {
            self.started.borrow_mut().push(spot.name());
            let program = self.program.borrow();
            Command::new(program[0]).args(&program[1..]).spawn()
        }

        fn is_served(&self, _: &Spot) -> bool {
            self.elsewhere.get()
        }
    }

    fn there(number: u32, fresh: bool) -> Standing {
        let spot = format!("/local/domain/0/backend/vbd3/5/{number}").parse().unwrap();
        Standing { spot, fresh }
    }

    fn all_ended(keeper: &mut Keeper<&Script>, now: Instant) {
        for _ in 0..6000 {
            keeper.reap(now);
            if !keeper.has_children() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("a process did not end");
    }

    #[test]
    fn each_device_has_one_process_until_that_is_done() {
        let script = Script::default();
        *script.program.borrow_mut() = vec!["sleep", "600"];
        let mut keeper = Keeper::new(&script);
        let now = Instant::now();
        for _ in 0..3 {
            keeper.look(&[there(1, true), there(2, false)], now);
        }
        assert_eq!(*script.started.borrow(), ["vbd3-5-1", "vbd3-5-2"]);
        assert_eq!(keeper.next_look(), None, "nothing is to be done");
        keeper.end(false);
        all_ended(&mut keeper, now);
    }

    #[test]
    fn one_that_fails_rests_longer_each_time_and_then_no_longer() {
        let script = Script::default();
        *script.program.borrow_mut() = vec!["false"];
        let mut keeper = Keeper::new(&script);
        let mut now = Instant::now();
        let mut rests = Vec::new();
        for _ in 0..12 {
            keeper.look(&[there(1, false)], now);
            all_ended(&mut keeper, now);
            // Too early: nothing is started.
            keeper.look(&[there(1, false)], now);
            assert!(!keeper.has_children());
            let then = keeper.next_look().unwrap();
            rests.push(then - now);
            now = then;
        }
        assert_eq!(script.started.borrow().len(), 12);
        assert_eq!(rests[0], SHORTEST);
        assert!(rests.windows(2).all(|two| two[1] == (two[0] * 2).min(LONGEST)), "{rests:?}");
        assert_eq!(rests[11], LONGEST);
        // Having held out, it begins anew.
        *script.program.borrow_mut() = vec!["false"];
        keeper.look(&[there(1, false)], now);
        now += HELD_OUT;
        all_ended(&mut keeper, now);
        assert_eq!(keeper.next_look(), Some(now + SHORTEST));
        // A device that is gone is nobody's any more.
        keeper.look(&[], now);
        assert_eq!(keeper.next_look(), None);
    }

    /// Starts a process for a device and has it killed when it has lived for `lived`.
    fn lives(keeper: &mut Keeper<&Script>, now: Instant, lived: Duration) {
        keeper.look(&[there(1, false)], now);
        assert!(keeper.has_children());
        keeper.end(true);
        all_ended(keeper, now + lived);
    }

    #[test]
    fn one_that_is_killed_while_it_serves_is_missed_at_once() {
        let script = Script::default();
        *script.program.borrow_mut() = vec!["sleep", "600"];
        let mut keeper = Keeper::new(&script);
        let mut now = Instant::now();
        for _ in 0..50 {
            lives(&mut keeper, now, AT_ONCE);
            now += AT_ONCE;
            assert_eq!(keeper.next_look(), Some(now));
        }
        assert_eq!(script.started.borrow().len(), 50);
    }

    #[test]
    fn one_that_left_its_device_for_another_is_started_again_at_once() {
        let script = Script::default();
        *script.program.borrow_mut() = vec!["sh", "-c", "exit 75"];
        let mut keeper = Keeper::new(&script);
        let now = Instant::now();
        for started in 1..20 {
            keeper.look(&[there(1, false)], now);
            all_ended(&mut keeper, now);
            assert_eq!((script.started.borrow().len(), keeper.next_look()), (started, Some(now)));
        }
    }

    #[test]
    fn one_that_dies_at_once_again_and_again_is_given_up() {
        let script = Script::default();
        *script.program.borrow_mut() = vec!["sleep", "600"];
        let mut keeper = Keeper::new(&script);
        let mut now = Instant::now();
        for death in 1..DEATHS {
            lives(&mut keeper, now, Duration::ZERO);
            let then = keeper.next_look().unwrap();
            assert_eq!(then - now, SHORTEST * (1 << (death - 1)));
            now = then;
        }
        // Once it has served, it counts anew.
        lives(&mut keeper, now, AT_ONCE);
        now += AT_ONCE;
        for _ in 0..DEATHS {
            lives(&mut keeper, now, Duration::ZERO);
            now = keeper.next_look().unwrap_or(now);
        }
        let started = script.started.borrow().len();
        let given_up = keeper.board().given_up();
        assert!(given_up[0].1.contains("8 times in a row"), "{given_up:?}");
        keeper.look(&[there(1, false)], now + LONGEST);
        assert_eq!((script.started.borrow().len(), keeper.next_look()), (started, None));
        keeper.look(&[there(1, true)], now);
        assert_eq!(script.started.borrow().len(), started + 1, "made anew");
        assert!(keeper.board().given_up().is_empty());
        keeper.end(true);
        all_ended(&mut keeper, now);
    }

    #[test]
    fn one_that_is_done_is_started_again_for_a_new_device_only() {
        let script = Script::default();
        *script.program.borrow_mut() = vec!["true"];
        let mut keeper = Keeper::new(&script);
        let now = Instant::now();
        keeper.look(&[there(1, true)], now);
        all_ended(&mut keeper, now);
        keeper.look(&[there(1, false)], now);
        assert_eq!(script.started.borrow().len(), 1);
        assert_eq!(keeper.next_look(), None);
        keeper.look(&[there(1, true)], now);
        assert_eq!(script.started.borrow().len(), 2);
        all_ended(&mut keeper, now);
    }

    #[test]
    fn what_is_served_by_others_is_theirs_until_they_end() {
        let script = Script::default();
        *script.program.borrow_mut() = vec!["true"];
        script.elsewhere.set(true);
        let mut keeper = Keeper::new(&script);
        let now = Instant::now();
        keeper.look(&[there(1, false)], now);
        keeper.look(&[there(1, false)], now);
        assert!(script.started.borrow().is_empty());
        assert!(keeper.next_look().is_some(), "their end is told by nobody");
        script.elsewhere.set(false);
        keeper.look(&[there(1, false)], now);
        assert_eq!(script.started.borrow().len(), 1);
        all_ended(&mut keeper, now);
    }
}
