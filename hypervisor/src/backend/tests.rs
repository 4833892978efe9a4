//! A kind of device that has no rings and changes while it is in use.

use std::sync::{Arc, Mutex, mpsc::sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::history::Words;
use super::ration::Ration;
use super::*;
use crate::embedded::Domain;
use crate::store::Transaction;
use crate::testing::Machine;
use crate::xenbus::{End, Keys, Pair, State};

const PATIENCE: Duration = Duration::from_secs(60);
const TOY: &Kind = &Kind {
    frontend: "toy",
    noun: "toy",
    option: "--number",
    label: |number| Ok(number.to_string()),
    detach: "xl toy-detach",
    script: |_, name| name == "toy-domkit",
    live: &["rate"],
    wishes: &[],
    reconfigures: true,
    connects_early: true,
    resumes: false,
};

/// What the toy was told.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    rate: String,
    headroom: u32,
    colour: String,
    ring: Option<u32>,
    connections: u32,
}

#[derive(Clone, Default)]
struct Toy(Arc<Mutex<Told>>);

impl Toy {
    fn told(&self) -> Told {
        self.0.lock().unwrap().clone()
    }
}

#[derive(Clone)]
struct Colours(u32);

impl Offer for Colours {
    fn keys(&self) -> Vec<Key> {
        vec![("colours", self.0.to_string())]
    }

    fn after<S: Store + ?Sized>(&self, seat: &Seat, store: &S) -> Result<Self, Error> {
        let own = Keys::new(store, Transaction::NONE, &seat.own, seat.peer);
        Ok(Self(own.number("colours", 0..=9)?.unwrap_or(0).max(self.0)))
    }
}

impl Service<Domain> for Toy {
    const KIND: &'static Kind = TOY;

    type Offer = Colours;
    type Running = Toy;
    type Change = String;
    type Changed = usize;

    fn connect<S: Store + ?Sized>(
        &self,
        _: &Domain,
        seat: &Seat,
        store: &S,
        offer: &Colours,
        _: Waker,
    ) -> Result<Toy, Error> {
        let keys = seat.peer_keys(store, Transaction::NONE);
        let _ = keys.needed("colour", 0..=offer.0)?;
        let mut told = self.0.lock().unwrap();
        told.ring = keys.number("ring", 0..=9)?;
        told.connections += 1;
        drop(told);
        Ok(self.clone())
    }

    fn describe(&self, _: &Colours) -> Vec<Key> {
        vec![("colour", self.told().colour)]
    }

    fn change(&self, colour: String) -> Result<usize, Error> {
        if colour.is_empty() {
            return Err(ConfigError::new("colour", colour, "is none").into());
        }
        let length = colour.len();
        self.0.lock().unwrap().colour = colour;
        Ok(length)
    }
}

impl Running for Toy {
    fn failed(&mut self) -> Option<Error> {
        None
    }

    fn wake(&self) {}

    fn reread<S: Store + ?Sized>(&mut self, seat: &Seat, store: &S) -> Result<(), Error> {
        let rate = hotplug::own(seat, store, "rate")?;
        self.0.lock().unwrap().rate = rate.unwrap_or_default();
        Ok(())
    }

    fn reconfigure<S: Store + ?Sized>(&mut self, seat: &Seat, store: &S) -> Result<(), Error> {
        let keys = seat.peer_keys(store, Transaction::NONE);
        let headroom = keys.number("headroom", 0..=256)?;
        self.0.lock().unwrap().headroom = headroom.unwrap_or(0);
        Ok(())
    }

    fn is_current<S: Store + ?Sized>(&self, seat: &Seat, store: &S) -> Result<bool, Error> {
        let ring = seat.peer_keys(store, Transaction::NONE).number("ring", 0..=9)?;
        Ok(ring == self.told().ring)
    }

    fn finish(self) {}
}

/// A toy of a guest's, and what is said of it in the store.
struct Scene {
    _machine: Machine,
    own: Domain,
    guest: Domain,
    toolstack: crate::xenstore::Client,
    pair: Pair,
}

impl Scene {
    fn new() -> Self {
        let machine = Machine::new();
        let (own, guest) = (machine.domain("backend"), machine.domain("guest"));
        let toolstack = machine.control_store();
        let pair = Pair::new("toy", 7, guest.id(), own.id());
        pair.create(&toolstack, &[], &[("rate", "1".to_owned())]).unwrap();
        Self { _machine: machine, own, guest, toolstack, pair }
    }

    fn say(&self, keys: &[(&str, &str)], state: State) {
        for (key, value) in keys {
            let path = format!("{}/{key}", self.pair.front.directory);
            self.guest.write(Transaction::NONE, &path, value.as_bytes()).unwrap();
        }
        let path = format!("{}/state", self.pair.front.directory);
        self.guest.write(Transaction::NONE, &path, &[state.digit()]).unwrap();
    }

    fn state(&self) -> State {
        self.pair.seat(End::Front).peer_state(&self.guest).unwrap()
    }

    fn own(&self, key: &str) -> Option<String> {
        hotplug::own(&self.pair.seat(End::Back), &self.own, key).unwrap()
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "never came true: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_frontend_has_its_keys_read_again_without_a_new_connection() {
    let scene = Scene::new();
    let (toy, mailbox) = (Toy::default(), Mailbox::<()>::new().unwrap());
    let mut backend =
        Backend::<Domain, Toy>::new(&scene.pair, Colours(3), mailbox.waker(), History::default());
    let mut settle = || {
        let settled = backend.settle(&scene.own, &scene.own, &toy).unwrap();
        assert_eq!(settled, Settled::Waiting);
        backend.history.clone()
    };
    settle();
    assert_eq!((scene.state(), scene.own("colours").as_deref()), (State::InitWait, Some("3")));
    scene.say(&[("colour", "3")], State::Initialised);
    settle();
    assert_eq!(scene.state(), State::Connected);
    for headroom in ["192", "0"] {
        scene.say(&[("headroom", headroom)], State::Reconfiguring);
        settle();
        assert_eq!(scene.state(), State::Reconfigured);
        assert_eq!(toy.told().headroom.to_string(), headroom);
        // It went on and came back before we looked.
        scene.say(&[("headroom", "64")], State::Reconfiguring);
        settle();
        assert_eq!((scene.state(), toy.told().headroom), (State::Reconfigured, 64));
        scene.say(&[], State::Connected);
        settle();
        assert_eq!(scene.state(), State::Connected);
    }
    assert_eq!(toy.told().connections, 1);
    scene.say(&[("headroom", "257")], State::Reconfiguring);
    let history = settle();
    assert_eq!(scene.state(), State::Closed);
    assert_eq!(history.faults.get("key is out of range"), Some(&1), "{history:?}");
    // And where what it says is wrong the second time.
    scene.say(&[("headroom", "1")], State::Initialising);
    settle();
    scene.say(&[], State::Connected);
    settle();
    scene.say(&[], State::Reconfiguring);
    settle();
    scene.say(&[("headroom", "x")], State::Reconfiguring);
    settle();
    assert_eq!((scene.state(), toy.told().connections), (State::Closed, 2));
}

#[test]
fn a_frontend_that_went_and_came_back_before_we_looked_is_met_again() {
    for state in [State::Connected, State::Initialised] {
        let scene = Scene::new();
        let (toy, mailbox) = (Toy::default(), Mailbox::<()>::new().unwrap());
        let mut backend = Backend::<Domain, Toy>::new(
            &scene.pair,
            Colours(3),
            mailbox.waker(),
            History::default(),
        );
        let mut settle = || {
            let settled = backend.settle(&scene.own, &scene.own, &toy).unwrap();
            assert_eq!((settled, scene.state()), (Settled::Waiting, State::Connected));
        };
        scene.say(&[("colour", "3"), ("ring", "1")], state);
        settle();
        for _ in 0..3 {
            // Whatever else it writes is nothing to us.
            scene.say(&[("colour", "2")], state);
            settle();
        }
        assert_eq!(toy.told().connections, 1);
        scene.say(&[], State::Closed);
        scene.say(&[("ring", "2")], State::Initialising);
        scene.say(&[], state);
        settle();
        settle();
        assert_eq!((toy.told().connections, toy.told().ring), (2, Some(2)), "{state}");
    }
}

#[test]
fn a_frontend_that_comes_back_while_its_former_rings_are_let_go_is_met_again() {
    let scene = Scene::new();
    let (toy, mailbox) = (Toy::default(), Mailbox::<()>::new().unwrap());
    let mut backend =
        Backend::<Domain, Toy>::new(&scene.pair, Colours(3), mailbox.waker(), History::default());
    let settle = |backend: &mut Backend<Domain, Toy>| {
        assert_eq!(backend.settle(&scene.own, &scene.own, &toy).unwrap(), Settled::Waiting);
    };
    settle(&mut backend);
    scene.say(&[("colour", "3"), ("ring", "1")], State::Connected);
    settle(&mut backend);
    assert_eq!(scene.state(), State::Connected);
    // It closed, which takes the backend some time; meanwhile it is bound again, and goes by our old state.
    scene.say(&[], State::Closed);
    backend.detach();
    scene.say(&[("ring", "2")], State::Connected);
    settle(&mut backend);
    assert_eq!((scene.state(), toy.told().ring), (State::Connected, Some(2)));
}

#[test]
fn a_guest_that_comes_again_and_again_is_heard_of_so_often_and_then_waits() {
    let scene = Scene::new();
    let (toy, mailbox) = (Toy::default(), Mailbox::<()>::new().unwrap());
    let mut backend =
        Backend::<Domain, Toy>::new(&scene.pair, Colours(3), mailbox.waker(), History::default());
    // Eight steps and two lines, and then nothing for as long as the test takes.
    let hour = Duration::from_secs(3600);
    backend.comings = Ration::new(8, hour, Instant::now());
    backend.words = Words::new(Ration::new(2, hour, Instant::now()));
    let settle = |backend: &mut Backend<Domain, Toy>| {
        let settled = backend.settle(&scene.own, &scene.own, &toy).unwrap();
        (settled, scene.state())
    };
    for round in 1..=4_u64 {
        scene.say(&[("colour", "4")], State::Initialising);
        assert_eq!(settle(&mut backend), (Settled::Waiting, State::InitWait));
        scene.say(&[], State::Connected);
        assert_eq!(settle(&mut backend), (Settled::Waiting, State::Closed));
        assert!(scene.own("error").unwrap().contains("is '4'"));
        let History { faults, unsaid, delays, .. } = &backend.history;
        assert_eq!(faults.get("key is out of range"), Some(&round));
        assert_eq!((*unsaid, *delays), (round.saturating_sub(2), 0));
    }
    scene.say(&[("colour", "1")], State::Initialising);
    for delays in 1..3 {
        let (Settled::Until(when), State::Closed) = settle(&mut backend) else { panic!() };
        assert!(when > Instant::now());
        assert_eq!(backend.history.delays, delays);
    }
    // When its time has come it is served like any other.
    backend.comings = Ration::of_steps(Instant::now());
    assert_eq!(settle(&mut backend), (Settled::Waiting, State::InitWait));
    scene.say(&[], State::Connected);
    assert_eq!(settle(&mut backend), (Settled::Waiting, State::Connected));
}

#[test]
fn what_a_toolstack_changes_is_read_while_the_device_is_in_use() {
    let scene = Scene::new();
    let spot: Spot = scene.pair.back.directory.parse().unwrap();
    let device = Adopted::find(&scene.own, TOY, &spot).unwrap().unwrap();
    assert_eq!((device.label.as_str(), device.hotplug), ("7", Hotplug::None));
    let (toy, mailbox) = (Toy::default(), Mailbox::new().unwrap());
    let (slot, domain, served) = (mailbox.slot(), scene.own.clone(), toy.clone());
    let serving = thread::spawn(move || {
        let store = domain.open_store().unwrap();
        Serving::adopt(&domain, &store, &store, &served, (device, Colours(3)), mailbox).run()
    });
    until("it is offered", || scene.state() == State::InitWait);
    scene.say(&[("colour", "2")], State::Connected);
    until("it is connected", || scene.state() == State::Connected);
    until("its rate is read", || toy.told().rate == "1");
    let rate = format!("{}/rate", scene.pair.back.directory);
    scene.toolstack.write(Transaction::NONE, &rate, b"2").unwrap();
    until("its new rate is read", || toy.told().rate == "2");

    let change = |colour: &str| {
        let change = colour.to_owned();
        slot.ask(PATIENCE, |reply| Message::Change { change, reply })
    };
    assert_eq!(change("blue"), Ok(4));
    assert_eq!(scene.own("colour").as_deref(), Some("blue"), "said before it is answered");
    assert_eq!(change("").unwrap_err(), "colour '': is none");

    let leave = |reply| Message::Leave { force: false, reply: Some(reply) };
    let refused = slot.ask(PATIENCE, leave).unwrap_err();
    assert!(refused.ends_with(&format!("xl toy-detach {} 7", scene.guest.id())), "{refused}");
    slot.put(Message::Leave { force: false, reply: None }).unwrap();
    let ended = serving.join().unwrap().unwrap();
    assert!(matches!(ended, Ended::Paused(guest) if guest.id == scene.guest.id()));
    assert_eq!(scene.state(), State::Connected, "left as it is");
    let gone = slot.ask(PATIENCE, leave).unwrap_err();
    assert!(gone.contains("did not answer"), "{gone}");
}

#[test]
fn a_device_of_ours_is_made_as_ordered() {
    let machine = Machine::new();
    let (own, guest) = (machine.domain("backend"), machine.domain("guest"));
    let order = Order {
        backend: "toy2",
        number: 9,
        front: vec![("mac", "00:16:3e:00:00:01".to_owned())],
        back: vec![("bridge", "xenbr0".to_owned())],
    };
    let (wanted, offer) = ("guest".parse().unwrap(), Colours(1));
    let plan = Plan { me: own.id(), wanted, order, offer };
    let (out, parts) = sync_channel(1);
    let domain = own.clone();
    let serving = thread::spawn(move || {
        let (store, control) = (domain.open_store().unwrap(), domain.open_control_store().unwrap());
        let toy = Toy::default();
        let serving = Serving::new(&domain, &store, &control, &toy, plan).unwrap();
        out.send(serving.slot()).unwrap();
        serving.run()
    });
    let slot = parts.recv().unwrap();
    let read = |domain: &Domain, path: String| domain.read(Transaction::NONE, &path).ok();
    let front = format!("/local/domain/{}/device/toy/9", guest.id());
    let back = format!("/local/domain/{}/backend/toy2/{}/9", own.id(), guest.id());
    until("it is offered", || read(&guest, format!("{back}/state")).as_deref() == Some(b"2"));
    assert_eq!(read(&guest, format!("{front}/mac")).as_deref(), Some(&b"00:16:3e:00:00:01"[..]));
    assert_eq!(read(&own, format!("{back}/bridge")).as_deref(), Some(&b"xenbr0"[..]));
    assert_eq!(read(&own, format!("{back}/{}", toolstack::OWN)).as_deref(), Some(&b"1"[..]));
    let leave = |reply| Message::Leave { force: false, reply: Some(reply) };
    assert_eq!(slot.ask(PATIENCE, leave), Ok(()));
    assert_eq!(serving.join().unwrap().unwrap(), Ended::Asked);
    assert_eq!(read(&own, back), None);
}
