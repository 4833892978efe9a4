//! The journal: a backend that is killed before and after each of its stores, and what is damaged.

mod memory;

mod crash;
mod damage;
