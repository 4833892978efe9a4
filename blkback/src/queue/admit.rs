//! From the ring to the engine's door: takes requests, and lets those through that may begin.

use hypervisor::PeerFault;

use super::{BATCH, Command, Queue};
use crate::acquire::{GuestMemory, Unreached, Way};
use crate::durability::free;
use crate::receive::{Answer, Gathered, RawRequest, Requests};
use crate::request::{Job, Ready, Request};
use crate::segments::Body;
use crate::validate::{Action, Refusal};
use crate::{engine::Engine, request::InFlight, respond};

use std::sync::atomic::Ordering;

/// A request that has yet to begin.
type Waiting<R, G> =
    Request<<R as Requests>::Slot, <G as GuestMemory>::Hold, <R as Requests>::Place>;

impl<R, G, E, C> Queue<R, G, E, C>
where
    R: Requests,
    G: GuestMemory<Place = R::Place>,
    E: Engine<InFlight<G::Hold, R::Place>>,
{
    /// Fills `staged` with what may begin: first what was held back, then what is on the
    /// ring. Says whether there was anything, and whether the guest broke the ring's rules.
    #[inline]
    pub(super) fn admit(&mut self, command: Command) -> (bool, Option<PeerFault>) {
        if command == Command::Stop || self.submit.is_backed_up() {
            return (false, None);
        }
        let mut worked = self.admit_held(command);
        if command != Command::Run {
            return (worked, None);
        }
        // Refused requests count as well, so that nonsense is no more work than sense.
        for _ in self.staged.len()..BATCH {
            match self.requests.take() {
                Ok(Some(raw)) => self.take(raw),
                Ok(None) => break,
                Err(fault) => return (worked, Some(fault)),
            }
            worked = true;
            self.listener.found();
        }
        (worked, None)
    }

    fn admit_held(&mut self, command: Command) -> bool {
        self.held_until = None;
        let mut worked = false;
        while self.staged.len() < BATCH
            && let Some(mut request) = self.held.pop_front()
        {
            request.paid |= command == Command::Drain;
            if let Err(request) = self.pass(request) {
                self.held.push_front(request);
                break;
            }
            worked = true;
        }
        worked
    }

    /// Checks a request that was just taken, and lets it through or holds it back.
    #[inline]
    fn take(&mut self, raw: RawRequest<R::Raw, R::Slot>) {
        let RawRequest { asked, slot } = raw;
        let mut body = self.bodies.take();
        let (rules, memory) = (&self.serving.rules, &mut self.memory);
        let gathered = self.requests.gather(&asked, memory, rules.sector_size, &mut body.segments);
        let sectors = self.serving.sectors.load(Ordering::Relaxed);
        let checked = match gathered {
            Ok(Gathered::Asked(asked)) => rules.check(&asked, sectors),
            Ok(Gathered::Ranges) => {
                rules.check_ranges(self.requests.ranges(), sectors, &mut body.ranges)
            }
            Ok(Gathered::Done) => {
                self.bodies.put(body);
                self.requests.answer(slot, Answer::Done);
                self.unpublished = true;
                return;
            }
            Err(refusal) => Err(refusal),
        };
        let checked = match checked {
            Ok(checked) => checked,
            Err(refusal) => {
                self.bodies.put(body);
                self.stats.refuse(refusal);
                self.requests.answer(slot, refusal.answer());
                self.unpublished = true;
                return;
            }
        };
        let job = Job::new(slot, checked, self.clock.now());
        let request = Request { job, body, paid: false };
        if self.held.is_empty() || free(request.job.action, request.job.len > 0) {
            if let Err(request) = self.pass(request) {
                self.stats.held.add(1);
                self.held.push_back(request);
            }
        } else {
            self.stats.held.add(1);
            self.held.push_back(request);
        }
    }

    /// Lets a request through to `staged`, or answers it; gives back one that has to wait.
    #[inline]
    fn pass(&mut self, mut request: Waiting<R, G>) -> Result<(), Waiting<R, G>> {
        let Job { action, len, .. } = request.job;
        let data = len > 0;
        if !request.paid && !free(action, data) {
            let cost = self.serving.rules.cost(action, len, request.body.ranges.len());
            if let Err(later) = self.serving.limits.admit(cost, self.clock.now()) {
                self.held_until = Some(later);
                return Err(request);
            }
            request.paid = true;
        }
        if !self.order.admit(action, data) {
            return Err(request);
        }
        let way = if action == Action::Read { Way::ToGuest } else { Way::FromGuest };
        let Body { segments, reached, .. } = &mut *request.body;
        let reach = match segments.is_empty() {
            true => Ok(()),
            false => self.memory.reach(segments, way, reached),
        };
        match reach {
            Ok(()) => {
                let Request { job, body, .. } = request;
                self.staged.push_back(Ready { job, body });
                Ok(())
            }
            Err(unreached) => {
                self.order.over(action, data);
                self.memory.release(&mut request.body.reached);
                match unreached {
                    // Something has to be under way, or nobody would come back to this one.
                    Unreached::Later
                        if !(self.submit.table.is_empty() && self.staged.is_empty()) =>
                    {
                        return Err(request);
                    }
                    Unreached::Later => {
                        self.refuse(request.job, request.body, Refusal::HostFailed);
                    }
                    Unreached::Failed(failed) => {
                        self.refuse(request.job, request.body, failed);
                    }
                }
                Ok(())
            }
        }
    }

    /// Answers a request that the medium has not seen.
    pub(super) fn refuse(
        &mut self,
        job: Job<R::Slot>,
        mut body: Box<Body<G::Hold, R::Place>>,
        refusal: Refusal,
    ) {
        self.memory.release(&mut body.reached);
        self.bodies.put(body);
        respond::refused(&mut self.requests, &self.stats, job, refusal);
        self.unpublished = true;
    }
}
