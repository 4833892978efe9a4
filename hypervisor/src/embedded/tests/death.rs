//! Domains that end while others use what was theirs.
