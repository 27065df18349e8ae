//! The relations of a cluster, asked before and after a copy: what was there both times must be in the copy.
//!
//! Best effort: a role with REPLICATION alone may see no database, and its copies are still good. Then a drill has
//! nothing to compare relations with, and says so.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Postgres;
use super::connect::literal;
use super::server::Server;
use crate::source::Context;

/// One relation, by what does not change when it is renamed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Relation {
    pub(super) database: String,
    pub(super) relation: u32,
    /// As in `pg_class`: `r`, `i`, `S`, `t`, `m`, ...
    pub(super) kind: String,
    /// For people.
    pub(super) name: String,
}

/// The role that made the cluster; only it is sure to be there and to have all rights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Superuser {
    pub(super) superuser: String,
}

/// What could be seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Relations {
    pub(super) superuser: Option<Superuser>,
    pub(super) relations: Vec<Relation>,
}

impl Relations {
    /// Those of `self` that are in `later` too.
    pub(super) fn in_both(mut self, later: Self) -> Self {
        let key = |r: &Relation| (r.database.clone(), r.relation, r.kind.clone());
        let there: BTreeSet<_> = later.relations.iter().map(key).collect();
        self.relations.retain(|r| there.contains(&key(r)));
        self.superuser = later.superuser.or(self.superuser);
        self
    }
}

/// Permanent and unlogged relations of the connected database, as one JSON value.
pub(super) fn query(database: &str) -> String {
    format!(
        "select coalesce(json_agg(json_build_object('database', {}, 'relation', c.oid::bigint, 'kind', c.relkind,
         'name', n.nspname || '.' || c.relname) order by c.oid), '[]')
         from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relpersistence <> 't'",
        literal(database)
    )
}

impl Postgres {
    /// Asks every database that accepts connections. What cannot be asked is left out.
    pub(super) async fn relations(&self, cx: &Context, server: &Server) -> Relations {
        let superuser = "select json_build_object('superuser', rolname) from pg_roles where oid = 10";
        let mut all =
            Relations { superuser: self.query(cx, &self.config.database, superuser).await.ok(), relations: Vec::new() };
        for database in server.databases.iter().map(|d| &d.database).filter(|d| *d != "template0") {
            if let Ok(found) = self.query::<Vec<Relation>>(cx, database, &query(database)).await {
                all.relations.extend(found);
            }
        }
        all
    }
}
