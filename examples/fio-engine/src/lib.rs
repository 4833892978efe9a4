//! An external fio I/O engine.
