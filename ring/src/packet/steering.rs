//! Which queue a packet goes to: the settings that the control ring changes, and what follows.
//!
//! Before it: control requests, with the pages they point at copied out. After it: their statuses,
//! and for each packet a queue. The frontend is not trusted: what it sets is bounded in size and
//! each queue it names must be there.
//!
//! Source: "Control messages" in io/netif.h (RELEASE-4.17). Where it leaves the status open, as
//! Linux's xen-netback answers (v6.1).

use super::flow::Flow;
use super::toeplitz::Key;
use crate::wire::netif::control::{Algorithm, HashTypes, Status};
use crate::wire::netif::extra::Hash;

/// The most entries that a mapping has.
pub const MAPPING: usize = 128;

/// How packets are spread over a device's queues.
#[derive(Clone, Debug)]
pub struct Steering {
    algorithm: Algorithm,
    types: HashTypes,
    key: Key,
    mapping: [u16; MAPPING],
    /// Of the mapping; without entries queues are chosen modulo their number.
    entries: usize,
    /// Queues of the device.
    queues: u16,
}

/// What a frontend has set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings<'a> {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The types of hash.
    pub types: HashTypes,
    /// The key, at most [`KEY`](super::toeplitz::KEY) bytes.
    pub key: &'a [u8],
    /// The queue of each entry of the mapping, at most [`MAPPING`] of them.
    pub mapping: &'a [u16],
}

impl Steering {
    /// For a device with `queues` queues, as it is before the frontend says anything.
    #[must_use]
    pub const fn new(queues: u16) -> Self {
        Self {
            algorithm: Algorithm::NONE,
            types: HashTypes::NONE,
            key: Key::EMPTY,
            mapping: [0; MAPPING],
            entries: 0,
            queues,
        }
    }

    /// `SET_HASH_ALGORITHM`.
    pub fn set_algorithm(&mut self, algorithm: Algorithm) -> Status {
        if algorithm != Algorithm::NONE && algorithm != Algorithm::TOEPLITZ {
            return Status::INVALID_PARAMETER;
        }
        self.algorithm = algorithm;
        Status::SUCCESS
    }

    /// `GET_HASH_FLAGS`: the status, and the types of hash that there are.
    #[must_use]
    pub fn types(&self) -> (Status, HashTypes) {
        if self.algorithm == Algorithm::NONE {
            (Status::NOT_SUPPORTED, HashTypes::NONE)
        } else {
            (Status::SUCCESS, HashTypes::ALL)
        }
    }

    /// `SET_HASH_FLAGS`.
    pub fn set_types(&mut self, types: HashTypes) -> Status {
        if self.algorithm == Algorithm::NONE || !HashTypes::ALL.has(types) {
            return Status::INVALID_PARAMETER;
        }
        self.types = types;
        Status::SUCCESS
    }

    /// `SET_HASH_KEY` of `size` bytes, before its page is looked at: whether it can be taken.
    #[must_use]
    pub fn check_key(size: u32) -> Status {
        match usize::try_from(size) {
            Ok(size) if size <= super::toeplitz::KEY => Status::SUCCESS,
            _ => Status::BUFFER_OVERFLOW,
        }
    }

    /// `SET_HASH_KEY`, with the key.
    pub fn set_key(&mut self, key: &[u8]) -> Status {
        match Key::new(key) {
            Some(key) => {
                self.key = key;
                Status::SUCCESS
            }
            None => Status::BUFFER_OVERFLOW,
        }
    }

    /// `SET_HASH_MAPPING_SIZE`. The new mapping is filled with zero.
    pub fn set_mapping_size(&mut self, entries: u32) -> Status {
        match usize::try_from(entries) {
            Ok(entries) if entries <= MAPPING => {
                self.mapping = [0; MAPPING];
                self.entries = entries;
                Status::SUCCESS
            }
            _ => Status::INVALID_PARAMETER,
        }
    }

    /// `SET_HASH_MAPPING` of `entries` from `offset` on, before their page is looked at: whether
    /// they can be taken.
    #[must_use]
    pub fn check_mapping(&self, entries: u32, offset: u32) -> Status {
        let end = offset.checked_add(entries).map(usize::try_from);
        match end {
            Some(Ok(end)) if end <= self.entries => Status::SUCCESS,
            _ => Status::INVALID_PARAMETER,
        }
    }

    /// `SET_HASH_MAPPING`, with the page's bytes. Nothing changes where one entry is wrong.
    pub fn set_mapping(&mut self, offset: u32, bytes: &[u8]) -> Status {
        let (numbers, rest) = bytes.as_chunks::<4>();
        let queues = numbers.iter().map(|entry| u32::from_le_bytes(*entry));
        let in_table = usize::try_from(offset)
            .ok()
            .and_then(|offset| self.mapping.get_mut(..self.entries)?.get_mut(offset..))
            .and_then(|table| table.get_mut(..numbers.len()));
        let Some(room) = in_table.filter(|_| rest.is_empty()) else {
            return Status::INVALID_PARAMETER;
        };
        if queues.clone().any(|queue| queue >= u32::from(self.queues)) {
            return Status::INVALID_PARAMETER;
        }
        for (room, queue) in room.iter_mut().zip(queues) {
            *room = u16::try_from(queue).unwrap_or(0);
        }
        Status::SUCCESS
    }

    /// All that the frontend has set, to be set again by the backend that comes after this one.
    #[must_use]
    pub fn settings(&self) -> Settings<'_> {
        Settings {
            algorithm: self.algorithm,
            types: self.types,
            key: self.key.bytes(),
            mapping: self.mapping.get(..self.entries).unwrap_or_default(),
        }
    }

    /// Sets all of `settings`. Says whether they are such as a frontend of this device could have set one by
    /// one; what is not is left as it was.
    pub fn restore(&mut self, settings: &Settings<'_>) -> bool {
        let Settings { algorithm, types, key, mapping } = *settings;
        let mut new = Self::new(self.queues);
        // Types stay set when the algorithm is taken away again, and cannot be set without one.
        let mut done = new.set_algorithm(Algorithm::TOEPLITZ) == Status::SUCCESS
            && new.set_types(types) == Status::SUCCESS
            && new.set_algorithm(algorithm) == Status::SUCCESS
            && new.set_key(key) == Status::SUCCESS;
        let entries = u32::try_from(mapping.len()).unwrap_or(u32::MAX);
        done &= new.set_mapping_size(entries) == Status::SUCCESS;
        for (entry, queue) in (0..).zip(mapping) {
            let queue = u32::from(*queue).to_le_bytes();
            done = done && new.set_mapping(entry, &queue) == Status::SUCCESS;
        }
        if done {
            *self = new;
        }
        done
    }

    /// Whether the frontend chose how packets are spread; else the backend does as it likes.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.algorithm != Algorithm::NONE && self.types != HashTypes::NONE
    }

    /// The hash of `flow`, for the packet's extra.
    #[must_use]
    pub fn hash(&self, flow: &Flow) -> Option<Hash> {
        if self.is_set() { flow.hash(self.types, &self.key) } else { None }
    }

    /// The queue for a packet with `hash`. A packet without one goes where zero goes.
    #[must_use]
    pub fn queue(&self, hash: Option<Hash>) -> u16 {
        let value = hash.map_or(0, |hash| hash.value);
        let entry = usize::try_from(value).unwrap_or(0).checked_rem(self.entries);
        match entry.and_then(|entry| self.mapping.get(entry)) {
            Some(queue) => *queue,
            None => {
                let queue = value.checked_rem(u32::from(self.queues)).unwrap_or(0);
                u16::try_from(queue).unwrap_or(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(value: u32) -> Option<Hash> {
        Some(Hash { of: 0, algorithm: Algorithm::TOEPLITZ, value })
    }

    #[test]
    fn types_need_an_algorithm() {
        let mut steering = Steering::new(4);
        assert_eq!(steering.types(), (Status::NOT_SUPPORTED, HashTypes::NONE));
        assert_eq!(steering.set_types(HashTypes::IPV4), Status::INVALID_PARAMETER);
        assert_eq!(steering.set_algorithm(Algorithm(2)), Status::INVALID_PARAMETER);
        assert_eq!(steering.set_algorithm(Algorithm::TOEPLITZ), Status::SUCCESS);
        assert_eq!(steering.types(), (Status::SUCCESS, HashTypes::ALL));
        assert!(!steering.is_set());
        assert_eq!(steering.set_types(HashTypes(0x10)), Status::INVALID_PARAMETER);
        assert_eq!(steering.set_types(HashTypes::IPV4), Status::SUCCESS);
        assert!(steering.is_set());
        assert_eq!(steering.set_algorithm(Algorithm::NONE), Status::SUCCESS);
        assert!(!steering.is_set());
    }

    #[test]
    fn settings_are_set_again_or_left_alone() {
        let mut steering = Steering::new(4);
        assert_eq!(steering.set_algorithm(Algorithm::TOEPLITZ), Status::SUCCESS);
        assert_eq!(steering.set_types(HashTypes::IPV6), Status::SUCCESS);
        assert_eq!(steering.set_key(&[7; 9]), Status::SUCCESS);
        assert_eq!(steering.set_mapping_size(3), Status::SUCCESS);
        let table = [3_u32, 2].map(u32::to_le_bytes);
        assert_eq!(steering.set_mapping(1, table.as_flattened()), Status::SUCCESS);
        for algorithm in [Algorithm::TOEPLITZ, Algorithm::NONE] {
            assert_eq!(steering.set_algorithm(algorithm), Status::SUCCESS);
            let mut other = Steering::new(4);
            assert!(other.restore(&steering.settings()));
            assert_eq!(other.settings(), steering.settings());
            assert_eq!(other.settings().mapping, [0, 3, 2]);
        }
        // Another device's, or nobody's.
        let mut small = Steering::new(3);
        let was = steering.settings();
        let wrong = [
            was,
            Settings { algorithm: Algorithm(9), mapping: &[], ..was },
            Settings { types: HashTypes(0x10), mapping: &[], ..was },
            Settings { key: &[0; 41], mapping: &[], ..was },
            Settings { mapping: &[0; 129], ..was },
        ];
        for wrong in wrong {
            assert!(!small.restore(&wrong), "{wrong:?}");
            assert_eq!(small.settings(), Steering::new(3).settings());
        }
    }

    #[test]
    fn keys_and_mappings_have_an_end() {
        let mut steering = Steering::new(4);
        assert_eq!(steering.set_key(&[1; 40]), Status::SUCCESS);
        assert_eq!(steering.set_key(&[1; 41]), Status::BUFFER_OVERFLOW);
        assert_eq!([40, 41].map(Steering::check_key), [Status::SUCCESS, Status::BUFFER_OVERFLOW]);
        assert_eq!(steering.set_mapping_size(129), Status::INVALID_PARAMETER);
        assert_eq!(steering.set_mapping_size(128), Status::SUCCESS);
        assert_eq!(steering.check_mapping(128, 0), Status::SUCCESS);
        assert_eq!(steering.check_mapping(128, 1), Status::INVALID_PARAMETER);
        assert_eq!(steering.check_mapping(2, u32::MAX), Status::INVALID_PARAMETER);
    }

    #[test]
    fn a_mapping_names_queues_that_there_are() {
        let mut steering = Steering::new(4);
        assert_eq!([0, 3, 4, 7].map(|value| steering.queue(hash(value))), [0, 3, 0, 3]);
        assert_eq!(steering.set_mapping_size(4), Status::SUCCESS);
        assert_eq!([0, 3, 4, 7].map(|value| steering.queue(hash(value))), [0; 4]);
        let table = [3_u32, 2, 1, 0].map(u32::to_le_bytes);
        assert_eq!(steering.set_mapping(0, table.as_flattened()), Status::SUCCESS);
        assert_eq!(steering.queue(None), 3);
        let wrong = [0_u32, 4].map(u32::to_le_bytes);
        assert_eq!(steering.set_mapping(0, wrong.as_flattened()), Status::INVALID_PARAMETER);
        assert_eq!([0, 1, 2, 7].map(|value| steering.queue(hash(value))), [3, 2, 1, 0]);
        let part = [2_u32].map(u32::to_le_bytes);
        assert_eq!(steering.set_mapping(3, part.as_flattened()), Status::SUCCESS);
        assert_eq!(steering.queue(hash(3)), 2);
        for (offset, bytes) in [(4, &[0; 4][..]), (3, &[0; 8]), (u32::MAX, &[0; 4]), (0, &[0; 3])] {
            assert_eq!(steering.set_mapping(offset, bytes), Status::INVALID_PARAMETER);
        }
    }
}
