//! config_invalid
