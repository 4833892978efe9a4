//! The data path, driven by a guest's end of the ring that the tests hold.

mod scene;
mod script;

mod queue;
mod leading;
mod durability;
mod hostile;
mod property;
