//! Choices that the data path is given and does not make.

pub mod acquire;
