//! PostgreSQL.
use crate::config::PostgresConfig;
/// d
pub const DRIVER: super::Driver = super::Driver { kind: "postgres", summary: "a PostgreSQL server, 13 or newer" };
/// d
#[derive(Debug)]
pub struct Postgres {
    config: PostgresConfig,
}
impl Postgres {
    /// d
    pub fn new(config: PostgresConfig) -> Self {
        Self { config }
    }
}
