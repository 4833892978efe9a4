//! Xen shared rings and what is written on them.
#![no_std]
