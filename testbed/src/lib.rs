//! Machines, guests and hostile peers.
