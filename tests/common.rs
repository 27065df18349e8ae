//! common

pub mod faulty;
