//! year
