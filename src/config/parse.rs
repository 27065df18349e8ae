//! Text to Config.
